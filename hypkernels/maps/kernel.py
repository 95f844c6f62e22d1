"""Triton kernels of the maps: the formulas of :mod:`hypkernels.maps.closed_form` on the rows of a tile.

Every tensor is read once and written once; the backward kernels recompute from the inputs. A kernel stores
each row's share of the gradient by a scalar; the second stage of that sum is PyTorch's, in a fixed order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from hypkernels.tritonlib import launch
from hypkernels.tritonlib.manifest import Variant
from hypkernels.tritonlib.pair_geometry import along_z, dot, pair_geometry, split_along
from hypkernels.tritonlib.row_kernels import ALL_CONFIGURATIONS, combine, op_variants
from hypkernels.tritonlib.rows import (
    load_rows,
    load_scalar,
    row_kernel,
    row_tile,
    store_rows,
    store_scalars,
)
from hypkernels.tritonlib.scalar_math import asinh, asinhc, asinhc_slope, cosh, sinh, sinhc, sinhc_slope


def exp_map0(v: Tensor, curv: Tensor) -> Tensor:
    return _map(_radial_forward, (v,), [None, curv], VALUE=sinhc)


def exp_map0_backward(grad: Tensor, v: Tensor, curv: Tensor) -> tuple[Tensor, ...]:
    return _map_backward(_radial_backward, grad, (v,), [None, None, curv], VALUE=sinhc, SLOPE=sinhc_slope)


def log_map0(x: Tensor, curv: Tensor) -> Tensor:
    return _map(_radial_forward, (x,), [None, curv], VALUE=asinhc)


def log_map0_backward(grad: Tensor, x: Tensor, curv: Tensor) -> tuple[Tensor, ...]:
    return _map_backward(_radial_backward, grad, (x,), [None, None, curv], VALUE=asinhc, SLOPE=asinhc_slope)


def scaled_exp_map0(x: Tensor, scale: Tensor, curv: Tensor) -> Tensor:
    return _map(_radial_forward, (x,), [scale, curv], VALUE=sinhc)


def scaled_exp_map0_backward(grad: Tensor, x: Tensor, scale: Tensor, curv: Tensor) -> tuple[Tensor, ...]:
    by_scale = launch.allocate(x, x.shape[:-1], torch.float64)
    by_x, by_curv = _map_backward(
        _radial_backward, grad, (x,), [by_scale, scale, curv], VALUE=sinhc, SLOPE=sinhc_slope
    )
    return by_x, by_scale.sum(), by_curv


def exp_map(x: Tensor, v: Tensor, curv: Tensor) -> Tensor:
    return _map(_exp_map_forward, (x, v), [curv])


def exp_map_backward(grad: Tensor, x: Tensor, v: Tensor, curv: Tensor) -> tuple[Tensor, ...]:
    return _map_backward(_exp_map_backward, grad, (x, v), [curv])


def log_map(x: Tensor, y: Tensor, curv: Tensor) -> Tensor:
    return _map(_log_map_forward, (x, y), [curv])


def log_map_backward(grad: Tensor, x: Tensor, y: Tensor, curv: Tensor) -> tuple[Tensor, ...]:
    return _map_backward(_log_map_backward, grad, (x, y), [curv])


def _map(kernel: Any, points: Sequence[Tensor], others: Sequence[Tensor | None], **functions: Any) -> Tensor:
    out = launch.allocate(points[0], points[0].shape, points[0].dtype)
    launch.launch_rows(kernel, points, [out, *others], **functions)
    return out


def _map_backward(
    kernel: Any, grad: Tensor, points: Sequence[Tensor], others: Sequence[Tensor | None], **functions: Any
) -> tuple[Tensor, ...]:
    grads = [launch.allocate(point, point.shape, point.dtype) for point in points]
    by_curv = launch.allocate(grad, grad.shape[:-1], torch.float64)
    launch.launch_rows(kernel, [grad, *points], [*grads, by_curv, *others], **functions)
    return (*grads, by_curv.sum())


@row_kernel
def _radial_forward(
    X,
    x_outer,
    x_inner,
    OUT,
    SCALE,
    CURV,
    inner_size,
    tiles,
    VALUE: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """``f(sqrt(c)|v|) v`` for ``v = scale x``; no ``SCALE`` is 1."""
    tile = row_tile(inner_size, tiles, D, ROWS, BLOCK_D)
    v = load_rows(X, x_outer, x_inner, tile)
    if SCALE is not None:
        v *= load_scalar(SCALE)
    t = tl.sqrt(load_scalar(CURV)) * tl.sqrt(dot(v, v))
    store_rows(OUT, VALUE(t)[:, None] * v, tile, D)


@row_kernel
def _radial_backward(
    GRAD,
    grad_outer,
    grad_inner,
    X,
    x_outer,
    x_inner,
    BY_X,
    BY_CURV,
    BY_SCALE,
    SCALE,
    CURV,
    inner_size,
    tiles,
    VALUE: tl.constexpr,
    SLOPE: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    tile = row_tile(inner_size, tiles, D, ROWS, BLOCK_D)
    grad = load_rows(GRAD, grad_outer, grad_inner, tile)
    v = load_rows(X, x_outer, x_inner, tile)
    if SCALE is not None:
        x_grad = dot(v, grad)
        scale = load_scalar(SCALE)
        v *= scale
    c = load_scalar(CURV)
    v_sq = dot(v, v)
    t = tl.sqrt(c) * tl.sqrt(v_sq)
    value = VALUE(t)
    alignment = SLOPE(t) * dot(v, grad)
    by_v = combine(value, grad, c * alignment, v)
    store_scalars(BY_CURV, 0.5 * alignment * v_sq, tile)
    if SCALE is not None:
        store_scalars(BY_SCALE, cosh(t) * x_grad, tile)
        by_v *= scale
    store_rows(BY_X, by_v, tile, D)


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
    inner_size,
    tiles,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    tile = row_tile(inner_size, tiles, D, ROWS, BLOCK_D)
    x = load_rows(X, x_outer, x_inner, tile)
    v = load_rows(V, v_outer, v_inner, tile)
    c = load_scalar(CURV)
    x_sq, alpha, _, n, n_sq = split_along(x, v)
    P2, across_sq = c * x_sq, c * n_sq
    along_sq = alpha * alpha * P2 / (1.0 + P2)
    P, tau = tl.sqrt(P2), tl.sqrt(along_sq + across_sq)
    S = sinhc(tau)
    detour = tl.sqrt(1.0 + P2) * S * across_sq / (tau + tl.sqrt(along_sq))
    inward = (sinh(asinh(P) - tau) + detour) / P
    along = tl.where(alpha < 0.0, inward, cosh(tau) + alpha * S)
    across = tl.where(across_sq > 0.0, S, 0.0)
    store_rows(OUT, combine(along, x, across, n), tile, D)


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
    inner_size,
    tiles,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    tile = row_tile(inner_size, tiles, D, ROWS, BLOCK_D)
    grad = load_rows(GRAD, grad_outer, grad_inner, tile)
    x = load_rows(X, x_outer, x_inner, tile)
    v = load_rows(V, v_outer, v_inner, tile)
    c = load_scalar(CURV)
    x_grad, v_grad = dot(x, grad), dot(v, grad)
    x_sq, alpha, _, n, n_sq = split_along(x, v)
    P2, across_sq = c * x_sq, c * n_sq
    A2 = 1.0 + P2
    along_sq = alpha * alpha * P2 / A2
    tau = tl.sqrt(along_sq + across_sq)
    S = sinhc(tau)
    slope = 0.5 * (S * x_grad + sinhc_slope(tau) * v_grad)
    p = tl.fma((alpha / A2)[:, None], x, n)
    by_p = 2.0 * c * slope
    store_scalars(BY_CURV, slope * (across_sq + along_sq / A2) / c, tile)
    store_rows(BY_V, combine(S, grad, by_p, p), tile, D)
    store_rows(BY_X, combine(cosh(tau), grad, -by_p * alpha * P2 / A2, p), tile, D)


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
    inner_size,
    tiles,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    tile = row_tile(inner_size, tiles, D, ROWS, BLOCK_D)
    x = load_rows(X, x_outer, x_inner, tile)
    pair = pair_geometry(x, load_rows(Y, y_outer, y_inner, tile), load_scalar(CURV))
    f = asinhc(tl.sqrt(pair.z * (pair.z + 2.0)))
    across = tl.where(pair.N2 > 0.0, f, 0.0)
    store_rows(OUT, combine(f * pair.A * pair.W, x, across, pair.n), tile, D)


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
    inner_size,
    tiles,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    tile = row_tile(inner_size, tiles, D, ROWS, BLOCK_D)
    grad = load_rows(GRAD, grad_outer, grad_inner, tile)
    x = load_rows(X, x_outer, x_inner, tile)
    c = load_scalar(CURV)
    pair = pair_geometry(x, load_rows(Y, y_outer, y_inner, tile), c)
    n, z, A, B, W = pair.n, pair.z, pair.A, pair.B, pair.W
    sinh_d = tl.sqrt(z * (z + 2.0))
    f, slope = asinhc(sinh_d), (1.0 + z) * asinhc_slope(sinh_d)
    x_grad = dot(x, grad)
    by_z = slope * (A * W * x_grad + dot(n, grad)) - f * x_grad
    z_by_c = (W * W * pair.P2 + A * A * pair.N2) / (2.0 * c * A * B)
    through_z = along_z(pair, by_z, by_z * z_by_c)
    store_scalars(BY_CURV, through_z.curv, tile)
    by_x = combine(through_z.x_by_x, x, through_z.x_by_n, n)
    store_rows(BY_X, tl.fma((-f * (1.0 + z))[:, None], grad, by_x), tile, D)
    by_y = combine(through_z.y_by_x, x, through_z.y_by_n, n)
    store_rows(BY_Y, tl.fma(f[:, None], grad, by_y), tile, D)


def aot_variants() -> Iterator[Variant]:
    yield from op_variants(__name__, "exp_map0", points=1)
    yield from op_variants(__name__, "scaled_exp_map0", points=1, scalars=2)
    yield from op_variants(__name__, "log_map0", points=1)
    yield from op_variants(__name__, "exp_map", points=2)
    yield from op_variants(__name__, "log_map", points=2, configurations=ALL_CONFIGURATIONS)
