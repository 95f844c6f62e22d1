"""Searches of galleries against all distances in float64, made of single pairs and sorted."""

import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_rows import ISAS, needs_library

import hypkernels as hk
from hypkernels import retrieval
from hypkernels.cpu import library
from hypkernels.retrieval import search
from hypkernels.retrieval.restrictions import Restrictions

CURV = 0.7
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
BACKENDS = ("torch", *(["native"] if ISAS else []))
# So many queries are multiplied as bytes, where the machine does that.
MANY = 70


@pytest.fixture(params=BACKENDS)
def backend(request):
    with hk.use_backend(request.param):
        yield request.param


@pytest.fixture(params=ISAS)
def isa(request):
    yield library.use_isa(request.param)
    library.use_isa(None)


def points(rows, width, *, radii=(0.3, 1.2), dtype=torch.float32, seed=0, curv=CURV):
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    low, high = radii
    lengths = low + (high - low) * torch.rand(rows, 1, generator=generator, dtype=torch.float64)
    k = math.sqrt(curv)
    return (torch.sinh(k * lengths) / k * directions / directions.norm(dim=1, keepdim=True)).to(dtype)


def all_pairs(function, queries, gallery, *args):
    """Of a function of rows, float64."""
    shape = (len(queries), len(gallery), -1)
    with hk.use_backend("torch"):
        return function(queries.double()[:, None].expand(shape), gallery.double()[None].expand(shape), *args)


def distances(queries, gallery, curv=CURV):
    return all_pairs(hk.elementwise_dist, queries, gallery, curv)


def nearest(queries, gallery, k, curv=CURV, allowed=None):
    d = distances(queries, gallery, curv)
    if allowed is not None:
        d = d.masked_fill(~allowed, math.inf)
    d, indices = d.sort(dim=1, stable=True)
    return d[:, :k], indices.masked_fill(d == math.inf, -1)[:, :k]


def assert_nearest(found, wanted, tolerance=1e-6):
    assert found.indices.equal(wanted[1])
    assert found.indices.dtype == torch.int64
    torch.testing.assert_close(found.distances.double(), wanted[0], rtol=tolerance, atol=0)


# ---------------------------------------------------------------- topk


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (7, 300, 33, 5), (MANY, 517, 64, 10), (130, 259, 100, 1)], ids=str
)
def test_nearest_neighbours(backend, dtype, shape):
    q, n, width, k = shape
    queries, gallery = points(q, width, dtype=dtype), points(n, width, dtype=dtype, seed=1)
    found = retrieval.topk(queries, gallery, k, CURV)
    assert found.distances.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_nearest(found, nearest(queries, gallery, k), 1e-13 if dtype == torch.float64 else 1e-6)


@pytest.mark.parametrize("radii", [(0.5, 6.0), (1e-9, 1e-8), (15.0, 17.0), (0.0, 40.0)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_any_radius(backend, radii, dtype):
    queries, gallery = (points(n, 16, radii=radii, dtype=dtype, seed=n) for n in (MANY, 400))
    assert_nearest(retrieval.topk(queries, gallery, 9, CURV), nearest(queries, gallery, 9))


def test_every_instruction_set_finds_the_same(isa):
    queries, gallery = points(MANY, 48), points(600, 48, seed=1)
    assert_nearest(retrieval.topk(queries, gallery, 10, CURV), nearest(queries, gallery, 10))


@needs_library
def test_bytes_do_not_show(monkeypatch):
    """A block of a few queries is not multiplied as bytes; what it finds is the same."""
    queries, gallery = points(2 * MANY, 48, radii=(0.3, 2)), points(3000, 48, radii=(0.3, 2), seed=1)
    whole = retrieval.topk(queries, gallery, 10, CURV)
    monkeypatch.setattr(search, "_BLOCK_BYTES", 8 * 48 * 20)
    assert_same(retrieval.topk(queries, gallery, 10, CURV), whole)


def assert_same(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        assert one.equal(other)


@pytest.mark.parametrize("query_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_queries_and_gallery_of_different_types(backend, query_dtype, dtype):
    queries, gallery = points(MANY, 24, dtype=query_dtype), points(300, 24, dtype=dtype, seed=1)
    found = retrieval.topk(queries, gallery, 6, CURV)
    assert found.distances.dtype == (
        torch.float64 if torch.float64 in (query_dtype, dtype) else torch.float32
    )
    assert_nearest(found, nearest(queries, gallery, 6))


def test_all_items_in_order(backend):
    queries, gallery = points(5, 8), points(300, 8, seed=1)
    assert_nearest(retrieval.topk(queries, gallery, 300, CURV), nearest(queries, gallery, 300))


def test_ties_are_in_the_order_of_the_gallery(backend):
    gallery = points(5, 8)[torch.arange(400) % 5]
    queries = points(MANY, 8, seed=1)
    found = retrieval.topk(queries, gallery, 100, CURV)
    assert_nearest(found, nearest(queries, gallery, 100))
    assert (found.indices[:, 1:80] - found.indices[:, :79] == 5).all()


def test_identical_points_are_at_distance_0(backend):
    gallery = points(300, 8, radii=(0.5, 6))
    found = retrieval.topk(gallery[:MANY], gallery, 1, CURV)
    assert found.indices[:, 0].equal(torch.arange(MANY))
    assert (found.distances == 0).all()


def test_neighbours_that_no_product_can_tell_apart(backend):
    centre = points(1, 64, radii=(3, 3), dtype=torch.float64)
    generator = torch.Generator().manual_seed(5)
    gallery = centre + 1e-9 * torch.randn(300, 64, generator=generator, dtype=torch.float64)
    queries = centre + 1e-9 * torch.randn(MANY, 64, generator=generator, dtype=torch.float64)
    assert_nearest(retrieval.topk(queries, gallery, 5, CURV), nearest(queries, gallery, 5), 1e-9)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e12, 1e30])
def test_points_beyond_the_range_of_products(backend, scale):
    gallery = torch.cat([points(40, 4) * scale, points(40, 4, seed=1), torch.zeros(2, 4)])
    queries = torch.cat([points(60, 4, seed=2), scale * points(10, 4, seed=3), torch.zeros(1, 4)])
    found = retrieval.topk(queries, gallery, 20, CURV)
    wanted = nearest(queries, gallery, 82)[0][:, :20]
    torch.testing.assert_close(found.distances.double(), wanted, rtol=1e-6, atol=0)
    assert found.indices.equal(nearest(queries, gallery, 20)[1])


@given(st.integers(0, 2**20), st.integers(1, 90), st.integers(1, 700), st.integers(1, 40), st.floats(-3, 2))
@settings(max_examples=40, deadline=None)
def test_properties(seed, q, n, width, exponent):
    """Whatever the shape, spread and duplicates: the same, also in pieces and with every implementation."""
    generator = torch.Generator().manual_seed(seed)
    gallery = 10**exponent * torch.randn(n, width, generator=generator)
    gallery[torch.randint(n, (n // 3,), generator=generator)] = gallery[0].clone()
    queries = 10**exponent * torch.randn(q, width, generator=generator)
    k = int(torch.randint(1, n + 1, (), generator=generator))
    wanted = nearest(queries, gallery, k)
    for name in BACKENDS:
        with hk.use_backend(name):
            found = retrieval.topk(queries, gallery, k, CURV)
            torch.testing.assert_close(found.distances.double(), wanted[0], rtol=1e-6, atol=1e-30)
            # Distances that differ in the last bits of float64 alone may change places.
            apart = found.indices != wanted[1]
            assert apart.double().mean() < 0.01


@pytest.mark.parametrize("curv", [1e-3, 20.0, torch.tensor(0.5)], ids=str)
def test_curvatures(backend, curv):
    c = float(curv)
    queries, gallery = points(MANY, 12, curv=c), points(300, 12, seed=1, curv=c)
    assert_nearest(retrieval.topk(queries, gallery, 5, curv), nearest(queries, gallery, 5, c))


@pytest.mark.parametrize("curv", [1e-60, 1e60])
def test_points_of_ordinary_distances_at_extreme_curvatures(backend, curv):
    """``sqrt(c)|x|`` is in the range of products, ``c|x|`` or ``|y|`` is not."""
    queries, gallery = (points(*shape, curv=1) / curv**0.5 for shape in ((MANY, 12), (300, 12)))
    wanted = all_pairs(hk.elementwise_dist, queries, gallery, curv).topk(5, largest=False)
    found = retrieval.topk(queries, gallery, 5, curv)
    torch.testing.assert_close(found.distances.double(), wanted.values, rtol=1e-6, atol=0)
    assert (found.indices == wanted.indices).double().mean() > 0.99


def test_layouts_do_not_show(backend):
    queries, gallery = points(MANY, 32), points(300, 32, seed=1)
    wanted = retrieval.topk(queries, gallery, 5, CURV)
    wide = torch.full((300, 40), 7.0)
    wide[:, 3:35] = gallery
    assert_same(retrieval.topk(queries, wide[:, 3:35], 5, CURV), wanted)
    assert_same(retrieval.topk(queries.T.contiguous().T, gallery.T.contiguous().T, 5, CURV), wanted)
    apart = torch.stack([gallery, gallery + 1], 1)[:, 0]
    assert_same(retrieval.topk(queries, apart, 5, CURV), wanted)
    one = gallery[:1].expand(50, 32)
    assert retrieval.topk(queries, one, 50, CURV).indices.equal(torch.arange(50).expand(MANY, 50))


def test_no_queries(backend):
    queries, gallery = torch.empty(0, 8), points(20, 8)
    assert retrieval.topk(queries, gallery, 3).distances.shape == (0, 3)
    assert retrieval.positive_rank(queries, gallery, torch.empty(0, dtype=torch.int64)).shape == (0,)
    limits, found, ids = retrieval.range_search(queries, gallery, 1.0)
    assert limits.tolist() == [0]
    assert found.numel() == ids.numel() == 0


def test_results_have_no_gradients(backend):
    queries, gallery = points(3, 4).requires_grad_(), points(9, 4, seed=1).requires_grad_()
    curv = torch.tensor(1.0, requires_grad=True)
    assert not retrieval.topk(queries, gallery, 2, curv).distances.requires_grad


def test_pieces_and_blocks_do_not_show(backend, monkeypatch):
    queries, gallery = points(MANY, 8), points(900, 8, seed=1)
    targets = torch.arange(MANY) * 3

    def everything():
        return (
            *retrieval.topk(queries, gallery, 7, CURV),
            *retrieval.rank_counts(queries, gallery, targets, CURV),
            *retrieval.range_search(queries, gallery, 0.9, CURV),
        )

    whole = everything()
    monkeypatch.setattr(search, "_BLOCK_BYTES", 8 * 14 * 16)
    monkeypatch.setattr(search, "PIECE_BYTES", 8 * 8 * 10)
    monkeypatch.setattr(retrieval.Gallery.pieces, "__defaults__", (4 * 8 * 100,))
    assert_same(everything(), whole)


@needs_library
def test_threads_do_not_show():
    queries, gallery = points(300, 32, radii=(0.3, 3)), points(5000, 32, radii=(0.3, 3), seed=1)
    gallery[1000:1100] = gallery[:100]
    targets = torch.arange(300)
    threads = torch.get_num_threads()
    found = []
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            found.append(
                (
                    *retrieval.topk(queries, gallery, 30, CURV),
                    *retrieval.rank_counts(queries, gallery, targets, CURV),
                    *retrieval.range_search(queries, gallery, 1.0, CURV),
                )
            )
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert_same(other, found[0])


# ---------------------------------------------------------------- restrictions


def test_allowed_and_denied_items(backend):
    queries, gallery = points(MANY, 8), points(400, 8, seed=1)
    generator = torch.Generator().manual_seed(3)
    allow, deny = (
        torch.randperm(400, generator=generator)[:150],
        torch.randperm(400, generator=generator)[:200],
    )
    of_allow = torch.zeros(400, dtype=torch.bool).index_fill_(0, allow, True)
    of_deny = torch.zeros(400, dtype=torch.bool).index_fill_(0, deny, True)
    for options, mask in (
        ({"allow": allow}, of_allow),
        ({"deny": of_deny}, ~of_deny),
        ({"allow": of_allow, "deny": deny}, of_allow & ~of_deny),
    ):
        wanted = nearest(queries, gallery, 12, allowed=mask)
        assert_nearest(retrieval.topk(queries, gallery, 12, CURV, **options), wanted)


def test_fewer_items_than_asked_for(backend):
    queries, gallery = points(MANY, 8), points(400, 8, seed=1)
    found = retrieval.topk(queries, gallery, 5, CURV, allow=torch.tensor([7, 300, 7]))
    assert (found.indices[:, 2:] == -1).all()
    assert (found.distances[:, 2:] == math.inf).all()
    assert found.indices[:, :2].sort(1).values.equal(torch.tensor([[7, 300]]).expand(MANY, 2))
    nothing = retrieval.topk(queries, gallery, 2, CURV, deny=torch.arange(400))
    assert (nothing.indices == -1).all()


@pytest.mark.parametrize("several", [False, True])
def test_groups(backend, several):
    queries, gallery = points(MANY, 8), points(400, 8, seed=1)
    groups = torch.arange(400) % 7
    if several:
        of_queries = torch.arange(MANY * 7).view(MANY, 7) % 3 == 0
        allowed = of_queries[:, groups]
    else:
        of_queries = torch.arange(MANY) % 9  # two of them have no items
        allowed = of_queries[:, None] == groups
    options = {"groups": groups, "query_groups": of_queries}
    found = retrieval.topk(queries, gallery, 12, CURV, **options)
    assert_nearest(found, nearest(queries, gallery, 12, allowed=allowed))
    d, targets = distances(queries, gallery), torch.arange(MANY)
    counts = retrieval.rank_counts(queries, gallery, targets, CURV, **options)
    assert counts.nearer.equal(((d < d.gather(1, targets[:, None])) & allowed).sum(1))


@pytest.mark.parametrize(("min_radius", "aperture_scale"), [(0.1, 1.0), (0.3, 1.0), (0.2, 1.7), (0.2, 0.5)])
@pytest.mark.parametrize("cone", ["query", "item"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_cones(backend, cone, min_radius, aperture_scale, dtype):
    queries = torch.cat([points(MANY, 3, dtype=dtype), torch.zeros(1, 3, dtype=dtype)])
    gallery = torch.cat([points(400, 3, seed=1, radii=(0.2, 2)).to(dtype), queries[:5], queries[-1:]])
    apex, point = (queries, gallery) if cone == "query" else (gallery, queries)
    angle, aperture = (
        all_pairs(hk.oxy_angle, apex, point, CURV),
        hk.half_aperture(apex.double(), CURV, min_radius),
    )
    inside = angle <= aperture_scale * aperture[:, None]
    inside = inside if cone == "query" else inside.T
    assert 0.003 < inside.double().mean() < 0.99
    options = {"cone": cone, "min_radius": min_radius, "aperture_scale": aperture_scale}
    assert_nearest(
        retrieval.topk(queries, gallery, 15, CURV, **options), nearest(queries, gallery, 15, allowed=inside)
    )
    d, targets = distances(queries, gallery), torch.arange(len(queries))
    counts = retrieval.rank_counts(queries, gallery, targets, CURV, **options)
    assert counts.nearer.equal(((d < d.gather(1, targets[:, None])) & inside).sum(1))
    limits = retrieval.range_search(queries, gallery, 1.0, CURV, **options).limits
    assert limits.diff().equal(((d <= 1.0) & inside).sum(1))


def test_a_point_is_in_its_own_cone_and_all_are_in_that_of_the_origin(backend):
    gallery = points(50, 4)
    for cone in ("query", "item"):
        found = retrieval.topk(gallery, gallery, 1, CURV, cone=cone)
        assert found.indices[:, 0].equal(torch.arange(50))
    origin = torch.zeros(1, 4)
    assert_nearest(retrieval.topk(origin, gallery, 50, CURV, cone="query"), nearest(origin, gallery, 50))


def test_the_largest_radius_makes_every_cone_a_half_space(backend):
    """Twice the largest number is infinite."""
    queries, gallery = points(MANY, 4), points(60, 4, seed=1)
    for cone in ("query", "item"):
        widest, wide = (
            retrieval.topk(queries, gallery, 60, CURV, cone=cone, min_radius=min_radius)
            for min_radius in (sys.float_info.max, 1e9)
        )
        assert 0 < (widest.indices >= 0).double().mean() < 1
        assert_same(widest, wide)


def test_the_boundary_of_a_cone(backend):
    """Items a little within and a little beyond it, at the same distance."""
    apex = torch.tensor([[0.8, 0.0]], dtype=torch.float64)
    aperture = hk.half_aperture(apex, CURV, 0.2).item()
    angles = torch.tensor(
        [aperture - 1e-9, aperture + 1e-9, -aperture + 1e-9, -aperture - 1e-9], dtype=torch.float64
    )
    directions = torch.stack([torch.cos(angles) * math.sqrt(1 + CURV * 0.64), torch.sin(angles)], 1)
    items = hk.exp_map(apex.expand(4, 2), directions, CURV)
    found = retrieval.topk(apex, items, 4, CURV, cone="query", min_radius=0.2)
    assert sorted(found.indices[0].tolist()) == [-1, -1, 0, 2]


# ---------------------------------------------------------------- ranks, ranges, re-ranking


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ranks(backend, dtype):
    queries, gallery = points(MANY, 16, dtype=dtype), points(500, 16, dtype=dtype, seed=1)
    gallery[200:250] = gallery[:50]
    targets = torch.arange(MANY) * 7 % 500
    d = distances(queries, gallery)
    limit = d.gather(1, targets[:, None])
    tied = (d == limit) & (torch.arange(500) != targets[:, None])
    counts = retrieval.rank_counts(queries, gallery, targets, CURV)
    assert counts.nearer.equal((d < limit).sum(1))
    assert counts.tied.equal(tied.sum(1))
    assert counts.tied_before.equal((tied & (torch.arange(500) < targets[:, None])).sum(1))
    assert counts.tied.sum() > 0
    rank = retrieval.positive_rank(queries, gallery, targets, CURV)
    everything = retrieval.topk(queries, gallery, 500, CURV).indices
    assert rank.dtype == torch.int64
    assert everything.gather(1, rank[:, None])[:, 0].equal(targets)


def test_ranks_where_everything_ties(backend):
    gallery = points(1, 8).expand(100, 8)
    targets = torch.arange(100)
    counts = retrieval.rank_counts(gallery, gallery, targets, CURV)
    assert (counts.nearer == 0).all()
    assert (counts.tied == 99).all()
    assert retrieval.positive_rank(gallery, gallery, targets, CURV).equal(targets)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ranges(backend, dtype):
    queries, gallery = points(MANY, 6, dtype=dtype), points(500, 6, dtype=dtype, seed=1)
    radius = 0.8
    d = distances(queries, gallery)
    limits, found, ids = retrieval.range_search(queries, gallery, radius, CURV)
    assert limits.diff().equal((d <= radius).sum(1))
    for row in range(MANY):
        part = slice(limits[row], limits[row + 1])
        wanted, indices = d[row].sort(stable=True)
        torch.testing.assert_close(found[part].double(), wanted[wanted <= radius], rtol=1e-6, atol=0)
        assert ids[part].equal(indices[wanted <= radius])


def test_a_range_that_holds_everything_or_nothing(backend):
    queries, gallery = points(MANY, 6), points(1200, 6, seed=1)
    assert retrieval.range_search(queries, gallery, 1e6, CURV).limits[-1] == MANY * 1200
    assert retrieval.range_search(queries, gallery, 1e-9, CURV).limits[-1] == 0
    assert retrieval.range_search(gallery[:4], gallery, 0, CURV).indices.equal(torch.arange(4))


def test_reranking(backend):
    queries, gallery = points(MANY, 8), points(400, 8, seed=1)
    candidates = torch.randint(-1, 400, (MANY, 40), generator=torch.Generator().manual_seed(2))
    candidates[0] = 5
    allowed = torch.zeros(MANY, 401, dtype=torch.bool).scatter_(1, candidates % 401, True)[:, :400]
    wanted = nearest(queries, gallery, 12, allowed=allowed)
    assert_nearest(retrieval.rerank(queries, gallery, candidates, 12, CURV), wanted)


def test_the_definition_agrees():
    queries, gallery = points(20, 8, dtype=torch.float64), points(100, 8, dtype=torch.float64, seed=1)
    targets = torch.arange(20)
    with hk.use_backend("reference"):
        assert_nearest(retrieval.topk(queries, gallery, 7, CURV), nearest(queries, gallery, 7), 1e-9)
        ranks = retrieval.positive_rank(queries, gallery, targets, CURV)
        limits = retrieval.range_search(queries, gallery, 0.9, CURV).limits
        in_cone = retrieval.topk(queries, gallery, 7, CURV, cone="query", min_radius=0.3).indices
    assert ranks.equal(retrieval.positive_rank(queries, gallery, targets, CURV))
    assert limits.equal(retrieval.range_search(queries, gallery, 0.9, CURV).limits)
    assert in_cone.equal(retrieval.topk(queries, gallery, 7, CURV, cone="query", min_radius=0.3).indices)


# ---------------------------------------------------------------- errors


def test_errors_name_the_argument():
    queries, gallery = points(4, 8), points(20, 8, seed=1)
    for arguments, error, message in (
        ((queries[0], gallery, 1), ValueError, r"queries must have shape \(Q, D\)"),
        ((queries, gallery[:, :7], 1), ValueError, "queries and gallery must have the same width"),
        ((queries, gallery[:0], 1), ValueError, "gallery must have shape"),
        ((queries, gallery[0], 1), ValueError, "gallery must have shape"),
        ((queries, gallery.long(), 1), TypeError, "gallery must be float64"),
        ((queries, [1.0], 1), TypeError, "gallery must be a tensor"),
        ((queries, gallery, 21), ValueError, "k must be from 1 to the gallery's 20 items, got 21"),
        ((queries, gallery, 0), ValueError, "k must be from 1"),
        ((queries, gallery, 1.0), TypeError, "k must be an integer"),
        ((queries, gallery, 1, -1.0), ValueError, "curv must be positive"),
    ):
        with pytest.raises(error, match=message):
            retrieval.topk(*arguments)
    for options, error, message in (
        ({"cone": "both"}, ValueError, "cone must be one of"),
        ({"min_radius": 0.0}, ValueError, "min_radius must be positive"),
        ({"allow": torch.tensor([20])}, ValueError, r"allow must be in \[0, 20\)"),
        ({"allow": torch.ones(3, dtype=torch.bool)}, ValueError, "allow must be indices"),
        ({"deny": torch.ones(3)}, TypeError, "deny must be a tensor of indices"),
        ({"groups": torch.zeros(20, dtype=torch.int64)}, ValueError, "must come together"),
        (
            {"groups": torch.zeros(19, dtype=torch.int64), "query_groups": torch.zeros(4, dtype=torch.int64)},
            ValueError,
            r"groups must have shape \(20,\)",
        ),
        (
            {"groups": torch.arange(20), "query_groups": torch.ones(4, 3, dtype=torch.bool)},
            ValueError,
            r"groups must be in \[0, 3\)",
        ),
        (
            {"groups": torch.arange(20), "query_groups": torch.zeros(3, dtype=torch.int64)},
            ValueError,
            r"query_groups must have shape \(4,\)",
        ),
    ):
        with pytest.raises(error, match=message):
            retrieval.topk(queries, gallery, 1, **options)
    with pytest.raises(ValueError, match=r"targets must be in \[0, 20\)"):
        retrieval.positive_rank(queries, gallery, torch.full((4,), 20))
    with pytest.raises(ValueError, match="targets must have shape"):
        retrieval.positive_rank(queries, gallery, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="radius must not be negative"):
        retrieval.range_search(queries, gallery, -1.0)
    with pytest.raises(ValueError, match=r"candidates must be in \[-1, 20\)"):
        retrieval.rerank(queries, gallery, torch.full((4, 2), 20), 1)
    with hk.use_backend("triton"), pytest.raises(RuntimeError, match="cannot run with backend 'triton'"):
        retrieval.topk(queries, gallery, 1)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_that_are_not_finite_are_named(backend, value, dtype):
    queries, gallery = points(MANY, 8, dtype=dtype), points(2000, 8, dtype=dtype, seed=1)
    bad_query = queries.clone()
    bad_query[3, 1] = value
    with pytest.raises(ValueError, match="queries must be finite, row 3 is not"):
        retrieval.topk(bad_query, gallery, 1)
    gallery[777, 5] = gallery[1500] = value
    targets = torch.zeros(MANY, dtype=torch.int64)
    for search_of in (
        lambda: retrieval.topk(queries, gallery, 1),
        lambda: retrieval.positive_rank(queries, gallery, targets),
        lambda: retrieval.range_search(queries, gallery, 1.0),
    ):
        with pytest.raises(ValueError, match="gallery must be finite, row 777 is not"):
            search_of()
    with pytest.raises(ValueError, match="gallery must be finite, row 1500 is not"):
        retrieval.rerank(queries, gallery, torch.full((MANY, 1), 1500), 1)


def test_masks_of_pieces():
    where = Restrictions(torch.tensor([1, 5, 6]), torch.arange(9) == 5, None, None, None)
    piece = where.piece(5, torch.zeros(3, 2))
    assert piece.allowed.tolist() == [False, True, False]


@pytest.mark.slow
def test_importing_hypkernels_does_not_import_it():
    import subprocess

    code = "import sys, hypkernels; sys.exit('hypkernels.retrieval' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_arrays_are_read_in_place(backend):
    queries, gallery = points(5, 8), points(50, 8, seed=1)
    array = gallery.numpy()
    array.flags.writeable = False
    assert_same(retrieval.topk(queries, array, 3), retrieval.topk(queries, torch.tensor(np.array(array)), 3))
    assert retrieval.open_gallery(array).points.data_ptr() == array.ctypes.data
