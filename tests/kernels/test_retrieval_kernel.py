"""The kernels of the searches, over several ragged tiles and parts: what they find is what PyTorch finds.

``tests/hypkernels/test_retrieval.py`` compares that with all distances in float64.
"""

from __future__ import annotations

import math

import pytest
import torch
from kernel_lane import DEVICE, INTERPRETED
from row_kernel_cases import poisoned_memory

import hypkernels as hk
from hypkernels import retrieval
from hypkernels.retrieval import kernel, search
from hypkernels.retrieval.pairs import pair_z
from hypkernels.retrieval.problem import Block, Cones, Piece
from hypkernels.tritonlib.tile_plan import Plan, Tile

CURV = 0.7
Q, N, K = 45, 150, 6
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
TILE = Tile(32, 128, depth_bytes=64, warps=4, stages=1, pieces=2, group=2)


@pytest.fixture(autouse=True)
def _large_tiles(monkeypatch):
    """Still several programs: they are what the interpreter takes time for."""
    if INTERPRETED:
        plan = Plan(TILE, TILE, TILE, TILE, inline_ptx=False)
        monkeypatch.setattr(kernel, "default_plan", lambda points, similarity: plan)


def points(rows, width=12, *, size=0.4, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (size * torch.randn(rows, width, generator=generator, dtype=torch.float64)).to(dtype).to(DEVICE)


def searches(queries, gallery, k, **options):
    targets = torch.arange(len(queries), device=DEVICE) % len(gallery)
    limit = retrieval.topk(queries, gallery, k, CURV).distances[:, -1].median().item()
    return (
        *retrieval.topk(queries, gallery, k, CURV, **options),
        *retrieval.rank_counts(queries, gallery, targets, CURV, **options),
        *retrieval.range_search(queries, gallery, limit, CURV, **options),
    )


def assert_as_pytorch(queries, gallery, k=K, **options):
    with poisoned_memory(), hk.use_backend("triton"):
        found = searches(queries, gallery, k, **options)
    with hk.use_backend("torch"):
        wanted = searches(queries, gallery, k, **options)
    for one, other in zip(found, wanted, strict=True):
        assert one.equal(other)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(dtype):
    assert_as_pytorch(points(Q, dtype=dtype), points(N, dtype=dtype, seed=1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("query_dtype", DTYPES, ids=str)
def test_queries_and_gallery_of_different_types(query_dtype, dtype):
    assert_as_pytorch(points(3, dtype=query_dtype), points(40, dtype=dtype, seed=1))


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (33, 129, 65, 129), (2, 500, 3, 1), (70, 31, 16, 9)], ids=str
)
def test_ragged_shapes(shape):
    q, n, width, k = shape
    assert_as_pytorch(points(q, width), points(n, width, seed=1), k)


@pytest.mark.parametrize("several", [False, True])
def test_groups_and_allowed_items(several):
    allow = torch.rand(N, generator=torch.Generator().manual_seed(2)).to(DEVICE) > 0.4
    groups, of_queries = torch.arange(N, device=DEVICE) % 5, torch.arange(Q, device=DEVICE) % 7
    if several:
        of_queries = (of_queries[:, None] + torch.arange(5, device=DEVICE)) % 3 == 0
    assert_as_pytorch(points(Q), points(N, seed=1), allow=allow, groups=groups, query_groups=of_queries)


@pytest.mark.parametrize("cone", ["query", "item"])
@pytest.mark.parametrize(("min_radius", "aperture_scale"), [(0.15, 1.0), (0.2, 1.9)])
def test_cones(cone, min_radius, aperture_scale):
    queries = torch.cat([points(Q, 3), points(N, 3, seed=1)[:2], torch.zeros(1, 3, device=DEVICE)])
    gallery = torch.cat([points(N, 3, seed=1), queries[-3:]])
    options = {"cone": cone, "min_radius": min_radius, "aperture_scale": aperture_scale}
    with hk.use_backend("torch"):
        share = (retrieval.topk(queries, gallery, N, CURV, **options).indices >= 0).double().mean()
    assert 0.02 < share < 0.98
    assert_as_pytorch(queries, gallery, **options)


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e-8, 30.0, 1e12, 1e30])
def test_any_radius(size):
    queries = torch.cat([points(9, seed=2), size * points(20), torch.zeros(1, 12, device=DEVICE)])
    gallery = torch.cat([size * points(30, seed=1), points(9, seed=3), torch.zeros(2, 12, device=DEVICE)])
    assert_as_pytorch(queries, gallery)


def test_ties_and_neighbours_that_no_product_tells_apart():
    near = points(1, size=2, dtype=torch.float64) + 1e-9 * points(60, dtype=torch.float64, seed=1)
    gallery = torch.cat([near, near, points(30, dtype=torch.float64, seed=2)])
    assert_as_pytorch(near[:30], gallery, 20)


def test_pieces_and_parts_do_not_show(monkeypatch):
    queries, gallery = points(Q), points(N, seed=1)
    options = {"allow": torch.arange(N, device=DEVICE) % 3 > 0, "groups": torch.arange(N, device=DEVICE) % 2}
    options["query_groups"] = torch.arange(Q, device=DEVICE) % 2
    monkeypatch.setattr(kernel, "_BOUND_BYTES", 8 * Q * 6)
    monkeypatch.setattr(kernel, "_BUNDLES_A_NEIGHBOUR", 1)
    monkeypatch.setattr(retrieval.Gallery.pieces, "__defaults__", (4 * 12 * 110,))
    assert_as_pytorch(queries, gallery, **options)


def test_rows_that_are_no_points_are_named():
    gallery = points(N, seed=1)
    gallery[140, 3] = math.nan
    with (
        hk.use_backend("triton"),
        pytest.raises(search.NotFiniteError, match="gallery must be finite, row 140"),
    ):
        retrieval.topk(points(3), gallery, 2, CURV)


@pytest.mark.parametrize("width", [5, 200])
@pytest.mark.parametrize("size", [0.01, 1.0, 50.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bounds_hold_and_are_narrow(width, size, dtype):
    """Against exact pairs; with bundles of one, as wide as the rounding that they allow."""
    queries, gallery = (
        points(20, width, size=size, dtype=dtype),
        points(100, width, size=size, dtype=dtype, seed=1),
    )
    gallery[:20] = queries
    block = Block(queries, CURV, None, None)
    found = kernel.Nearest(block, 50)
    (part,) = found._parts(Piece(0, gallery, None, None))
    assert part.bundle == 1
    least, most = found.bounds(part)
    pairs = torch.cartesian_prod(torch.arange(20, device=DEVICE), torch.arange(100, device=DEVICE))
    z = pair_z(queries[pairs[:, 0]].double(), gallery[pairs[:, 1]].double(), found.c).view(20, 100)
    assert (least < z).all()
    assert (z < most).all()
    scale = (1 + found.x.P[:, None]) * (1 + part.y.P)
    assert ((most - least) / scale).max() < (width + 40) * 2.0**-20


@pytest.mark.parametrize("cone", [False, True])
def test_most_pairs_are_decided_by_their_bounds(cone, monkeypatch):
    """What is computed exactly is little more than what is found."""
    cones = Cones(True, 1.0, 0.3) if cone else None
    queries, gallery = points(20, 3), points(400, 3, seed=1)
    found = kernel.Nearest(Block(queries, CURV, cones, None), 1)
    computed = []
    exactly = found.exactly
    monkeypatch.setattr(
        found, "exactly", lambda query, *args: (computed.append(len(query)), exactly(query, *args))[1]
    )
    found.add(Piece(0, gallery, None, None))
    if cone:
        with hk.use_backend("torch"):
            inside = (
                retrieval.topk(queries, gallery, 400, CURV, cone="query", min_radius=0.3).indices >= 0
            ).sum()
        assert computed[0] < 20 * 400 / 2
        assert computed[0] < 8 * inside
    else:
        assert computed[0] <= 8 * 20 * 2
