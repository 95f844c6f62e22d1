"""HySACLoss over two processes: the averaged gradients are those of one process with the whole batch."""

from datetime import timedelta
from multiprocessing import get_context
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from test_loss import TinyHySAC, dense_gradients, dense_terms, tiny_data
from test_model import images, make_model, tokens
from test_pair_loss import pair_data, whole_batch_gradients
from torch.nn.parallel import DistributedDataParallel

from hysac.models.distributed import _group_of_hosts, count_rows
from hysac.models.loss import HySACLoss
from hysac.models.pair_loss import LorentzClipLoss

pytestmark = pytest.mark.slow

WORLD_SIZE = 2
WAIT = timedelta(seconds=500)
MODES = {
    "no flags": {},
    "gather_with_grad": {"gather_with_grad": True},
    "local_loss and gather_with_grad": {"local_loss": True, "gather_with_grad": True},
    "ring": {"ring": True},
}
PARTS = (1, 2)
SHARES = [(4, 4), (5, 3), (1, 7), (0, 8), (8, 0)]


def averaged_gradients(rank, loss, parts, shares=(4, 4), data=None):
    """DDP's gradients of this rank's share of the batch, in open_clip's accumulation scheme if parts > 1."""
    model = DistributedDataParallel(TinyHySAC())
    data = tiny_data(batch=8) if data is None else data
    images, texts = (tensor.split(shares)[rank].chunk(parts) for tensor in data)
    with torch.no_grad():
        cached = [model(*part) for part in zip(images, texts, strict=True)]
    for part in range(parts):
        live = model(images[part], texts[part])
        whole = {
            key: torch.cat(
                [other[key] for other in cached[:part]] + [live[key]] + [o[key] for o in cached[part + 1 :]]
            )
            for key in ("image_features", "text_features")
        }
        terms = loss(**whole, logit_scale=live["logit_scale"], output_dict=True)
        sum(terms.values()).backward()
    gradients = {name: parameter.grad for name, parameter in model.module.named_parameters()}
    return gradients, {name: term.detach() for name, term in terms.items()}


CASES = [(parts, (4, 4)) for parts in PARTS] + [(1, shares) for shares in SHARES[1:]]


def gradients_of_towers(rank):
    """DDP's gradients of a small HySAC whose second process has no quadruplets."""
    model = DistributedDataParallel(make_model())
    mine = slice(0, 4 if rank == 0 else 0)
    loss = HySACLoss(rank=rank, world_size=WORLD_SIZE, local_loss=True, gather_with_grad=True)
    loss(**model(images(4, 2)[mine], tokens(4, 2)[mine])).backward()
    return {name: parameter.grad for name, parameter in model.module.named_parameters()}


def transformed(rank):
    """The gradient by ``torch.func``, less that by autograd, and what the other transforms raise."""
    loss = HySACLoss(rank=rank, world_size=WORLD_SIZE, gather_with_grad=True)
    image, text = torch.randn(2, 3, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(rank))

    def of_image(image):
        return loss(image, text, 5.0)

    plain = image.clone().requires_grad_()
    (first,) = torch.autograd.grad(of_image(plain), plain, create_graph=True)
    refused = {}
    for name, call in {
        "second derivative": lambda: torch.autograd.grad(first.sum(), plain),
        "forward-mode": lambda: torch.func.jvp(of_image, (image,), (image,)),
        "vmap": lambda: torch.func.vmap(of_image)(torch.stack([image, image])),
    }.items():
        try:
            refused[name] = f"gave {call()}"
        except NotImplementedError as error:
            refused[name] = str(error)
    return torch.func.grad(of_image)(image) - first.detach(), refused


def counted_beside_another_backend(rank):
    """The counts, and for how many seconds one waits for them, where the default group is none of the CPU."""
    with patch.object(dist, "get_backend_config", lambda group: "cuda:nccl"):
        counts = count_rows(torch.ones(3 - rank, 4))
        backend = _group_of_hosts()._get_backend(torch.device("cpu"))
    return counts, backend.options._timeout.total_seconds()


def worker(rank, directory):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{directory}/store", WAIT, rank=rank, world_size=WORLD_SIZE)
    results = {
        (mode, parts, shares): averaged_gradients(
            rank, HySACLoss(rank=rank, world_size=WORLD_SIZE, accum_freq=parts, **options), parts, shares
        )
        for mode, options in MODES.items()
        for parts, shares in CASES
    }
    results |= {
        ("pairs", mode, parts, shares): averaged_gradients(
            rank,
            LorentzClipLoss(rank=rank, world_size=WORLD_SIZE, accum_freq=parts, **options),
            parts,
            shares,
            pair_data(),
        )
        for mode, options in MODES.items()
        for parts, shares in CASES
    }
    results["towers"] = gradients_of_towers(rank)
    for wrong, change in {
        "width": lambda features: features[..., : 4 - rank],
        "dtype": lambda features: features.double() if rank else features,
        "number": lambda features: features[:0],
    }.items():
        features = change(torch.ones(3, 2, 4))
        try:
            HySACLoss(rank=rank, world_size=WORLD_SIZE)(features, features, 5.0)
        except ValueError as error:
            results["wrong " + wrong] = str(error)
    try:
        HySACLoss(rank=1 - rank, world_size=WORLD_SIZE)(*(torch.ones(3, 2, 4) for _ in "it"), 5.0)
    except RuntimeError as error:
        results["wrong rank"] = str(error)
    results["torch.func"] = transformed(rank)
    results["beside"] = counted_beside_another_backend(rank)
    torch.save(results, f"{directory}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    directory = tmp_path_factory.mktemp("distributed")
    get_context("forkserver").set_forkserver_preload(["torch", "hysac"])  # imports them once
    mp.start_processes(worker, (str(directory),), nprocs=WORLD_SIZE, start_method="forkserver")
    return [torch.load(directory / f"{rank}.pt", weights_only=True) for rank in range(WORLD_SIZE)]


@pytest.mark.parametrize(("parts", "shares"), CASES)
@pytest.mark.parametrize("mode", MODES)
def test_gradients_are_those_of_the_whole_batch(results, mode, parts, shares):
    wanted = dense_gradients(*tiny_data(batch=8))
    assert set(wanted) >= {"curv", "logit_scale", "visual_alpha", "textual_alpha", "visual", "textual"}
    for rank in range(WORLD_SIZE):
        gradients, _ = results[rank][mode, parts, shares]
        for name, gradient in wanted.items():
            assert (gradients[name] - gradient).norm() <= 1e-9 * gradient.norm(), (rank, name)


@pytest.mark.parametrize(("parts", "shares"), CASES)
@pytest.mark.parametrize("mode", MODES)
def test_gradients_of_pairs_are_those_of_the_whole_batch(results, mode, parts, shares):
    wanted = whole_batch_gradients(*pair_data())
    for rank in range(WORLD_SIZE):
        gradients, _ = results[rank]["pairs", mode, parts, shares]
        for name, gradient in wanted.items():
            assert (gradients[name] - gradient).norm() <= 1e-9 * gradient.norm(), (rank, name)


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("mode", MODES)
def test_the_mean_over_processes_is_the_loss_of_the_whole_batch(results, mode, shares):
    output = TinyHySAC()(*tiny_data(batch=8))
    wanted = dense_terms(output["image_features"], output["text_features"], output["logit_scale"])
    for name, term in wanted.items():
        got = torch.stack([results[rank][mode, 1, shares][1][name] for rank in range(WORLD_SIZE)])
        torch.testing.assert_close(got.mean(), term.detach(), rtol=1e-11, atol=0)
        own_rows_only = name.startswith("entailment") or "local_loss" in mode or mode == "ring"
        assert (got[0] == got[1]) == (not own_rows_only)


def test_towers_of_a_process_without_quadruplets_get_the_gradients(results):
    model = make_model()
    HySACLoss()(**model(images(4, 2), tokens(4, 2))).backward()
    for name, parameter in model.named_parameters():
        for one in results:
            got = one["towers"][name]
            assert (got - parameter.grad).norm() <= 1e-5 * parameter.grad.norm() + 1e-9, name


def test_processes_that_do_not_fit_are_told_so_on_each(results):
    for one in results:
        assert one["wrong width"].endswith("the same width, got [4, 3] by rank")
        assert one["wrong dtype"].endswith("the same dtype, got [torch.float32, torch.float64] by rank")
        assert "no quadruplets on any process" in one["wrong number"]


def test_a_group_made_for_counting_waits_as_long_as_the_default_one(results):
    assert [one["beside"] for one in results] == [([3, 2], WAIT.total_seconds())] * WORLD_SIZE


def test_a_loss_built_for_another_rank_is_refused(results):
    assert "built for rank 1 of 2, this process is rank 0 of 2" in results[0]["wrong rank"]


def test_transforms_are_right_or_refused_by_name(results):
    for one in results:
        difference, refused = one["torch.func"]
        assert difference.abs().max() == 0
        for name, message in refused.items():
            assert name in message
            assert "hysac.HySACLoss" in message or "hypkernels.contrastive_loss" in message
