"""Products of matrices whose precision no global setting changes, and their operands.

The precision of PyTorch's products of float32 matrices depends on settings of the process.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hypkernels.tritonlib.launch import allocate, launch_rows
from hypkernels.tritonlib.pair_tiles import matrix_of_program, round_to_tf32, tile_of_program
from hypkernels.tritonlib.rows import columns_from, input_rows, output_rows, row_kernel, row_tile
from hypkernels.tritonlib.tile_plan import INTERPRETED, Tile

# The error of a product of two points, relative to the product of their norms.
RESOLUTION = {"ieee": 16 * 2.0**-23, "tf32x3": 16 * 2.0**-23, "tf32": 2.0**-12}


@row_kernel
def nearest_tf32(
    X,
    x_outer,
    x_inner,
    OUT,
    outer_size,
    inner_size,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    tile = row_tile(outer_size, inner_size, ROWS)
    x, out = input_rows(X, x_outer, x_inner, tile), output_rows(OUT, tile, D)
    for start in range(0, D, BLOCK_D):
        columns = columns_from(start, tile, D, BLOCK_D)
        value = tl.load(x + columns.index, mask=columns.mask, other=0.0)
        tl.store(out + columns.index, round_to_tf32(value), mask=columns.mask)


@triton.jit
def add_product(
    A,
    B,
    OUT,
    M,
    N,
    K,
    a_row,
    a_column,
    b_row,
    out_row,
    a_matrix,
    b_matrix,
    out_matrix,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """``OUT += A @ B`` in float32 for each matrix of a batch, for any strides of ``A``."""
    matrix, program = matrix_of_program(M, N, BLOCK_M, BLOCK_N)
    A += matrix * a_matrix
    B += matrix * b_matrix
    OUT += matrix * out_matrix
    i, j = tile_of_program(program, M, N, BLOCK_M, BLOCK_N, GROUP)
    row = i * BLOCK_M + tl.arange(0, BLOCK_M)
    column = j * BLOCK_N + tl.arange(0, BLOCK_N)
    row_at, column_at = tl.minimum(row, M - 1).to(tl.int64), tl.minimum(column, N - 1)
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a_at = row_at[:, None] * a_row + k[None, :].to(tl.int64) * a_column
        b_at = k[:, None].to(tl.int64) * b_row + column_at[None, :]
        a = tl.load(A + a_at, mask=(k < K)[None, :], other=0.0)
        b = tl.load(B + b_at, mask=(k < K)[:, None], other=0.0)
        if UPCAST or A.dtype.element_ty != B.dtype.element_ty:
            a, b = a.to(tl.float32), b.to(tl.float32)
        total = tl.dot(a, b, total, input_precision=PRECISION)
    at = row[:, None].to(tl.int64) * out_row + column[None, :]
    mask = (row < M)[:, None] & (column < N)[None, :]
    tl.store(OUT + at, tl.load(OUT + at, mask=mask) + total, mask=mask)


def precision_of(points: Tensor, asked: str | None) -> str:
    """The precision of products of float32 points; products of narrower points are exact."""
    if points.dtype != torch.float32 or torch.version.hip is not None:
        return "ieee"
    if asked is not None:
        return asked
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def operand(points: Tensor, precision: str) -> Tensor:
    """Points with dense rows, rounded to tf32 if that is the precision."""
    if precision == "tf32":
        return rounded_to_tf32(points)
    return points if points.stride(-1) == 1 else points.contiguous()


def rounded_to_tf32(points: Tensor) -> Tensor:
    """Round to nearest, because matrix units only drop bits, which would bias every product."""
    out = allocate(points, points.shape, torch.float32)
    launch_rows(nearest_tf32, [points], [out])
    return out


def launch_product(out: Tensor, a: Tensor, b: Tensor, tile: Tile, precision: str) -> None:
    """``out += a @ b`` of each matrix: ``out`` is float32, rows of ``b`` and ``out`` have no gaps."""
    (matrices, rows, depth), columns = a.shape, b.shape[2]
    programs = matrices * triton.cdiv(rows, tile.rows) * triton.cdiv(columns, tile.columns)
    with torch.cuda.device_of(out):
        add_product[(programs,)](
            a,
            b,
            out,
            rows,
            columns,
            depth,
            a.stride(1),
            a.stride(2),
            b.stride(1),
            out.stride(1),
            a.stride(0),
            b.stride(0),
            out.stride(0),
            BLOCK_M=tile.rows,
            BLOCK_N=tile.columns,
            BLOCK_K=tile.depth_bytes // a.element_size(),
            GROUP=tile.group,
            PRECISION=precision,
            UPCAST=INTERPRETED,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
