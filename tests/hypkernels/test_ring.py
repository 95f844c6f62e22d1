"""The contrastive losses round a ring of processes: those of one process that holds all points."""

import re
from multiprocessing import get_context
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import hypkernels as hk
from hypkernels.contrastive import problem, strips

pytestmark = pytest.mark.slow

COUNTS = (4, 0, 6)
WORLD_SIZE, WIDTH = len(COUNTS), 5
PAIRINGS = [(0, 2), (1, 3), (0, 3), (1, 2)]  # HySAC's: two sets stay, two travel
BOTH_WAYS = [(0, 1), (1, 0), (2, 2)]  # every set stays, and every set travels
CASES = {
    "dist": ("dist", PAIRINGS, torch.float64),
    "angle": ("angle", PAIRINGS, torch.float64),
    "inner": ("inner", PAIRINGS, torch.float64),
    "both ways": ("sqdist", BOTH_WAYS, torch.float64),
    "float32": ("dist", PAIRINGS, torch.float32),
    "bfloat16": ("dist", PAIRINGS, torch.bfloat16),
}
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2.0**-8}


def point_sets(dtype=torch.float64, counts=COUNTS):
    """Four sets of all processes, one after the other."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(4, sum(counts), WIDTH, generator=generator, dtype=torch.float64)
    return [one.to(dtype).requires_grad_() for one in 0.7 * points]


def scalars():
    return [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (0.7, 3.0)]


def weights(rows, pairings):
    """Upstream gradients, all different, some of them 0: ``(pairings, rows)``."""
    return torch.arange(len(pairings) * rows, dtype=torch.float64).reshape(len(pairings), rows).sin().relu()


def with_gradients(losses, upstream, inputs):
    total = sum((upstream[n] * one).sum() for n, one in enumerate(losses))
    return torch.stack(list(losses)).detach(), list(
        torch.autograd.grad(total, inputs, materialize_grads=True)
    )


def whole(similarity, pairings, dtype, counts=COUNTS):
    """By one process, in float64: losses, then gradients by the points, the curvature and the scale."""
    sets, (c, s) = [one.detach().double().requires_grad_() for one in point_sets(dtype, counts)], scalars()
    losses = hk.contrastive_losses(sets, pairings, c, s, similarity=similarity, reduction="none")
    return with_gradients(losses, weights(sum(counts), pairings), [*sets, c, s])


def of_process(rank, similarity, pairings, dtype, counts=COUNTS, **options):
    sets = [one.detach().split(counts)[rank].clone().requires_grad_() for one in point_sets(dtype, counts)]
    c, s = scalars()
    losses = hk.ring_contrastive_losses(sets, pairings, c, s, similarity=similarity, **options)
    upstream = weights(sum(counts), pairings).split(counts, 1)[rank]
    return with_gradients(losses, upstream, [*sets, c, s])


class Watch:
    """The elements of every message that a process sends, and the logits that it computes."""

    def __init__(self):
        self.sent, self.logits = [], 0

    def __enter__(self):
        send, log_sums = dist.batch_isend_irecv, strips.log_sums_of_negatives

        def watched_send(operations):
            self.sent += [one.tensor.numel() for one in operations if one.op is dist.isend]
            return send(operations)

        def watched_log_sums(p, *options):
            self.logits += len(p.x.points) * len(p.y.points)
            return log_sums(p, *options)

        self._patches = [
            patch.object(dist, "batch_isend_irecv", watched_send),
            patch.object(strips, "log_sums_of_negatives", watched_log_sums),
        ]
        for one in self._patches:
            one.start()
        return self

    def __exit__(self, *_):
        for one in self._patches:
            one.stop()


def refused(rank):
    """What it says to what it cannot do, and to points that do not fit."""
    sets = [one.detach().split(2)[rank] for one in point_sets(counts=(2,) * WORLD_SIZE)]
    counts = [2] * WORLD_SIZE

    def of_first(x):
        return hk.ring_contrastive_losses([x, *sets[1:]], PAIRINGS, counts=counts)[0].sum()

    def second():
        x = sets[0].clone().requires_grad_()
        (first,) = torch.autograd.grad(of_first(x), x, create_graph=True)
        torch.autograd.grad(first.sum(), x)

    def by_definition():
        with hk.use_backend("reference"):
            of_first(sets[0])

    calls = {
        "second derivative": second,
        "forward-mode derivative": lambda: torch.func.jvp(of_first, (sets[0],), (sets[0],)),
        "rule for torch.func.vmap": lambda: torch.func.vmap(of_first)(torch.stack([sets[0]] * 2)),
        "reference implementation": by_definition,
        "same width on all processes, got [5, 4, 3] by rank": lambda: hk.ring_contrastive_losses(
            [one[:, rank:] for one in sets], PAIRINGS
        ),
        "counts must be the number of rows": lambda: hk.ring_contrastive_losses(
            sets, PAIRINGS, counts=[2, 2]
        ),
    }
    said = {}
    for name, call in calls.items():
        try:
            said[name] = f"gave {call()}"
        except (NotImplementedError, ValueError) as error:
            said[name] = str(error)
    return said


def of_two(rank, group):
    """In a group of the last two processes, whose ranks are others there."""
    counts = (3, 2)
    return of_process(rank - 1, "dist", PAIRINGS, torch.float64, counts, group=group) if rank else None


def worker(rank, directory):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{directory}/store", rank=rank, world_size=WORLD_SIZE)
    results = {name: of_process(rank, *case) for name, case in CASES.items()}
    with Watch() as watch:
        results["again"] = of_process(rank, *CASES["dist"], counts=COUNTS)
    results["sent"], results["logits"] = watch.sent, watch.logits
    results["of two"] = of_two(rank, dist.new_group([1, 2]))
    results["refused"] = refused(rank)
    torch.save(results, f"{directory}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    directory = tmp_path_factory.mktemp("ring")
    get_context("forkserver").set_forkserver_preload(["torch", "hypkernels.contrastive.ring"])
    mp.start_processes(worker, (str(directory),), nprocs=WORLD_SIZE, start_method="forkserver")
    return [torch.load(directory / f"{rank}.pt") for rank in range(WORLD_SIZE)]


def assert_whole(parts, wanted, counts, rtol):
    losses, (*by_points, by_curv, by_scale) = wanted
    assert all(one.norm() > 1e-3 for one in [losses, by_curv, by_scale])
    got = torch.cat([one for one, _ in parts], 1)
    torch.testing.assert_close(got.double(), losses, rtol=rtol, atol=rtol)
    for k, gradient in enumerate(by_points):
        got = torch.cat([one[k] for _, one in parts]).double()
        assert got.shape == (sum(counts), WIDTH)
        assert (got - gradient).norm() <= rtol * gradient.norm(), k
    for place, gradient in ((-2, by_curv), (-1, by_scale)):
        shares = torch.stack([one[place] for _, one in parts])
        assert abs(shares.sum() - gradient) <= max(rtol, 1e-12) * gradient.abs() * 10


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_are_those_of_one_process(results, name):
    case = CASES[name]
    assert_whole([one[name] for one in results], whole(*case), COUNTS, TOLERANCES[case[-1]])


def test_a_part_of_the_processes_is_a_ring_too(results):
    wanted = whole("dist", PAIRINGS, torch.float64, (3, 2))
    assert_whole([one["of two"] for one in results[1:]], wanted, (3, 2), 1e-12)


def test_the_same_bits_again(results):
    for one in results:
        (losses, gradients), (again, gradients_again) = one["dist"], one["again"]
        assert torch.equal(losses, again)
        assert all(map(torch.equal, gradients, gradients_again))


def test_each_logit_is_computed_once(results):
    assert sum(one["logits"] for one in results) == len(PAIRINGS) * sum(COUNTS) ** 2


def test_what_is_sent(results):
    """Points and, in the backward pass, their gradients; a number a column and pairing, in the latter two."""
    n, sets, pairings = WORLD_SIZE, 2, len(PAIRINGS)
    for rank, one in enumerate(results):
        visits = [COUNTS[(rank - stop) % n] for stop in range(n)]
        points = [sets * rows * WIDTH for rows in visits]
        forward = points[:-1] + [pairings * rows for rows in visits]
        backward = points[:-1] + [2 * pairings * rows for rows in visits[:-1]] + points
        assert sorted(one["sent"]) == sorted(size for size in forward + backward if size)


def test_what_it_cannot_do_it_says(results):
    for one in results:
        for name, message in one["refused"].items():
            assert name in message


def test_blocks_add_up_to_the_whole_problem():
    """The sums over the negatives of two blocks, of which one has positives."""
    x, y = (one.detach() for one in point_sets()[:2])
    c, scale = torch.tensor(0.7, dtype=torch.float64), torch.full((), 3.0, dtype=torch.float64)

    def of(rows, columns, targets):
        points = [x[rows], y[columns]]
        embeddings = problem.Embeddings(points, c, strips.summaries(points))
        return problem.Problem(*embeddings.sides(0, 1), c, scale.expand(len(points[0])), targets, None)

    everything, half = slice(None), slice(0, 5)
    by_row, _ = strips.log_sums_of_negatives(of(half, everything, None), "dist", True)
    no_target = torch.full((5,), -1)
    parts = [
        strips.log_sums_of_negatives(of(half, columns, targets), "dist", True)[0]
        for columns, targets in ((half, None), (slice(5, None), no_target))
    ]
    torch.testing.assert_close(torch.logaddexp(*parts), by_row, rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({}, RuntimeError, "needs torch.distributed.init_process_group()"),
        (
            {"points": [torch.ones(2, 3), torch.ones(3, 3)]},
            ValueError,
            "the same number of rows .* got [2, 3]",
        ),
        ({"similarity": "cosine"}, ValueError, "similarity"),
        ({"pairings": [(0, 2)]}, ValueError, "pairings must be pairs of indices of the 2 point sets"),
    ],
)
def test_bad_arguments(change, error, message):
    arguments = {"points": [torch.ones(2, 3), torch.ones(2, 3)], "pairings": [(0, 1)]} | change
    with pytest.raises(error, match=message.replace("[2, 3]", re.escape("[2, 3]"))):
        hk.ring_contrastive_losses(**arguments)


def test_no_pairings_are_no_losses():
    assert hk.ring_contrastive_losses([torch.ones(2, 3)], []) == []
