"""What the contrastive loss's kernels make of single points, against the PyTorch code of other devices."""

from __future__ import annotations

import pytest
import torch
from row_kernel_cases import run

from hypkernels.contrastive import point_kernels, problem
from hypkernels.contrastive.problem import Embeddings
from hypkernels.contrastive.similarity import logit_matrices
from hypkernels.tritonlib import pair_sums, pair_tiles

C = torch.tensor(0.7, dtype=torch.float64)
SHAPES = [(1, 1), (5, 40), (300, 7), (33, 600), (3, 5000)]
GAPS = {
    "dist": (point_kernels.DIST, logit_matrices("dist", True)[0].gap),
    "sqdist": (point_kernels.SQUARED_DIST, logit_matrices("sqdist", True)[0].gap),
    "inner": (point_kernels.NEGATIVE_INNER, logit_matrices("inner", True)[0].gap),
    "angle": (point_kernels.ANGLE, logit_matrices("angle", True)[0].gap),
}


def points(rows, width, dtype=torch.float32, seed=0, size=1.5):
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(width, generator=generator, dtype=torch.float64) / width**0.5
    noise = torch.randn(rows, width, generator=generator, dtype=torch.float64) / width**0.5
    return (size * (mean + noise)).to(dtype)


def uniform(shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_close(actual, expected, bound):
    """Relative to the largest of the expected."""
    assert actual.shape == expected.shape
    assert (actual.double() - expected).abs().max() <= bound * expected.abs().max()


def both_sides(rows, width, dtype=torch.float32):
    sets = [points(rows, width, dtype), points(rows + 3, width, dtype, seed=1)]
    return Embeddings(sets, C, problem.summaries(sets)).sides(0, 1)


@pytest.mark.parametrize("shape", SHAPES)
def test_summaries(shape):
    """Products with the very centres, which are a mean of float64 directions rounded to float32."""
    sets = [points(*shape), points(shape[0] + 3, shape[1], seed=1), points(2 * shape[0], shape[1], seed=2)]
    centres, *tables = run(point_kernels.summaries, sets)
    expected_centres, *_ = problem.summaries(sets)
    assert_close(centres, expected_centres, 2.0**-23)
    for one, table in zip(sets, tables, strict=True):
        wide = one.double()
        expected = torch.cat([(wide * wide).sum(1, keepdim=True), wide @ centres.mT], 1)
        assert_close(table, expected, 1e-14 * shape[1] ** 0.5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_needs_no_centres(dtype):
    sets = [points(70, 40, dtype), points(30, 40, dtype, seed=1)]
    centres, *tables = run(point_kernels.summaries, sets)
    assert not centres.any()
    for one, table in zip(sets, tables, strict=True):
        assert_close(table[:, 0], one.double().square().sum(1), 1e-14)
        assert not table[:, 1:].any()


def test_what_is_no_point_has_no_part_in_the_centre():
    good = points(60, 40)
    bad = torch.full((3, 40), float("nan"))
    bad[1] = float("inf")
    bad[2] = 0
    centres, *_ = run(point_kernels.summaries, [torch.cat([bad, good]), bad])
    assert_close(centres[0], run(point_kernels.summaries, [good])[0][0], 2.0**-23)
    assert not centres[1].any()


def test_points_between_others():
    """Rows and columns apart in memory."""
    dense = points(40, 30)
    rows = dense.repeat_interleave(2, 0)[::2]
    columns = dense.repeat_interleave(2, 1)[:, ::2]
    expected = run(point_kernels.summaries, [dense])
    for view in (rows, columns):
        for a, b in zip(run(point_kernels.summaries, [view]), expected, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("shape", SHAPES)
def test_table(shape):
    """Whole chunks: beyond the last point are its numbers."""
    resolution = 1e-6
    x, _ = both_sides(*shape)
    per_unit, weights, totals = (uniform(shape[0], seed) for seed in range(3))

    def table(square, along, centre, other_centre, c, *others):
        side = x._replace(
            points=x.points.to(square.device),
            square=square,
            along=along,
            centre=centre,
            other_centre=other_centre,
            embeddings=Embeddings([], c, [centre]),
        )
        return point_kernels.table(
            side, resolution=resolution, per_unit=others[0], unit=0.3, softmax=others[1:]
        )

    chunks = run(table, x.square, x.along, x.centre, x.other_centre, C, per_unit, weights, totals)
    assert chunks.shape[1:] == (pair_tiles.LINES.value, pair_tiles.CHUNK.value)
    lines = chunks.transpose(0, 1).flatten(1)
    part = x.part()
    s = part.scalars
    root = torch.rsqrt(s.A)
    slope = s.A * torch.rsqrt(resolution * s.P**2 * (resolution * s.P**2 + 2))
    expected = [s.A_minus_1, root, s.A_minus_1 * root, slope, s.P, s.growth, s.shrink, s.P * part.offset]
    for line, scalar in zip(lines, expected, strict=False):
        torch.testing.assert_close(line[: len(scalar)], scalar.squeeze(1).float(), rtol=2.0**-23, atol=1e-15)
    bits = totals / torch.log(torch.tensor(2.0, dtype=torch.float64))
    total, weight, rate = (
        lines[line.value][: len(bits)] for line in (pair_tiles.TOTAL, pair_tiles.WEIGHT, pair_tiles.RATE)
    )
    assert torch.equal(total.double(), bits.float().double())
    assert_close(weight * torch.exp2(bits - total.double()), weights, 2.0**-23)
    assert_close(rate, per_unit * 0.3 / 0.6931471805599453, 2.0**-23)
    assert torch.equal(
        lines[:, len(bits) :], lines[:, len(bits) - 1 : len(bits)].expand_as(lines[:, len(bits) :])
    )


@pytest.mark.parametrize("precision", ["ieee", "tf32"])
@pytest.mark.parametrize("shape", SHAPES)
def test_centred_points(shape, precision):
    x, _ = both_sides(*shape)
    expected = torch.empty_like(x.points, dtype=torch.float64)
    problem.fill_centred(expected, x, x.part())

    def centred(points, square, centre, c):
        side = x._replace(points=points, square=square, centre=centre, embeddings=Embeddings([], c, [centre]))
        return point_kernels.centred_points(side, precision)

    actual = run(centred, x.points, x.square, x.centre, C)
    assert (actual - expected).abs().max() <= expected.abs().max() * (
        2.0**-11 if precision == "tf32" else 2.0**-24
    )
    assert precision == "ieee" or not (actual.view(torch.int32) & 0x1FFF).any()


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 7), (2, 40, 300)])
def test_sums_of_tiles(shape):
    parts = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    before = torch.rand(
        shape[0], shape[2] + 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )

    def added(parts, sums):
        pair_sums.add_tiles(parts, sums[:, 2 : 2 + parts.shape[2]])
        return sums

    expected = before.clone()
    expected[:, 2 : 2 + shape[2]] += parts.double().sum(1)
    torch.testing.assert_close(run(added, parts, before.clone()), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("names", [("by_height",), ("by_norm",), ("by_height", "by_norm")])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradient_without_own_terms(shape, names):
    x, _ = both_sides(*shape)
    total = points(*shape, seed=3)
    own = {name: uniform(shape[0], seed) for seed, name in enumerate(names)}

    def finished(total, points, square, c, weight_unit, own):
        side = x._replace(points=points, square=square, embeddings=Embeddings([], c, [square]))
        point_kernels.finish_gradient(total, side, weight_unit, **own)
        return total

    P2 = C * x.square.squeeze(1)
    norms = {"by_norm": P2, "by_height": torch.sqrt(1 + P2)}
    factor = sum(one / norms[name] for name, one in own.items())
    unit = torch.tensor(4.0, dtype=torch.float64)
    expected = C / unit * (total.double() - factor.unsqueeze(1) * x.points.double())
    assert_close(run(finished, total.clone(), x.points, x.square, C, unit, own), expected, 2.0**-23)


@pytest.mark.parametrize("similarity", GAPS)
@pytest.mark.parametrize("shape", SHAPES)
def test_gaps_of_rows(similarity, shape):
    gap, closed = GAPS[similarity]
    x, y = points(*shape), points(*shape, seed=1)
    actual = run(lambda *args: point_kernels.gap_of_rows(gap, *args), x, y, C)
    assert actual.dtype == torch.float64
    assert_close(actual, closed.of_rows(x.double(), y.double(), C).squeeze(1), 1e-13)


@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("similarity", GAPS)
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_of_rows(similarity, shape, wanted):
    gap, closed = GAPS[similarity]
    x, y = points(*shape), points(*shape, seed=1)
    by_gap = torch.linspace(0.5, 1.5, shape[0], dtype=torch.float64)
    before = [points(*shape, seed=seed) for seed in (2, 3)]

    def added(by_gap, points, sums, c):
        by_curv = point_kernels.add_gradients_of_rows(gap, by_gap, points, sums, c)
        return [by_curv, *sums]

    sums = [one.clone() if wants else None for one, wants in zip(before, wanted, strict=True)]
    by_curv, *actual = run(added, by_gap, [x, y], sums, C)
    *gradients, of_rows = closed.of_rows_gradient(by_gap.unsqueeze(1), x.double(), y.double(), C)
    assert_close(by_curv, of_rows.sum(), 1e-12)
    for one, start, gradient in zip(actual, before, gradients, strict=True):
        if one is not None:
            assert_close(one, start.double() + gradient, 2.0**-23)


def test_no_rows_and_no_columns():
    empty = torch.empty(0, 8)
    centres, table, other = run(point_kernels.summaries, [empty, points(3, 8)])
    assert centres.isfinite().all()
    assert table.shape == (0, 3)
    assert other.isfinite().all()
