"""Every public function on arguments from the whole range: no NaN, no error but the documented one.

``HYPKERNELS_EXAMPLES=100000 pytest tests/hypkernels/test_property.py`` draws more examples than the suite.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import mpmath as mp
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lorentz_oracle import DEFINITIONS, MAPS, ONE_POINT
from mpmath import mpf
from torch import Tensor

import hypkernels as hk

NARROW_PRODUCT = mpf("5e-7")  # the documented error of all pairs' distances
EXAMPLES = int(os.environ.get("HYPKERNELS_EXAMPLES", "400"))  # of all functions together
# Norms of 1e-38 and 1e38 together, squared twice, and their distance to rounding.
DIGITS = 400
ROWS = 2
# Of the smallest and the largest norms, where all components are in range.
DECADES = {
    torch.float16: (-7, 4),
    torch.bfloat16: (-38, 38),
    torch.float32: (-38, 38),
    torch.float64: (-38, 38),
}
RELATIONS = ("free", "near", "equal", "opposite", "collinear", "x at the origin", "y at the origin")
LAYOUTS = ("dense", "transposed", "strided", "offset", "expanded")
PAIRWISE = {
    "pairwise_inner": "elementwise_inner",
    "pairwise_dist": "elementwise_dist",
    "pairwise_oxy_angle": "oxy_angle",
}
GAPS = {
    "dist": "elementwise_dist",
    "sqdist": "elementwise_dist",
    "inner": "elementwise_inner",
    "angle": "oxy_angle",
}
LOSSES = tuple(f"contrastive_loss {similarity}" for similarity in GAPS)
NAMES = (*DEFINITIONS, "scaled_exp_map0", *PAIRWISE, *LOSSES)


@dataclass(frozen=True)
class Draw:
    """Arguments of a function; norms are powers of ten within the range of the dtype, ``size`` of the way."""

    name: str
    dtype: torch.dtype
    width: int
    relation: str
    layouts: tuple[str, str]
    x_size: float
    y_size: float
    gap: float
    log_curv: float
    log_scale: float
    seed: int

    @property
    def curv(self) -> float:
        return 10.0**self.log_curv

    def points(self) -> list[Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        low, high = DECADES[self.dtype]

        def set_of(size: float) -> Tensor:
            rows = torch.randn(ROWS, self.width, generator=generator, dtype=torch.float64)
            return rows / rows.norm(dim=1, keepdim=True) * 10.0 ** (low + size * (high - low))

        x, y = set_of(self.x_size), set_of(self.y_size)
        tilt = torch.randn(x.shape, generator=generator, dtype=torch.float64) * 10.0**self.gap
        if self.relation == "near":
            y = x + x.norm(dim=1, keepdim=True) * tilt / self.width**0.5
        elif self.relation in ("equal", "opposite"):
            y = -x if self.relation == "opposite" else x
        elif self.relation == "collinear":
            y = y.norm(dim=1, keepdim=True) * (x / x.norm(dim=1, keepdim=True) + tilt / self.width**0.5)
        elif self.relation == "x at the origin":
            x = torch.zeros_like(x)
        elif self.relation == "y at the origin":
            y = torch.zeros_like(y)
        sets = [x.to(self.dtype), y.to(self.dtype)]
        return [laid_out(one, layout) for one, layout in zip(sets, self.layouts, strict=True)]


def laid_out(rows: Tensor, layout: str) -> Tensor:
    if layout == "transposed":
        return rows.mT.contiguous().mT
    if layout == "strided":
        return torch.stack([rows, rows + 1], dim=-1)[..., 0]
    if layout == "offset":
        return torch.cat([rows.new_ones(3), rows.reshape(-1)])[3:].view(rows.shape)
    return rows[:1].expand(rows.shape) if layout == "expanded" else rows


def draws(name: str) -> st.SearchStrategy[Draw]:
    # Half of the sizes are about where models have their points.
    size = st.one_of(st.floats(0, 1), st.floats(0.45, 0.55))
    return st.builds(
        Draw,
        name=st.just(name),
        dtype=st.sampled_from(list(DECADES)),
        width=st.one_of(st.integers(1, 9), st.integers(1, 513)),
        relation=st.sampled_from(RELATIONS),
        layouts=st.tuples(st.sampled_from(LAYOUTS), st.sampled_from(LAYOUTS)),
        x_size=size,
        y_size=size,
        gap=st.floats(-12, -1),
        log_curv=st.floats(-6, 6),
        log_scale=st.floats(-2, 2),
        seed=st.integers(0, 2**32),
    )


def exact(rows: Tensor) -> list[list[mpf]]:
    return [[mpf(value) for value in row] for row in rows.double().tolist()]


def gram(x: list[mpf], y: list[mpf] | None) -> list[mpf]:
    return [mp.fdot(x, x)] if y is None else [mp.fdot(x, x), mp.fdot(x, y), mp.fdot(y, y)]


def options_of(name: str) -> tuple[float, ...]:
    return {"half_aperture": (0.1,), "entailment_loss": (0.8, 0.1, 0.05, 0.1)}.get(name, ())


def true_scalar(name: str, products: list[mpf], c: mpf) -> mpf:
    """By the definition, or its limit where the definition has none."""
    x_sq = products[0]
    equal = len(products) == 3 and products[0] == products[1] == products[2]
    if name == "entailment_loss":
        scale, _, margin, leak = (mpf(option) for option in options_of(name))
        angle, aperture = true_scalar("oxy_angle", products, c), true_scalar("half_aperture", [x_sq], c)
        return max(angle - scale * aperture + margin, 0) + leak * angle
    if (equal and name in ("oxy_angle", "elementwise_dist")) or (x_sq == 0 and name == "dist0"):
        return mpf(0)
    if x_sq == 0 and name in ("oxy_angle", "half_aperture"):
        return mp.pi / 2
    if name == "busemann" and products[2] == 0:
        return mp.log1p(c * x_sq) / (2 * mp.sqrt(c))
    # acos and acosh of what rounds to just beyond 1 are complex.
    return mp.re(DEFINITIONS[name](*products, c, *options_of(name)[:1]))


def z_of(products: list[mpf], c: mpf) -> mpf:
    """``cosh(kd) - 1``"""
    return -c * DEFINITIONS["elementwise_inner"](*products, c) - 1


def unit_in_the_last_place(true: mpf, dtype: torch.dtype) -> mpf:
    info = torch.finfo(dtype)
    if abs(true) < info.tiny:
        return mpf(info.smallest_normal) * info.eps
    return mpf(info.eps) * mpf(2) ** mp.floor(mp.log(abs(true), 2))


def assert_within(actual: float, true: mpf, allowed: mpf, dtype: torch.dtype) -> None:
    """Off by no more than ``allowed`` and the rounding to ``dtype``; infinite where that is out of range."""
    assert not math.isnan(actual)
    largest = mpf(torch.finfo(dtype).max)
    if math.isinf(actual):
        assert abs(true) + allowed > largest * (1 - mpf(torch.finfo(dtype).eps))
        assert (actual > 0) == (true > 0)
        return
    assert abs(mpf(actual) - true) <= allowed + mpf("0.51") * unit_in_the_last_place(true, dtype)


# Float64 arithmetic before the one rounding to the result's dtype, relative and for angles absolute.
ARITHMETIC = mpf(2) ** -44
ANGLE = mpf(2) ** -46


def check_scalars(name: str, out: Tensor, sets: list[Tensor], c: mpf) -> None:
    rows = [exact(one) for one in sets]
    for index, actual in enumerate(out.tolist()):
        products = gram(*(one[index] for one in rows), *([None] if len(rows) == 1 else []))
        true = true_scalar(name, products, c)
        absolute = ANGLE if name in ("oxy_angle", "entailment_loss") else mpf(0)
        if name == "busemann":  # which is 0 on a horosphere, by numbers that are 1 or as small as the point
            absolute = ARITHMETIC * min(1 / mp.sqrt(c), mp.sqrt(products[0]))
        assert_within(actual, true, ARITHMETIC * abs(true) + absolute, out.dtype)


def check_maps(name: str, out: Tensor, sets: list[Tensor], c: mpf, scale: mpf) -> None:
    """The error is relative to the norm: a component that nearly vanishes shows its neighbours' rounding."""
    rows = [exact(one) for one in sets]
    for index, actual in enumerate(out.tolist()):
        vectors = [one[index] for one in rows]
        if name == "scaled_exp_map0":
            vectors = [[scale * value for value in vectors[0]]]
        products = gram(*vectors, *([None] if len(vectors) == 1 else []))
        coefficients = map_coefficients(name, products, c)
        true = [mp.fdot(coefficients, column) for column in zip(*vectors, strict=True)]
        sizes = [abs(k) * mp.sqrt(s) for k, s in zip(coefficients, (products[0], products[-1]), strict=False)]
        condition = 1 + mp.sqrt(c) * mp.sqrt(products[-1])
        allowed = ARITHMETIC * max(mp.norm(true), min(sizes) if name in ("exp_map", "log_map") else 0)
        if name in ("exp_map0", "scaled_exp_map0", "exp_map"):
            allowed *= condition
        for value, component in zip(actual, true, strict=True):
            assert_within(value, component, allowed, out.dtype)


def map_coefficients(name: str, products: list[mpf], c: mpf) -> tuple[mpf, ...]:
    base = "exp_map0" if name == "scaled_exp_map0" else name
    if base in ("exp_map0", "log_map0") and products[0] == 0:
        return (mpf(1),)
    if base == "log_map" and products[0] == products[1] == products[2]:
        return mpf(0), mpf(0)
    if base == "exp_map" and products[2] == 0:
        return mpf(1), mpf(1)
    return tuple(mp.re(one) for one in DEFINITIONS[base](*products, c))


# What the product of matrices leaves uncertain in z, in units of P Q.
RESOLUTION = {torch.float64: mpf(16) * mpf(2) ** -52, torch.float32: mpf(16) * mpf(2) ** -23}


def distance_of(z: mpf) -> mpf:
    return mp.log1p(z + mp.sqrt(z * (z + 2)))


def uncertainty(name: str, products: list[mpf], c: mpf, logits: torch.dtype) -> mpf:
    """How much a function of a pair may be off because a product of matrices rounds."""
    P, Q = mp.sqrt(c * products[0]), mp.sqrt(c * products[2])
    dz, z = RESOLUTION[logits] * P * Q, max(z_of(products, c), mpf(0))
    if name == "elementwise_inner":
        return dz / c
    if name == "elementwise_dist":
        return (distance_of(z + dz) - distance_of(max(z - dz, mpf(0)))) / mp.sqrt(c)
    if z <= 4 * dz:
        return mp.pi
    lateral_root = mp.sqrt(dz) * Q / mp.sqrt(P * Q) if P * Q else mpf(0)
    return 4 * lateral_root / mp.sqrt(z * (z + 2)) + 8 * dz / z


def check_pairs(name: str, out: Tensor, sets: list[Tensor], c: mpf) -> None:
    x, y = (exact(one) for one in sets)
    base = PAIRWISE[name]
    for i, row in enumerate(out.tolist()):
        for j, actual in enumerate(row):
            products = gram(x[i], y[j])
            true = true_scalar(base, products, c)
            allowed = uncertainty(base, products, c, torch.float64)
            allowed += (NARROW_PRODUCT if out.dtype == torch.float32 else ARITHMETIC) * abs(true)
            assert_within(actual, true, allowed, out.dtype)


def check_loss(similarity: str, out: Tensor, sets: list[Tensor], c: mpf, scale: mpf) -> None:
    """Positives are exact; a negative's logit is uncertain as its gap is, and rounds."""
    x, y = (exact(one) for one in sets)
    base, logits = GAPS[similarity], torch.float64 if out.dtype == torch.float64 else torch.float32
    count = len(x)
    gaps, errors = {}, {}
    for i in range(count):
        for j in range(count):
            for at_row in (True, False):
                products = gram(x[i], y[j]) if at_row else gram(y[j], x[i])
                gap, off = true_scalar(base, products, c), uncertainty(base, products, c, logits)
                if similarity == "sqdist":
                    gap, off = gap * gap, 2 * gap * off + off * off
                if similarity == "inner":
                    gap = -gap
                gaps[i, j, at_row] = gap
                # Its terms are cosh and sinh of rapidities, whose rounding they multiply.
                ulps = 8 + mp.log1p(mp.sqrt(c * products[0])) + mp.log1p(mp.sqrt(c * products[2]))
                errors[i, j, at_row] = scale * (off + ulps * mpf(torch.finfo(logits).eps) * gap)
    for i, actual in enumerate(out.tolist()):
        total, allowed = mpf(0), mpf(0)
        for at_row in (True, False):
            places = [(i, j) if at_row else (j, i) for j in range(count)]
            others = [
                -scale * (gaps[(*place, at_row)] - gaps[i, i, at_row]) for place in places if place != (i, i)
            ]
            total += mp.log1p(mp.fsum(mp.exp(other) for other in others)) / 2
            allowed = max([allowed, *(errors[(*place, at_row)] for place in places)])
        assert_within(actual, total, allowed + mpf("4e-6") * total, out.dtype)


def check(draw: Draw) -> None:
    sets = draw.points()
    one_point = draw.name in (*ONE_POINT, "scaled_exp_map0")
    sets = [one.requires_grad_() for one in (sets[:1] if one_point else sets)]
    assert all(one.isfinite().all() for one in sets)
    curv = torch.tensor(draw.curv, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(10.0**draw.log_scale, dtype=torch.float64, requires_grad=True)
    scalars = [curv]
    if draw.name == "scaled_exp_map0":
        scalars = [scale, curv]
        out = hk.scaled_exp_map0(*sets, scale, curv)
    elif draw.name in LOSSES:
        scalars = [scale, curv]
        out = hk.contrastive_loss(*sets, curv, scale, similarity=draw.name.split()[1], reduction="none")
    elif draw.name == "entailment_loss":
        keywords = dict(
            zip(("aperture_scale", "min_radius", "margin", "leak"), options_of(draw.name), strict=True)
        )
        out = hk.entailment_loss(*sets, curv, reduction="none", **keywords)
    else:
        out = getattr(hk, draw.name)(*sets, curv, *options_of(draw.name))
    gradients = torch.autograd.grad(out, [*sets, *scalars], torch.ones_like(out))
    assert not any(one.isnan().any() for one in gradients)
    assert all(one.isfinite().all() for one in gradients[: len(sets)] if out.isfinite().all())
    plain = [one.detach() for one in sets]
    with mp.workdps(DIGITS):
        c = mpf(draw.curv)
        if draw.name in MAPS or draw.name == "scaled_exp_map0":
            check_maps(draw.name, out.detach(), plain, c, mpf(scale.item()))
        elif draw.name in PAIRWISE:
            check_pairs(draw.name, out.detach(), plain, c)
        elif draw.name in LOSSES:
            check_loss(draw.name.split()[1], out.detach(), plain, c, mpf(scale.item()))
        else:
            check_scalars(draw.name, out.detach(), plain, c)


@pytest.mark.parametrize("name", NAMES)
def test_the_whole_range(name):
    @settings(
        max_examples=max(1, EXAMPLES // len(NAMES)),
        deadline=None,
        derandomize=EXAMPLES <= 1000,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(draw=draws(name))
    def run(draw):
        check(draw)

    run()
