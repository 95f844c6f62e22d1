"""A model sharded by FSDP2 computes and saves what one process does."""

import re
import warnings
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from test_model import images, make_model, spread_scalars, tokens
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor

import hysac
from hypkernels.objectives import meru_loss
from hysac.models.model import SCALARS
from hysac.training.optim import make_optimizer

pytestmark = pytest.mark.slow

BEFORE, AFTER = 2, 3  # processes that save, and that go on
BATCH = 6


def plain(*, lora=False, curv=0.4):
    model = spread_scalars(make_model(), curv=curv).double()
    return hysac.add_lora(model, r=2) if lora else model


def full(tensor):
    """A copy: what is replicated is whole already, and clipped in place later."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).clone()


def gradients(model, rank=0, size=1, **options):
    """Of this process's share of a batch, in two micro-batches that are no negatives of each other."""
    loss = hysac.HySACLoss(rank=rank, world_size=size, **options)
    for seed in (1, 2):
        batch = images(BATCH, 2, seed=seed), tokens(BATCH, 2, seed=seed)
        loss(**model(*(one.chunk(size)[rank] for one in batch))).backward()
    return {name: full(p.grad) for name, p in model.named_parameters() if p.grad is not None}


def of_methods(model):
    """What the other methods give, and the gradients through one of them."""
    with torch.no_grad():
        logits = model.get_logits(images(2), tokens(3))[0]
        inside = model.forward_intermediates(images(2).double(), normalize=True)["image_features"]
        image = model.encode_image(images(2), normalize=True)
    model.zero_grad()
    model.encode_text(tokens(3), normalize=True).square().sum().backward()
    grads = {name: full(p.grad) for name, p in model.named_parameters() if p.grad is not None}
    return {"logits": logits, "inside": inside, "image": image} | grads


def state_of(model, optimizer):
    """As the checkpoint has it, and whole."""
    model_state, optimizer_state = get_state_dict(model, optimizer)
    whole = {name: full(value) for name, value in model_state.items()}
    for name, moments in optimizer_state["state"].items():
        whole |= {f"{name}.{key}": full(value) for key, value in moments.items()}
    return {"model": model_state, "optimizer": optimizer_state}, whole


def before(rank, directory):
    model = hysac.fully_shard_model(plain())
    results = {
        "sharded": {
            name: type(p).__name__ == "DTensor" and p.placements[0].is_shard()
            for name, p in model.named_parameters()
        },
        "shapes": {name: tuple(value.shape) for name, value in model.state_dict().items()},
        "methods": of_methods(model),
    }
    model.zero_grad()
    results["gradients"] = gradients(model, rank, BEFORE, ring=True)
    optimizer = make_optimizer(model, lr=1e-2, weight_decay=0.1)
    results["norm"] = full(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
    optimizer.step()
    model.clamp_parameters_()
    state, results["state"] = state_of(model, optimizer)
    dcp.save(state, checkpoint_id=f"{directory}/checkpoint")
    gathered = {"local_loss": True, "gather_with_grad": True}
    results["adapters"] = gradients(hysac.fully_shard_model(plain(lora=True)), rank, BEFORE, **gathered)
    return results


def after(rank, directory):
    mesh = init_device_mesh("cpu", (AFTER,))
    model = hysac.fully_shard_model(plain(curv=0.7), mesh=mesh, is_block=lambda module: False)
    optimizer = loaded(model, directory)
    results = {"state": state_of(model, optimizer)[1]}
    optimizer.zero_grad()
    results["gradients"] = gradients(model, rank, AFTER, ring=True)
    copies = init_device_mesh("cpu", (AFTER, 1), mesh_dim_names=("copies", "shards"))
    results["copies"] = gradients(hysac.fully_shard_model(plain(), mesh=copies), rank, AFTER, ring=True)
    narrow = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    model = hysac.fully_shard_model(spread_scalars(make_model()), mp_policy=narrow)
    results["narrow"] = dict(model(images(2), tokens(2)), curvature=model.curvature)
    results["refused"] = refused(model)
    return results


def refused(model):
    said = []
    for call in (
        lambda: hysac.fully_shard_model(model),
        lambda: hysac.fully_shard_model(plain(), ignored_params=set()),
        lambda: hysac.fully_shard_model(torch.nn.Linear(2, 2)),
        lambda: hysac.save_pretrained(model, "nowhere"),
    ):
        try:
            call()
        except (TypeError, ValueError) as error:
            said.append(str(error))
    return said


def loaded(model, directory):
    """From the checkpoint, whatever the number of processes; the optimizer."""
    optimizer = make_optimizer(model, lr=1e-2, weight_decay=0.1)
    state, _ = state_of(model, optimizer)
    dcp.load(state, checkpoint_id=f"{directory}/checkpoint")
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    return optimizer


def worker(rank, directory):
    torch.set_num_threads(1)
    for size, part in ((BEFORE, before), (AFTER, after)):
        if rank < size:
            store = f"file://{directory}/store{size}"
            dist.init_process_group("gloo", store, rank=rank, world_size=size)
            torch.save(part(rank, directory), f"{directory}/{size}-{rank}.pt")
            dist.destroy_process_group()


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("sharded")
    get_context("forkserver").set_forkserver_preload(["torch", "hysac"])
    mp.start_processes(worker, (str(path),), nprocs=AFTER, start_method="forkserver")
    return path


@pytest.fixture(scope="module")
def results(directory):
    """By number of processes, of each process."""
    return {
        size: [torch.load(directory / f"{size}-{rank}.pt") for rank in range(size)]
        for size in (BEFORE, AFTER)
    }


def assert_all_close(got, wanted, rtol=1e-9):
    assert set(got) == set(wanted)
    for name, one in wanted.items():
        assert (got[name] - one).norm() <= rtol * one.norm(), name


def test_every_parameter_but_the_scalars_is_sharded_under_its_name(results):
    model = plain()
    for one in results[BEFORE]:
        assert one["sharded"] == {name: name not in SCALARS for name, _ in model.named_parameters()}
        assert one["shapes"] == {name: tuple(value.shape) for name, value in model.state_dict().items()}


def test_gradients_of_all_parameters_are_those_of_one_process(results):
    model = plain()
    wanted = gradients(model)
    assert set(wanted) == {name for name, _ in model.named_parameters()}
    assert all(wanted[name] != 0 for name in SCALARS)
    for one in results[BEFORE]:
        assert_all_close(one["gradients"], wanted)
    for one in results[AFTER]:
        assert_all_close(one["copies"], wanted)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    assert all(abs(one["norm"] - norm) < 1e-9 * norm for one in results[BEFORE])


def test_adapters_and_frozen_weights(results):
    wanted = gradients(plain(lora=True))
    assert set(SCALARS) < set(wanted)
    for one in results[BEFORE]:
        assert_all_close(one["adapters"], wanted)


def test_methods_gather_what_they_need(results):
    wanted = of_methods(plain())
    assert {"logits", "inside", "image", "textual_alpha", "curv"} < set(wanted)
    for one in results[BEFORE]:
        assert_all_close(one["methods"], wanted)


def test_narrow_towers_leave_scalars_and_points_in_float32(results):
    model = spread_scalars(make_model())
    wanted = dict(model(images(2), tokens(2)), curvature=model.curvature)
    for one in results[AFTER]:
        assert all(value.dtype == torch.float32 for value in one["narrow"].values())
        assert_all_close(one["narrow"], wanted, rtol=0.02)
        assert torch.equal(one["narrow"]["curvature"], wanted["curvature"])


def test_a_checkpoint_of_two_processes_is_the_same_bits_to_three_and_to_one(results, directory):
    saved = results[BEFORE][0]["state"]
    model = plain(curv=0.7)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*load in a single process")
        _, alone = state_of(model, loaded(model, directory))
    for got in (results[BEFORE][1]["state"], *(one["state"] for one in results[AFTER]), alone):
        assert set(got) == set(saved)
        assert all(torch.equal(got[name], value) for name, value in saved.items())
    assert torch.equal(model.curv, saved["curv"])
    wanted = gradients(model)
    for one in results[AFTER]:
        assert_all_close(one["gradients"], wanted)


def test_the_program_of_the_documentation_runs(tmp_path, monkeypatch):
    """By one process; those after the first are the tests above."""
    page = (Path(__file__).parents[2] / "docs/parallel.md").read_text()
    objective, program = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    leaves = [
        torch.randn(3, 4, dtype=torch.float64),
        torch.randn(3, 4, dtype=torch.float64),
        *torch.ones(2).double(),
    ]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    monkeypatch.chdir(tmp_path)
    dist.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        exec(
            compile(objective, "docs/parallel.md", "exec"),
            {"ddp_model": lambda *_: leaves, "images": 0, "captions": 0},
        )
        wanted = torch.autograd.grad(meru_loss(*leaves).loss, leaves)
        assert_all_close({name: leaf.grad for name, leaf in enumerate(leaves)}, dict(enumerate(wanted)))
        monkeypatch.setattr(dist, "init_process_group", lambda: None)
        names = {}
        exec(compile(program, "docs/parallel.md", "exec"), names)
        trained = {name: full(value) for name, value in names["model"].state_dict().items()}
    finally:
        dist.destroy_process_group()
    written = hysac.from_pretrained("model").state_dict()
    assert all(torch.equal(written[name], value) for name, value in trained.items())


def test_what_cannot_be_sharded_is_refused(results):
    for one in results[AFTER]:
        again, ignored, other, saved = one["refused"]
        assert "sharded already" in again
        assert "ignored_params" in ignored
        assert "must be a HySAC model, got Linear" in other
        assert "no process has all of it" in saved
    with pytest.raises(RuntimeError, match=r"needs torch\.distributed\.init_process_group"):
        hysac.fully_shard_model(plain())
