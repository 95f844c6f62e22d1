"""Triton kernels of the maps: the formulas of :mod:`hypkernels.maps.closed_form` on the rows of a tile.

Every tensor is read once and written once; the backward kernels recompute from the inputs. A kernel stores
each row's share of the gradient by a scalar; the second stage of that sum is PyTorch's, in a fixed order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hypkernels.tritonlib import launch
from hypkernels.tritonlib.manifest import Variant
from hypkernels.tritonlib.pair_geometry import across, along_z, pair_geometry, ratio, split_along
from hypkernels.tritonlib.row_kernels import ALL_CONFIGURATIONS, op_variants, total_or_each
from hypkernels.tritonlib.rows import (
    bounded,
    columns_from,
    combine,
    dot,
    dot_in_units,
    finite,
    input_rows,
    load,
    load_in_units,
    output_rows,
    row_kernel,
    row_norm,
    row_tile,
    saturate,
    scalar_of_rows,
    store,
    store_scalars,
    zeros,
)
from hypkernels.tritonlib.scalar_math import (
    asinh,
    asinhc,
    asinhc_slope,
    asinhc_stretch,
    capped,
    capped_sinhc,
    capped_sinhc_slope,
    capped_stretch,
    cosh,
    sinh,
)


def exp_map0(v: Tensor, curv: Tensor) -> Tensor:
    return _map(_radial_forward, (v,), [None, curv], EXPONENTIAL=True)


def exp_map0_backward(grad: Tensor, v: Tensor, curv: Tensor) -> tuple[Tensor, ...]:
    return _radial_gradients(grad, v, None, curv, EXPONENTIAL=True)


def log_map0(x: Tensor, curv: Tensor) -> Tensor:
    return _map(_radial_forward, (x,), [None, curv], EXPONENTIAL=False)


def log_map0_backward(grad: Tensor, x: Tensor, curv: Tensor) -> tuple[Tensor, ...]:
    return _radial_gradients(grad, x, None, curv, EXPONENTIAL=False)


def scaled_exp_map0(x: Tensor, scale: Tensor, curv: Tensor) -> Tensor:
    return _map(_radial_forward, (x,), [scale, curv], EXPONENTIAL=True)


def scaled_exp_map0_backward(grad: Tensor, x: Tensor, scale: Tensor, curv: Tensor) -> tuple[Tensor, ...]:
    return _radial_gradients(grad, x, scale, curv, EXPONENTIAL=True)


def exp_map(x: Tensor, v: Tensor, curv: Tensor) -> Tensor:
    return _map(_exp_map_forward, (x, v), [curv])


def exp_map_backward(grad: Tensor, x: Tensor, v: Tensor, curv: Tensor) -> tuple[Tensor, ...]:
    return _map_backward(_exp_map_backward, grad, (x, v), curv)


def log_map(x: Tensor, y: Tensor, curv: Tensor) -> Tensor:
    return _map(_log_map_forward, (x, y), [curv])


def log_map_backward(grad: Tensor, x: Tensor, y: Tensor, curv: Tensor) -> tuple[Tensor, ...]:
    return _map_backward(_log_map_backward, grad, (x, y), curv)


def _map(kernel: Any, points: Sequence[Tensor], scalars: Sequence[Tensor | None], **functions: Any) -> Tensor:
    out = launch.allocate(points[0], points[0].shape, points[0].dtype)
    launch.launch_rows(kernel, points, [out], scalars, **functions)
    return out


def _map_backward(kernel: Any, grad: Tensor, points: Sequence[Tensor], curv: Tensor) -> tuple[Tensor, ...]:
    grads = [launch.allocate(point, point.shape, point.dtype) for point in points]
    by_curv = launch.allocate(grad, grad.shape[:-1], torch.float64)
    launch.launch_rows(kernel, [grad, *points], [*grads, by_curv], [curv])
    return (*grads, total_or_each(by_curv, curv))


def _radial_gradients(
    grad: Tensor,
    x: Tensor,
    scale: Tensor | None,
    curv: Tensor,
    *,
    EXPONENTIAL: bool,
) -> tuple[Tensor, ...]:
    """The gradients by ``x``, by the scale if there is one, and by the curvature."""
    by_x = launch.allocate(x, x.shape, x.dtype)
    scalars = [scale, curv]
    shares = [None if one is None else launch.allocate(x, x.shape[:-1], torch.float64) for one in scalars]
    launch.launch_rows(_radial_backward, [grad, x], [by_x, *shares], scalars, EXPONENTIAL=EXPONENTIAL)
    by_scalars = (
        total_or_each(share, one)
        for share, one in zip(shares, scalars, strict=True)
        if share is not None and one is not None
    )
    return (by_x, *by_scalars)


@row_kernel
def _radial_forward(
    X,
    x_outer,
    x_inner,
    OUT,
    SCALE,
    scale_outer,
    scale_inner,
    CURV,
    curv_outer,
    curv_inner,
    outer_size,
    inner_size,
    EXPONENTIAL: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """``f(sqrt(c)|v|) v`` for ``v = scale x``, where ``f`` is ``sinhc`` or ``asinhc``."""
    tile = row_tile(outer_size, inner_size, ROWS)
    x = input_rows(X, x_outer, x_inner, tile)
    scale = _scale(SCALE, scale_outer, scale_inner, tile)
    norm, unit = row_norm(x, tile, D, BLOCK_D)
    c = scalar_of_rows(CURV, curv_outer, curv_inner, tile)
    f, _, half = _radial_factors(tl.sqrt(c) * norm * tl.abs(scale), unit, OUT.dtype.element_ty, EXPONENTIAL)
    out = output_rows(OUT, tile, D)
    for start in range(0, D, BLOCK_D):
        columns = columns_from(start, tile, D, BLOCK_D)
        if OUT.dtype.element_ty == tl.float64:
            value = load_in_units(x, unit, columns) * (f * 0.0 + scale)[:, None]
            if EXPONENTIAL:
                value = value * f[:, None] * half[:, None] * half[:, None] * unit[:, None]
            else:
                value = value * (f * unit)[:, None]
        else:
            value = finite(scale * f)[:, None] * load(x, columns)
        store(out, value, columns)


@triton.jit
def _scale(SCALE, scale_outer, scale_inner, tile):
    """The scale of each row; 1 if ``SCALE`` is ``None``."""
    if SCALE is None:
        return tl.full((), 1.0, tl.float64)
    else:
        return scalar_of_rows(SCALE, scale_outer, scale_inner, tile)


@triton.jit
def _radial_factors(s, unit, dtype: tl.constexpr, EXPONENTIAL: tl.constexpr):
    """``f`` and ``t f'`` at ``t = s unit``, both over ``half**2``, and ``half``."""
    t = s * unit
    if EXPONENTIAL:
        t = tl.where(t > 1e30, 1e30, t)
        cap, half = capped(t)
        return capped_sinhc(t, cap), capped_stretch(t, cap), half
    else:
        f, stretch, half = asinhc(t), asinhc_stretch(t), s * 0.0 + 1.0
        if dtype == tl.float64:
            far = t > 1e100
            f = tl.where(far, (tl.log(2.0 * s) + tl.log(unit)) / s / unit, f)
            stretch = tl.where(far, 1.0 / s / unit - f, stretch)
        return f, stretch, half


@row_kernel
def _radial_backward(
    GRAD,
    grad_outer,
    grad_inner,
    X,
    x_outer,
    x_inner,
    BY_X,
    BY_SCALE,
    BY_CURV,
    SCALE,
    scale_outer,
    scale_inner,
    CURV,
    curv_outer,
    curv_inner,
    outer_size,
    inner_size,
    EXPONENTIAL: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """``scale (f g + t f' (w.g) w)`` with ``w = x / |x|``"""
    tile = row_tile(outer_size, inner_size, ROWS)
    grad = input_rows(GRAD, grad_outer, grad_inner, tile)
    x = input_rows(X, x_outer, x_inner, tile)
    scale = _scale(SCALE, scale_outer, scale_inner, tile)
    c = scalar_of_rows(CURV, curv_outer, curv_inner, tile)
    norm, unit = row_norm(x, tile, D, BLOCK_D)
    x_grad, grad_sq = dot_in_units(x, unit, grad, tile, D, BLOCK_D), dot(grad, grad, tile, D, BLOCK_D)
    v_norm, t = norm * tl.abs(scale) * unit, tl.sqrt(c) * norm * tl.abs(scale)
    f, stretch, half = _radial_factors(t, unit, BY_X.dtype.element_ty, EXPONENTIAL)
    along_grad, along_x = f, stretch * ratio(x_grad, norm * norm)
    out = BY_X.dtype.element_ty
    bound = tl.abs(along_grad) * tl.sqrt(grad_sq) + tl.abs(along_x) * norm
    bound *= tl.abs(scale) * half * half
    by_x, factor = output_rows(BY_X, tile, D), f * 0.0 + scale
    for start in range(0, D, BLOCK_D):
        columns = columns_from(start, tile, D, BLOCK_D)
        grad_part, x_part = load(grad, columns), load_in_units(x, unit, columns)
        store(by_x, _combine(along_grad, grad_part, along_x, x_part, factor, half, out), columns)
    at_0 = (1.0 if EXPONENTIAL else -1.0) / 3.0 * v_norm * v_norm
    by_curv = 0.5 * tl.where(t * unit < 1e-8, at_0, stretch / c) * scale * x_grad
    store_scalars(BY_CURV, by_curv * unit * half * half, tile)
    if SCALE is not None:
        store_scalars(BY_SCALE, (f + stretch) * x_grad * unit * half * half, tile)
    terms = (along_grad, along_x, grad, x, unit)
    saturate(by_x, bound, scale, half, terms, _of_radial, tile, D)


@triton.jit
def _of_radial(terms, factor, columns):
    along_grad, along_x, grad, x, unit = terms
    grad_part, x_part = load(grad, columns), load_in_units(x, unit, columns)
    return combine(factor * along_grad, grad_part, factor * along_x, x_part)


@triton.jit
def _combine(a, x, b, y, factor, half, dtype: tl.constexpr):
    """``factor half**2 (a x + b y)``; for narrow dtypes without ``half``, which changes only overflows."""
    if dtype == tl.float64:
        return combine(a, x, b, y) * factor[:, None] * half[:, None] * half[:, None]
    else:
        return combine(finite(factor * a), x, finite(factor * b), y)


@row_kernel
def _exp_map_forward(
    X,
    x_outer,
    x_inner,
    V,
    v_outer,
    v_inner,
    OUT,
    CURV,
    curv_outer,
    curv_inner,
    outer_size,
    inner_size,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    tile = row_tile(outer_size, inner_size, ROWS)
    x = input_rows(X, x_outer, x_inner, tile)
    v = input_rows(V, v_outer, v_inner, tile)
    c = scalar_of_rows(CURV, curv_outer, curv_inner, tile)
    x_sq, coarse, fine, n_sq = split_along(x, v, tile, D, BLOCK_D)
    alpha, P2, across_sq = coarse + fine, bounded(c * x_sq), c * n_sq
    along_sq = alpha * alpha * P2 / (1.0 + P2)
    P, tau = tl.sqrt(P2), tl.sqrt(along_sq + across_sq)
    cap, half = capped(tau)
    S = capped_sinhc(tau, cap)
    detour = tl.sqrt(1.0 + P2) * S * across_sq / (tau + tl.sqrt(along_sq))
    inward = (sinh(asinh(P) - cap) + detour) / P
    by_x = tl.where(alpha < 0.0, inward, cosh(cap) + alpha * S)
    by_n = tl.where(across_sq > 0.0, S, 0.0)
    out, one = output_rows(OUT, tile, D), tau * 0.0 + 1.0
    for start in range(0, D, BLOCK_D):
        columns = columns_from(start, tile, D, BLOCK_D)
        x_part = load(x, columns)
        n = across(coarse, fine, x_part, load(v, columns))
        store(out, _combine(by_x, x_part, by_n, n, one, half, OUT.dtype.element_ty), columns)


@row_kernel
def _exp_map_backward(
    GRAD,
    grad_outer,
    grad_inner,
    X,
    x_outer,
    x_inner,
    V,
    v_outer,
    v_inner,
    BY_X,
    BY_V,
    BY_CURV,
    CURV,
    curv_outer,
    curv_inner,
    outer_size,
    inner_size,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    tile = row_tile(outer_size, inner_size, ROWS)
    grad = input_rows(GRAD, grad_outer, grad_inner, tile)
    x = input_rows(X, x_outer, x_inner, tile)
    v = input_rows(V, v_outer, v_inner, tile)
    c = scalar_of_rows(CURV, curv_outer, curv_inner, tile)
    x_grad, v_grad = dot(x, grad, tile, D, BLOCK_D), dot(v, grad, tile, D, BLOCK_D)
    grad_norm = tl.sqrt(dot(grad, grad, tile, D, BLOCK_D))
    x_sq, coarse, fine, n_sq = split_along(x, v, tile, D, BLOCK_D)
    alpha, P2, across_sq = coarse + fine, bounded(c * x_sq), c * n_sq
    A2 = 1.0 + P2
    along_sq = alpha * alpha * P2 / A2
    tau = tl.sqrt(along_sq + across_sq)
    cap, half = capped(tau)
    S, x_by_grad = capped_sinhc(tau, cap), cosh(cap)
    slope = 0.5 * (S * x_grad + capped_sinhc_slope(tau, cap) * v_grad)
    v_by_p = 2.0 * c * slope
    x_by_p = -v_by_p * alpha * P2 / A2
    by_x, by_v = output_rows(BY_X, tile, D), output_rows(BY_V, tile, D)
    along, lateral, one = alpha / A2, tl.where(across_sq > 0.0, 1.0, 0.0), tau * 0.0 + 1.0
    for start in range(0, D, BLOCK_D):
        columns = columns_from(start, tile, D, BLOCK_D)
        x_part, grad_part = load(x, columns), load(grad, columns)
        n = across(coarse, fine, x_part, load(v, columns))
        p = combine(along, x_part, lateral, n)
        store(by_v, _combine(S, grad_part, v_by_p, p, one, half, BY_V.dtype.element_ty), columns)
        store(by_x, _combine(x_by_grad, grad_part, x_by_p, p, one, half, BY_X.dtype.element_ty), columns)
    store_scalars(BY_CURV, slope * (across_sq + along_sq / A2) / c * half * half, tile)
    x_norm, n_norm = tl.sqrt(x_sq), tl.sqrt(n_sq)
    rows = Rows(grad, x, v, grad_norm, x_norm, n_norm, coarse, fine, half)
    _saturate(by_v, S, v_by_p * along, v_by_p * lateral, rows, tile, D)
    _saturate(by_x, x_by_grad, x_by_p * along, x_by_p * lateral, rows, tile, D)


class Rows(NamedTuple):
    """Rows that gradients of a map of two points combine: ``grad``, ``x``, ``n``, times ``half**2``."""

    grad: tl.tensor
    x: tl.tensor
    y: tl.tensor
    grad_norm: tl.tensor
    x_norm: tl.tensor
    n_norm: tl.tensor
    coarse: tl.tensor
    fine: tl.tensor
    half: tl.tensor


@triton.jit
def _saturate(out, by_grad, by_x, by_n, rows, tile, D: tl.constexpr):
    bound = tl.abs(by_grad) * rows.grad_norm + tl.abs(by_x) * rows.x_norm + tl.abs(by_n) * rows.n_norm
    terms = (by_grad, by_x, by_n, rows)
    saturate(out, bound * rows.half * rows.half, 1.0, rows.half, terms, _of_map, tile, D)


@triton.jit
def _of_map(terms, factor, columns):
    by_grad, by_x, by_n, rows = terms
    x_part = load(rows.x, columns)
    n = across(rows.coarse, rows.fine, x_part, load(rows.y, columns))
    along = combine(factor * by_x, x_part, factor * by_n, n)
    return tl.fma((factor * by_grad)[:, None], load(rows.grad, columns), along)


@row_kernel
def _log_map_forward(
    X,
    x_outer,
    x_inner,
    Y,
    y_outer,
    y_inner,
    OUT,
    CURV,
    curv_outer,
    curv_inner,
    outer_size,
    inner_size,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    tile = row_tile(outer_size, inner_size, ROWS)
    x, y = input_rows(X, x_outer, x_inner, tile), input_rows(Y, y_outer, y_inner, tile)
    c = scalar_of_rows(CURV, curv_outer, curv_inner, tile)
    pair = pair_geometry(x, y, c, tile, D, BLOCK_D)
    f = asinhc(tl.sqrt(pair.z * (pair.z + 2.0)))
    by_x, by_n = f * pair.A * pair.W, tl.where(pair.N2 > 0.0, f, 0.0)
    out = output_rows(OUT, tile, D)
    for start in range(0, D, BLOCK_D):
        columns = columns_from(start, tile, D, BLOCK_D)
        x_part = load(x, columns)
        n = across(pair.coarse, pair.fine, x_part, load(y, columns))
        store(out, combine(by_x, x_part, by_n, n), columns)


@row_kernel
def _log_map_backward(
    GRAD,
    grad_outer,
    grad_inner,
    X,
    x_outer,
    x_inner,
    Y,
    y_outer,
    y_inner,
    BY_X,
    BY_Y,
    BY_CURV,
    CURV,
    curv_outer,
    curv_inner,
    outer_size,
    inner_size,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    tile = row_tile(outer_size, inner_size, ROWS)
    grad = input_rows(GRAD, grad_outer, grad_inner, tile)
    x, y = input_rows(X, x_outer, x_inner, tile), input_rows(Y, y_outer, y_inner, tile)
    c = scalar_of_rows(CURV, curv_outer, curv_inner, tile)
    pair = pair_geometry(x, y, c, tile, D, BLOCK_D)
    x_grad, n_grad, grad_sq = zeros(tile, BLOCK_D), zeros(tile, BLOCK_D), zeros(tile, BLOCK_D)
    for start in range(0, D, BLOCK_D):
        columns = columns_from(start, tile, D, BLOCK_D)
        x_part, grad_part = load(x, columns), load(grad, columns)
        x_grad += x_part * grad_part
        grad_sq += grad_part * grad_part
        n_grad += across(pair.coarse, pair.fine, x_part, load(y, columns)) * grad_part
    x_grad, n_grad = tl.sum(x_grad, axis=1), tl.sum(n_grad, axis=1)
    grad_norm = tl.sqrt(tl.sum(grad_sq, axis=1))
    z, A, B, W = pair.z, pair.A, pair.B, pair.W
    sinh_d = tl.sqrt(z * (z + 2.0))
    f, slope = asinhc(sinh_d), (1.0 + z) * asinhc_slope(sinh_d)
    by_z = slope * (A * W * x_grad + n_grad) - f * x_grad
    z_by_c = (W * W * pair.P2 + A * A * pair.N2) / (2.0 * c * A * B)
    through_z = along_z(pair, by_z, by_z * z_by_c)
    x_by_grad = -f * (1.0 + z)
    by_x, by_y = output_rows(BY_X, tile, D), output_rows(BY_Y, tile, D)
    for start in range(0, D, BLOCK_D):
        columns = columns_from(start, tile, D, BLOCK_D)
        x_part, grad_part = load(x, columns), load(grad, columns)
        n = across(pair.coarse, pair.fine, x_part, load(y, columns))
        x_through_z = combine(through_z.x_by_x, x_part, through_z.x_by_n, n)
        y_through_z = combine(through_z.y_by_x, x_part, through_z.y_by_n, n)
        store(by_x, tl.fma(x_by_grad[:, None], grad_part, x_through_z), columns)
        store(by_y, tl.fma(f[:, None], grad_part, y_through_z), columns)
    store_scalars(BY_CURV, through_z.curv, tile)
    x_norm, n_norm, one = tl.sqrt(pair.x_sq), tl.sqrt(pair.n_sq), f * 0.0 + 1.0
    rows = Rows(grad, x, y, grad_norm, x_norm, n_norm, pair.coarse, pair.fine, one)
    _saturate(by_x, x_by_grad, through_z.x_by_x, through_z.x_by_n, rows, tile, D)
    _saturate(by_y, f, through_z.y_by_x, through_z.y_by_n, rows, tile, D)


def aot_variants() -> Iterator[Variant]:
    yield from op_variants(__name__, "exp_map0", points=1)
    yield from op_variants(__name__, "scaled_exp_map0", points=1, scalars=2)
    yield from op_variants(__name__, "log_map0", points=1)
    yield from op_variants(__name__, "exp_map", points=2)
    yield from op_variants(__name__, "log_map", points=2, configurations=ALL_CONFIGURATIONS)
