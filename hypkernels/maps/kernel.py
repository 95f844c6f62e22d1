"""Triton kernels of the maps: the formulas of :mod:`hypkernels.maps.closed_form` on the rows of a tile.

Every tensor is read once and written once; the backward kernels recompute from the inputs. A kernel stores
each row's share of the gradient by a scalar; the second stage of that sum is PyTorch's, in a fixed order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hypkernels.tritonlib import launch
from hypkernels.tritonlib.manifest import Variant
from hypkernels.tritonlib.pair_geometry import across, along_z, pair_geometry, split_along
from hypkernels.tritonlib.row_kernels import ALL_CONFIGURATIONS, op_variants, total_or_each
from hypkernels.tritonlib.rows import (
    columns_from,
    combine,
    dot,
    input_rows,
    load,
    output_rows,
    row_kernel,
    row_tile,
    scalar_of_rows,
    store,
    store_scalars,
    zeros,
)
from hypkernels.tritonlib.scalar_math import asinh, asinhc, asinhc_slope, cosh, sinh, sinhc, sinhc_slope


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
    grad: Tensor, x: Tensor, scale: Tensor | None, curv: Tensor, *, EXPONENTIAL: bool  # noqa: N803
) -> tuple[Tensor, ...]:
    """By ``x``, by the scale if there is one, and by the curvature."""
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
    f, _, half = _radial_factors(tl.sqrt(c) * norm * tl.abs(scale) * unit, EXPONENTIAL)
    out = output_rows(OUT, tile, D)
    for start in range(0, D, BLOCK_D):
        columns = columns_from(start, tile, D, BLOCK_D)
        if X.dtype.element_ty == tl.float64:
            value = load(x, columns) * scale * f[:, None] * half[:, None] * half[:, None]
        else:
            value = finite(scale * f)[:, None] * load(x, columns)
        store(out, value, columns)


@triton.jit
def _scale(SCALE, scale_outer, scale_inner, tile):
    """No ``SCALE`` is 1."""
    if SCALE is None:
        return tl.full((), 1.0, tl.float64)
    else:
        return scalar_of_rows(SCALE, scale_outer, scale_inner, tile)


@triton.jit
def _radial_factors(t, EXPONENTIAL: tl.constexpr):
    """``f(t)``, ``t f'(t)``, both over ``half**2``, and ``half``."""
    if EXPONENTIAL:
        cap, half = capped(t)
        return capped_sinhc(t, cap), capped_stretch(t, cap), half
    else:
        return asinhc(t), asinhc_stretch(t), t * 0.0 + 1.0


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
    v_norm = norm * tl.abs(scale) * unit
    t = tl.sqrt(c) * norm * tl.abs(scale) * unit
    f, stretch, half = _radial_factors(t, EXPONENTIAL)
    along_grad, along_x = finite(scale * f), finite(scale * stretch * ratio(ratio(x_grad, norm), norm))
    out = BY_X.dtype.element_ty
    bound = tl.abs(along_grad) * tl.sqrt(grad_sq) + tl.abs(along_x) * norm
    if any_row(bound * half * half > largest_number(out)):
        peak = zeros(tile, BLOCK_D)
        for start in range(0, D, BLOCK_D):
            columns = columns_from(start, tile, D, BLOCK_D)
            x_part = load_in_units(x, unit, columns)
            peak = tl.maximum(peak, tl.abs(combine(along_grad, load(grad, columns), along_x, x_part)))
        shrink, half = saturation(tl.max(peak, axis=1), half, out)
        along_grad, along_x = along_grad * shrink, along_x * shrink
    by_x = output_rows(BY_X, tile, D)
    for start in range(0, D, BLOCK_D):
        columns = columns_from(start, tile, D, BLOCK_D)
        value = combine(along_grad, load(grad, columns), along_x, load_in_units(x, unit, columns))
        if out == tl.float64:
            value = value * half[:, None] * half[:, None]
        store(by_x, value, columns)
    v_grad = scale * (x_grad * unit)
    by_curv = tl.where(t < 1.0, stretch * ratio(v_norm, t) * ratio(v_norm, t), stretch / c)
    store_scalars(BY_CURV, 0.5 * by_curv * v_grad * half * half, tile)
    if SCALE is not None:
        store_scalars(BY_SCALE, (f + stretch) * (x_grad * unit) * half * half, tile)


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
    alpha, P2, across_sq = coarse + fine, c * x_sq, c * n_sq
    along_sq = alpha * alpha * P2 / (1.0 + P2)
    P, tau = tl.sqrt(P2), tl.sqrt(along_sq + across_sq)
    S = sinhc(tau)
    detour = tl.sqrt(1.0 + P2) * S * across_sq / (tau + tl.sqrt(along_sq))
    inward = (sinh(asinh(P) - tau) + detour) / P
    by_x = tl.where(alpha < 0.0, inward, cosh(tau) + alpha * S)
    by_n = tl.where(across_sq > 0.0, S, 0.0)
    out = output_rows(OUT, tile, D)
    for start in range(0, D, BLOCK_D):
        columns = columns_from(start, tile, D, BLOCK_D)
        x_part = load(x, columns)
        n = across(coarse, fine, x_part, load(v, columns))
        store(out, combine(by_x, x_part, by_n, n), columns)


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
    x_sq, coarse, fine, n_sq = split_along(x, v, tile, D, BLOCK_D)
    alpha, P2, across_sq = coarse + fine, c * x_sq, c * n_sq
    A2 = 1.0 + P2
    along_sq = alpha * alpha * P2 / A2
    tau = tl.sqrt(along_sq + across_sq)
    S = sinhc(tau)
    slope = 0.5 * (S * x_grad + sinhc_slope(tau) * v_grad)
    v_by_p = 2.0 * c * slope
    x_by_grad, x_by_p = cosh(tau), -v_by_p * alpha * P2 / A2
    by_x, by_v = output_rows(BY_X, tile, D), output_rows(BY_V, tile, D)
    for start in range(0, D, BLOCK_D):
        columns = columns_from(start, tile, D, BLOCK_D)
        x_part, grad_part = load(x, columns), load(grad, columns)
        n = across(coarse, fine, x_part, load(v, columns))
        p = tl.fma((alpha / A2)[:, None], x_part, n)
        store(by_v, combine(S, grad_part, v_by_p, p), columns)
        store(by_x, combine(x_by_grad, grad_part, x_by_p, p), columns)
    store_scalars(BY_CURV, slope * (across_sq + along_sq / A2) / c, tile)


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
    x_grad, n_grad = zeros(tile, BLOCK_D), zeros(tile, BLOCK_D)
    for start in range(0, D, BLOCK_D):
        columns = columns_from(start, tile, D, BLOCK_D)
        x_part, grad_part = load(x, columns), load(grad, columns)
        x_grad += x_part * grad_part
        n_grad += across(pair.coarse, pair.fine, x_part, load(y, columns)) * grad_part
    x_grad, n_grad = tl.sum(x_grad, axis=1), tl.sum(n_grad, axis=1)
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


def aot_variants() -> Iterator[Variant]:
    yield from op_variants(__name__, "exp_map0", points=1)
    yield from op_variants(__name__, "scaled_exp_map0", points=1, scalars=2)
    yield from op_variants(__name__, "log_map0", points=1)
    yield from op_variants(__name__, "exp_map", points=2)
    yield from op_variants(__name__, "log_map", points=2, configurations=ALL_CONFIGURATIONS)
