"""Interrupted runs: killed, signalled, stopped by a full disk; each continues to the same bits."""

import json
import os
import shutil
import signal
import socket
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from forked import Command

import hysac.training.loop
from hysac import create_model, save_pretrained
from hysac.data import write_toy
from hysac.training.checkpoint import Checkpoint, CheckpointError, checkpoint_paths
from hysac.training.config import TrainConfig
from hysac.training.loop import train
from hysac.training.optim import learning_rate
from hysac.training.run_log import read_log

pytestmark = pytest.mark.slow

STEPS_PER_EPOCH, EPOCHS = 9, 3


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Patch dropout draws random numbers in the model, augmentation does in the loader."""
    directory = tmp_path_factory.mktemp("resume")
    manifests = write_toy(directory / "toy", train_size=36, val_size=6, progress=False)
    torch.manual_seed(0)
    save_pretrained(create_model("hysac-toy", force_patch_dropout=0.5), directory / "start")
    return TrainConfig(
        train_data=str(manifests["train"]),
        val_data=str(manifests["val"]),
        model=f"local-dir:{directory / 'start'}",
        batch_size=2,
        accum_freq=2,
        epochs=EPOCHS,
        lr=1e-3,
        workers=0,
        device="cpu",
        log_every_n_steps=2,
        save_every_n_steps=3,
        keep_last=20,
        logs=str(directory),
        name="whole",
    )


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The number of threads decides the order of some sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def whole(config):
    """The run that nothing interrupts."""
    return train(config)


def flags(config):
    default = TrainConfig(train_data="", model="").to_dict()
    for name, value in config.to_dict().items():
        if value != default[name]:
            yield from (f"--{name.replace('_', '-')}", str(value))


def start(config, **options):
    return Command(["train", *flags(config)], Path(config.logs) / f"{config.name}.log", **options)


def wait_for_step(process, directory, step):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if any(record["step"] >= step for record in read_log(directory / "metrics.jsonl")):
                return
        except OSError:
            pass
        time.sleep(0.005)
    pytest.fail(f"the run ended or stood still before step {step}")


def newest(run_dir):
    return Checkpoint.load(checkpoint_paths(run_dir / "checkpoints")[-1])


def assert_same_course(run_dir, wanted_dir):
    """Weights, optimizer, random numbers and log, to the last bit; only speeds differ."""
    got, wanted = newest(run_dir), newest(wanted_dir)
    assert got.step == wanted.step == STEPS_PER_EPOCH * EPOCHS
    for name, tensor in wanted.model.items():
        assert torch.equal(got.model[name], tensor), name
    for number, state in wanted.optimizer["state"].items():
        for name, tensor in state.items():
            assert torch.equal(got.optimizer["state"][number][name], tensor)
    assert torch.equal(got.random_states[0]["torch"], wanted.random_states[0]["torch"])
    assert got.selection == wanted.selection
    logs = [read_log(path / "metrics.jsonl") for path in (run_dir, wanted_dir)]
    for log in logs:
        for record in log:
            record.pop("samples_per_second", None)
    assert logs[0] == logs[1]
    models = [(path / "model" / "open_clip_model.safetensors").read_bytes() for path in (run_dir, wanted_dir)]
    assert models[0] == models[1]


def test_killed_in_the_middle_of_an_epoch(config, whole, tmp_path):
    config = replace(config, name="killed", logs=str(tmp_path), workers=1)
    process = start(config)
    wait_for_step(process, tmp_path / "killed", 14)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    step = newest(tmp_path / "killed").step
    assert 9 <= step < STEPS_PER_EPOCH * EPOCHS
    result = train(replace(config, resume="latest"))
    assert result.status == "finished"
    assert_same_course(result.run_dir, whole.run_dir)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signalled(config, whole, tmp_path, number, code):
    """To the whole process group, as a terminal and a scheduler do: the loaders must not die of it."""
    config = replace(config, name="signalled", logs=str(tmp_path), workers=1, save_every_n_steps=None)
    process = start(config, start_new_session=True)
    wait_for_step(process, tmp_path / "signalled", 10)
    os.killpg(process.pid, number)
    assert process.wait(timeout=60) == code
    told = (tmp_path / "signalled.log").read_text()
    assert "Traceback" not in told
    assert "--name signalled --resume latest" in told
    step = newest(tmp_path / "signalled").step
    assert f"interrupted after {step} steps" in told
    result = train(replace(config, resume="latest", workers=0))
    assert result.status == "finished"
    wanted = newest(whole.run_dir)
    for name, tensor in newest(result.run_dir).model.items():
        assert torch.equal(tensor, wanted.model[name]), name


def test_from_an_earlier_checkpoint_into_another_run(config, whole, tmp_path):
    first = checkpoint_paths(whole.run_dir / "checkpoints")[0]
    result = train(replace(config, name="branch", logs=str(tmp_path), resume=str(first)))
    wanted = newest(whole.run_dir)
    for name, tensor in newest(result.run_dir).model.items():
        assert torch.equal(tensor, wanted.model[name]), name


def test_from_an_earlier_checkpoint_of_the_same_run(config, whole, tmp_path):
    """What came after it is kept under another name, until it is made again."""
    shutil.copytree(whole.run_dir, tmp_path / "again")
    paths = checkpoint_paths(tmp_path / "again" / "checkpoints")
    of_step = json.loads((whole.run_dir / "model" / "training.json").read_text())["step"]
    assert of_step == newest(whole.run_dir).selection["best_step"] > Checkpoint.load(paths[2]).step
    result = train(replace(config, name="again", logs=str(tmp_path), resume=str(paths[2])))
    assert_same_course(result.run_dir, whole.run_dir)
    assert paths[-1].with_name(f"{paths[-1].name}.later").is_file()
    assert (result.run_dir / "model.later" / "open_clip_model.safetensors").is_file()
    assert len(checkpoint_paths(tmp_path / "again" / "checkpoints")) == len(paths)


def test_a_run_whose_best_model_is_elsewhere_keeps_its_own(config, whole, tmp_path):
    """It would finish without a model if nothing after the checkpoint was better."""
    checkpoint = Checkpoint.load(checkpoint_paths(whole.run_dir / "checkpoints")[2])
    path = tmp_path / "step-00000009.pt"
    replace(checkpoint, selection={"best": 1e9, "best_step": 9, "stale": 0}).save(path)
    result = train(replace(config, name="branch", logs=str(tmp_path), resume=str(path)))
    assert result.status == "finished"
    assert result.model_dir is not None
    assert result.selection.best_step > 9
    of_step = json.loads((result.model_dir / "training.json").read_text())["step"]
    assert of_step == result.selection.best_step


@pytest.mark.parametrize("content", ["[]", "{}", '{"step": "9"}', '{"step": null}', ""])
def test_a_model_of_an_unknown_step_is_told(config, whole, tmp_path, content):
    shutil.copytree(whole.run_dir, tmp_path / "again")
    (tmp_path / "again" / "model" / "training.json").write_text(content)
    with pytest.raises(ValueError, match=r"training\.json"):
        train(replace(config, name="again", logs=str(tmp_path), resume="latest"))


def test_a_finished_run_is_extended(config, whole, tmp_path, caplog):
    shutil.copytree(whole.run_dir, tmp_path / "longer")
    config = replace(config, name="longer", logs=str(tmp_path), resume="latest", epochs=EPOCHS + 1)
    with caplog.at_level("INFO"):
        result = train(config)
    assert (result.status, result.step) == ("finished", STEPS_PER_EPOCH * (EPOCHS + 1))
    assert (
        "the run of 27 steps is extended to 36: the learning rate goes on as at step 27 of 36" in caplog.text
    )
    rates = {
        record["step"]: record["lr"]
        for record in read_log(result.run_dir / "metrics.jsonl")
        if record["kind"] == "train"
    }
    assert rates[28] == pytest.approx(learning_rate(27, peak=1e-3, warmup=3, total=36))
    with pytest.raises(CheckpointError, match="epochs was 4 and is now 3"):
        train(replace(config, epochs=EPOCHS))


def test_a_run_that_is_not_over_is_not_extended(config, whole, tmp_path):
    first = checkpoint_paths(whole.run_dir / "checkpoints")[0]
    with pytest.raises(CheckpointError, match="epochs was 3 and is now 4"):
        train(replace(config, name="branch", logs=str(tmp_path), resume=str(first), epochs=EPOCHS + 1))


def test_another_division_of_a_step_is_equal_to_rounding(config, tmp_path):
    """Without random layers; 2 x 2 quadruplets of a step, then 4 x 1. eps keeps AdamW from taking rounding
    for a gradient.
    """
    config = replace(config, model="hysac-toy", logs=str(tmp_path), name="whole", epochs=2, eps=1e-4)
    whole = train(config)
    first = checkpoint_paths(whole.run_dir / "checkpoints")[0]
    divided = train(replace(config, name="divided", resume=str(first), batch_size=4, accum_freq=1))
    start, wanted = Checkpoint.load(first).model, newest(whole.run_dir).model
    for name, tensor in newest(divided.run_dir).model.items():
        moved = (wanted[name] - start[name]).norm()
        assert (tensor - wanted[name]).norm() <= 2e-2 * moved + 1e-7, name


def test_a_finished_run_is_left_alone(config, whole):
    before = newest(whole.run_dir)
    result = train(replace(config, resume="latest"))
    assert (result.status, result.step, result.metrics) == ("finished", before.step, {})
    assert result.selection == whole.selection


def test_latest_without_a_checkpoint_starts(config, tmp_path):
    """Of a run that is there; one that is not has another name."""
    (tmp_path / "fresh").mkdir()
    result = train(replace(config, name="fresh", logs=str(tmp_path), resume="latest", max_steps=1))
    assert result.step == 1
    with pytest.raises(ValueError, match=r"frehs is not there to be continued; .* has fresh$"):
        train(replace(config, name="frehs", logs=str(tmp_path), resume="latest", max_steps=1))
    assert not (tmp_path / "frehs").exists()


def test_a_damaged_newest_checkpoint_is_passed_over_aloud(config, whole, tmp_path, caplog):
    directory = tmp_path / "damaged"
    shutil.copytree(whole.run_dir, directory)
    paths = checkpoint_paths(directory / "checkpoints")
    content = bytearray(paths[-1].read_bytes())
    content[len(content) // 2] ^= 1
    paths[-1].write_bytes(content)
    result = train(replace(config, name="damaged", logs=str(tmp_path), resume="latest"))
    assert f"{paths[-1]} is damaged" in caplog.text
    assert_same_course(result.run_dir, whole.run_dir)


def test_a_run_has_one_writer(config, tmp_path):
    config = replace(config, name="once", logs=str(tmp_path), workers=0)
    process = start(config)
    wait_for_step(process, tmp_path / "once", 2)
    with pytest.raises(ValueError, match=rf"once is being written by another run, process {process.pid}"):
        train(replace(config, resume="latest"))
    process.kill()
    process.wait()
    assert train(replace(config, resume="latest")).status == "finished"


def test_a_full_disk_keeps_the_last_good_checkpoint(config, whole, tmp_path, monkeypatch):
    config = replace(config, name="full", logs=str(tmp_path))
    real = hysac.training.loop.Checkpoint.save

    def save(self, path):
        if self.step == 12:
            monkeypatch.setattr("os.fsync", full)
        real(self, path)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hysac.training.loop.Checkpoint, "save", save)
    with pytest.raises(OSError, match=r"No space left on device.*step-00000012\.pt"):
        train(config)
    monkeypatch.undo()
    names = [path.name for path in (tmp_path / "full" / "checkpoints").iterdir()]
    assert max(names) == "step-00000009.pt"
    result = train(replace(config, resume="latest"))
    assert_same_course(result.run_dir, whole.run_dir)


@contextmanager
def two_ranks(config, name):
    """Both in training, far from done; they write one log."""
    config = replace(config, name=name, epochs=1000, dist_timeout=4.0, val_data=None)
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [start(config, environment={**common, "RANK": rank, "LOCAL_RANK": rank}) for rank in ("0", "1")]
    try:
        wait_for_step(ranks[0], Path(config.logs) / name, 4)
        yield ranks
    finally:
        for process in ranks:
            process.kill()
            process.wait()


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def test_a_process_that_stands_still_ends_the_job(config, tmp_path):
    """Stopped, not dead: nothing closes its connections."""
    with two_ranks(replace(config, logs=str(tmp_path)), "still") as ranks:
        ranks[1].send_signal(signal.SIGSTOP)
        began = time.monotonic()
        assert ranks[0].wait(timeout=60) == 2
        assert time.monotonic() - began < 30
    told = (tmp_path / "still.log").read_text()
    assert "hysac train: error: another process did not answer within --dist-timeout 4 s: " in told
    assert "Traceback" not in told


def test_a_process_that_dies_ends_the_job(config, tmp_path):
    with two_ranks(replace(config, logs=str(tmp_path)), "dies") as ranks:
        ranks[1].kill()
        assert ranks[0].wait(timeout=60) == 2
    told = (tmp_path / "dies.log").read_text()
    assert "hysac train: error: another process has ended; what it met is told there: " in told
    assert "Traceback" not in told


def test_what_the_main_process_cannot_write_ends_all(config, tmp_path):
    with two_ranks(replace(config, logs=str(tmp_path)), "unwritable") as ranks:
        checkpoints = tmp_path / "unwritable" / "checkpoints"
        checkpoints.rename(tmp_path / "away")
        checkpoints.touch()
        assert [process.wait(timeout=60) for process in ranks] == [2, 2]
    told = (tmp_path / "unwritable.log").read_text()
    assert "hysac train: error: [Errno " in told
    assert "hysac train (process 1): error: [Errno " in told
    assert "Traceback" not in told


class TestRefusals:
    def test_another_architecture(self, config, whole):
        with pytest.raises(CheckpointError, match=r"model was 'local-dir:.*' and is now 'hysac-toy'"):
            train(replace(config, model="hysac-toy", resume="latest"))

    def test_other_weights_under_the_same_name(self, config, whole, tmp_path):
        """The settings agree, the tensors do not."""
        first = checkpoint_paths(whole.run_dir / "checkpoints")[0]
        stored = Checkpoint.load(first)
        path = tmp_path / "run" / "checkpoints" / first.name
        replace(stored, model={**stored.model, "visual.proj": torch.zeros(3, 5)}).save(path)
        with pytest.raises(
            CheckpointError, match=r"visual\.proj has shape \(3, 5\), the model's has \(96, 96\)"
        ):
            train(replace(config, resume=str(path), name=None))

    def test_other_settings(self, config, whole):
        with pytest.raises(
            CheckpointError, match=r"batch_size was 2 and is now 4; lr was 0\.001 and is now 0\.01"
        ):
            train(replace(config, batch_size=4, lr=1e-2, resume="latest"))

    def test_other_data(self, config, whole, tmp_path):
        manifests = write_toy(tmp_path, train_size=32, val_size=6, progress=False)
        with pytest.raises(CheckpointError, match="training quadruplets was 36 and is now 32"):
            train(replace(config, train_data=str(manifests["train"]), resume="latest"))

    @pytest.mark.parametrize("change", ["order", "caption", "image"])
    def test_other_data_of_the_same_length(self, config, whole, tmp_path, change):
        shutil.copytree(Path(config.train_data).parent, tmp_path / "data")
        manifest = tmp_path / "data" / Path(config.train_data).name
        train(replace(config, train_data=str(manifest), resume="latest"))  # elsewhere, and the same
        rows = [json.loads(line) for line in manifest.read_text().splitlines()]
        if change == "order":
            rows[3], rows[4] = rows[4], rows[3]
        elif change == "caption":
            rows[3]["safe_caption"] += "!"
        else:
            image = manifest.parent / rows[3]["unsafe_image"]
            image.write_bytes((manifest.parent / rows[4]["unsafe_image"]).read_bytes() + b"\0")
        manifest.write_text("\n".join(map(json.dumps, rows)))
        with pytest.raises(CheckpointError, match=r"training data was '\w{16}' and is now '\w{16}'"):
            train(replace(config, train_data=str(manifest), resume="latest"))

    def test_a_checkpoint_of_another_run_under_the_name_of_this_one(self, config, whole, tmp_path):
        first = checkpoint_paths(whole.run_dir / "checkpoints")[0]
        other = tmp_path / "other" / "checkpoints" / first.name
        other.parent.mkdir(parents=True)
        shutil.copy(first, other)
        with pytest.raises(ValueError, match="holds a run already, with step-00000027"):
            train(replace(config, resume=str(other)))

    def test_a_truncated_checkpoint(self, config, whole, tmp_path):
        first = checkpoint_paths(whole.run_dir / "checkpoints")[0]
        path = tmp_path / "run" / "checkpoints" / first.name
        path.parent.mkdir(parents=True)
        path.write_bytes(first.read_bytes()[:-1000])
        with pytest.raises(CheckpointError, match="damaged, incomplete"):
            train(replace(config, resume=str(path), name="other"))
