"""Checkpoints: complete, atomic, safe to read, and clear about what does not fit."""

import os
import pickle
import random
import struct
import subprocess
import sys
import textwrap
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import hysac.training.checkpoint
from hysac.files import remove_leftovers, replacing
from hysac.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    checkpoint_path,
    checkpoint_paths,
    digest,
    keep_last,
    newest_good,
    random_state,
    set_random_state,
)

CPU = torch.device("cpu")


def checkpoint(step=3, size=4):
    model = nn.Linear(size, 2)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model(torch.ones(size)).sum().backward()
    optimizer.step()
    return Checkpoint(
        step=step,
        settings={"model": "tiny", "lora_targets": ["k", "v"], "lr": 0.1, "patience": None},
        model=model.state_dict(),
        optimizer=optimizer.state_dict(),
        scaler={},
        random_states=[random_state(CPU)],
        selection={"best": None, "best_step": 0, "stale": 0},
    )


def everything(path):
    return {p.name: p.read_bytes() for p in path.iterdir()}


def test_round_trip(tmp_path):
    wanted = checkpoint()
    wanted.save(checkpoint_path(tmp_path, 3))
    got = Checkpoint.load(checkpoint_path(tmp_path, 3))
    assert (got.step, got.settings, got.selection) == (wanted.step, wanted.settings, wanted.selection)
    for name, tensor in wanted.model.items():
        assert torch.equal(got.model[name], tensor)
    for number, state in wanted.optimizer["state"].items():
        for name, tensor in state.items():
            assert torch.equal(got.optimizer["state"][number][name], tensor)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000003.pt"]


def test_every_random_generator_continues(tmp_path):
    def draw():
        return random.random(), np.random.rand(), np.random.randn(), torch.rand(2).tolist()

    np.random.randn()  # leaves half of a pair in the generator
    checkpoint().save(tmp_path / "step-00000003.pt")
    wanted = [draw(), draw()]
    (state,) = Checkpoint.load(tmp_path / "step-00000003.pt").random_states
    set_random_state(state, CPU)
    assert [draw(), draw()] == wanted


def test_newest_and_oldest(tmp_path):
    for step in (5, 100_000_000, 20):
        checkpoint_path(tmp_path, step).touch()
    (tmp_path / "other.pt").touch()
    (tmp_path / ".step-00000099.pt.17.tmp").touch()
    assert [p.stem for p in checkpoint_paths(tmp_path)] == [
        "step-00000005",
        "step-00000020",
        "step-100000000",
    ]
    keep_last(tmp_path, 2)
    assert [p.stem for p in checkpoint_paths(tmp_path)] == ["step-00000020", "step-100000000"]
    keep_last(tmp_path, 5)
    assert len(checkpoint_paths(tmp_path)) == 2
    remove_leftovers(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"step-00000020.pt", "step-100000000.pt", "other.pt"}
    assert checkpoint_paths(tmp_path / "missing") == []


def test_a_flipped_bit_in_the_content_is_found(tmp_path):
    """Of every stored tensor: PyTorch's own reader compares nothing."""
    path = tmp_path / "step-00000003.pt"
    checkpoint(size=64).save(path)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        stored = [info for info in archive.infolist() if "/data/" in info.filename]
    # A local header takes 30 bytes and what its last two fields say.
    extra = [sum(struct.unpack_from("<HH", whole, info.header_offset + 26)) for info in stored]
    places = [
        (info.header_offset + 30 + more, info.file_size) for info, more in zip(stored, extra, strict=True)
    ]
    generator = random.Random(1)
    assert len(places) > 5
    for start, size in places:
        content = bytearray(whole)
        content[start + generator.randrange(size)] ^= 1 << generator.randrange(8)
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"step-00000003\.pt is damaged"):
            Checkpoint.load(path)
        Checkpoint.load(path, verify=False)
    path.write_bytes(whole)
    assert Checkpoint.load(path).step == 3


@pytest.mark.slow
def test_flipped_bits_anywhere_are_found_or_change_nothing(tmp_path):
    path = tmp_path / "step-00000003.pt"
    wanted = checkpoint()
    wanted.save(path)
    whole = path.read_bytes()
    generator = random.Random(2)
    for _ in range(300):
        content = bytearray(whole)
        content[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        path.write_bytes(content)
        try:
            got = Checkpoint.load(path)
        except CheckpointError:
            continue
        assert digest(vars(got)) == digest(vars(wanted)), "padding and names of the archive"


def test_a_setting_that_an_older_checkpoint_lacks_does_not_contradict():
    stored = replace(checkpoint(), settings={"lr": 0.1})
    stored.check_settings({"lr": 0.1, "background": "none", "training data": "abc"})
    with pytest.raises(CheckpointError, match="patience was None and is now 3"):
        stored.check_settings({"lr": 0.1, "patience": 3})
    with pytest.raises(CheckpointError, match="background was 'none' and is now 'white'"):
        replace(stored, settings={"background": "none"}).check_settings({"background": "white"})


def test_a_file_that_cannot_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    checkpoint().save(checkpoint_path(tmp_path, 3))

    def unreadable(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(torch, "load", unreadable)
    with pytest.raises(PermissionError):
        newest_good(tmp_path)


def test_a_checkpoint_without_a_checksum_is_read(tmp_path):
    path = tmp_path / "step-00000003.pt"
    checkpoint().save(path)
    content = torch.load(path, weights_only=True)
    del content["sha256"]
    torch.save(content, path)
    assert Checkpoint.load(path).step == 3


def test_a_damaged_newest_one_gives_way_to_the_one_before(tmp_path, caplog):
    assert newest_good(tmp_path) is None
    for step in (2, 4, 6):
        checkpoint(step).save(checkpoint_path(tmp_path, step))
    for step, expected in ((6, 4), (4, 2)):
        path = checkpoint_path(tmp_path, step)
        path.write_bytes(path.read_bytes()[:-100])
        found, got = newest_good(tmp_path)
        assert (found, got.step) == (checkpoint_path(tmp_path, expected), expected)
        assert f"{path} is damaged" in caplog.text
        assert "going back to the checkpoint before it" in caplog.text
    checkpoint_path(tmp_path, 2).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"every checkpoint in .* is damaged; .*step-00000006"):
        newest_good(tmp_path)


@pytest.mark.slow
class TestFullDisk:
    def test_a_write_that_fails_part_way_changes_nothing(self, tmp_path, monkeypatch):
        path = tmp_path / "step-00000003.pt"
        checkpoint().save(path)
        before = everything(tmp_path)
        real_open = open

        class Full:
            def __init__(self, file):
                self.file, self.left = file, 5000

            def __getattr__(self, name):
                return getattr(self.file, name)

            def __enter__(self):
                return self

            def __exit__(self, *_):
                self.file.close()

            def write(self, data):
                self.left -= len(data)
                if self.left < 0:
                    raise OSError(28, "No space left on device")
                return self.file.write(data)

        monkeypatch.setattr("builtins.open", lambda *a, **k: Full(real_open(*a, **k)))
        with pytest.raises(OSError, match="No space left on device") as caught:
            checkpoint(step=4, size=5000).save(path)
        monkeypatch.undo()
        assert caught.value.errno == 28
        assert caught.value.filename == str(path)
        assert everything(tmp_path) == before

    def test_a_file_size_limit(self, tmp_path):
        """The kernel refuses the write, as it does on a full disk."""
        path = tmp_path / "step-00000003.pt"
        checkpoint().save(path)
        before = everything(tmp_path)
        program = f"""
            import resource, sys, torch
            from pathlib import Path
            from hysac.training.checkpoint import Checkpoint
            large = Checkpoint(4, {{}}, {{"w": torch.ones(1_000_000)}}, {{}}, {{}}, [], {{}})
            for limit in (2_000_000, 50_000, 100):
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
                try:
                    large.save(Path({str(path)!r}))
                except OSError as error:
                    assert error.errno == 27, error
                else:
                    sys.exit(1)
            sys.exit(17)
        """
        command = [sys.executable, "-c", textwrap.dedent(program)]
        assert subprocess.run(command, check=False).returncode == 17
        assert everything(tmp_path) == before

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
    def test_a_full_file_system(self, tmp_path):
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", tmp_path], check=False)
        if mounted.returncode:
            pytest.skip("cannot mount a small file system here")
        try:
            path = tmp_path / "step-00000003.pt"
            checkpoint().save(path)
            before = everything(tmp_path)
            with pytest.raises(OSError, match="No space left on device"):
                replace(checkpoint(), model={"w": torch.ones(1_000_000)}).save(path)
            assert everything(tmp_path) == before
            assert Checkpoint.load(path).step == 3
        finally:
            subprocess.run(["umount", tmp_path], check=True)

    def test_a_directory_that_is_a_file(self, tmp_path):
        (tmp_path / "checkpoints").touch()
        with pytest.raises(OSError, match="checkpoints"):
            checkpoint().save(tmp_path / "checkpoints" / "step-00000003.pt")


def test_replacing_writes_before_it_renames(tmp_path, monkeypatch):
    events = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)

        def spy(*args, name=name, real=real):
            events.append(name)
            return real(*args)

        monkeypatch.setattr(os, name, spy)
    with replacing(tmp_path / "file") as file:
        file.write(b"new")
    assert events == ["fsync", "replace", "fsync"]
    assert (tmp_path / "file").read_bytes() == b"new"


def test_an_interrupted_write_leaves_nothing(tmp_path):
    (tmp_path / "file").write_bytes(b"old")

    def interrupted():
        with replacing(tmp_path / "file") as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert everything(tmp_path) == {"file": b"old"}


class TestDamage:
    @pytest.mark.parametrize("share", [0, 0.001, 0.3, 0.9, 0.999])
    def test_truncated(self, tmp_path, share):
        path = tmp_path / "step-00000003.pt"
        checkpoint().save(path)
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(CheckpointError, match=r"step-00000003\.pt is damaged, incomplete or not"):
            Checkpoint.load(path)

    def test_missing(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*gone\.pt"):
            Checkpoint.load(tmp_path / "gone.pt")

    def test_something_else(self, tmp_path):
        path = tmp_path / "weights.pt"
        torch.save({"w": torch.ones(2)}, path)
        with pytest.raises(CheckpointError, match="is not a hysac training checkpoint"):
            Checkpoint.load(path)

    def test_another_version(self, tmp_path, monkeypatch):
        path = tmp_path / "step-00000003.pt"
        monkeypatch.setattr(hysac.training.checkpoint, "FORMAT_VERSION", 99)
        checkpoint().save(path)
        monkeypatch.undo()
        with pytest.raises(CheckpointError, match="format_version must be 1, got 99"):
            Checkpoint.load(path)

    def test_incomplete_content(self, tmp_path):
        path = tmp_path / "step-00000003.pt"
        torch.save({"format_version": 1, "step": 3, "model": {}, "settings": {}}, path)
        with pytest.raises(CheckpointError, match="lacks optimizer, random_states, scaler, selection"):
            Checkpoint.load(path)

    @pytest.mark.filterwarnings("ignore:Detected pickle protocol")
    @pytest.mark.parametrize("as_zip", [True, False])
    def test_nothing_is_executed(self, tmp_path, as_zip):
        class Attack:
            def __reduce__(self):
                return Path.touch, (tmp_path / "executed",)

        path = tmp_path / "step-00000003.pt"
        if as_zip:
            torch.save({"format_version": 1, "model": Attack()}, path)
        else:
            path.write_bytes(pickle.dumps(Attack()))
        with pytest.raises(CheckpointError):
            Checkpoint.load(path)
        assert not (tmp_path / "executed").exists()


class TestOtherRuns:
    def test_other_settings_are_named(self):
        with pytest.raises(CheckpointError) as caught:
            checkpoint().check_settings(
                {"model": "tiny", "lora_targets": ["k"], "lr": 0.2, "patience": None, "seed": 1}
            )
        assert str(caught.value) == (
            "the checkpoint belongs to another run: lora_targets was ['k', 'v'] and is now ['k']; "
            "lr was 0.1 and is now 0.2; seed was None and is now 1"
        )

    def test_another_architecture_is_named_and_not_loaded(self):
        model = nn.Linear(7, 2, bias=False)
        before = model.weight.detach().clone()
        with pytest.raises(CheckpointError) as caught:
            checkpoint().load_model(model)
        assert str(caught.value) == (
            "the checkpoint is of another architecture: bias is unknown to the model; "
            "weight has shape (2, 4), the model's has (2, 7)"
        )
        assert torch.equal(model.weight, before)

    def test_many_differences_are_counted(self):
        with pytest.raises(
            CheckpointError, match=r"0\.weight is missing; 0\.bias is missing; .*; and 3 more"
        ):
            checkpoint().load_model(nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2)))
