"""Sizes for the kernels of the contrastive loss: tiles by GPU architecture, blocks by the workspace."""

from __future__ import annotations

import math
import os
from typing import NamedTuple

import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
WORKSPACE_BYTES = 256 << 20


class Tile(NamedTuple):
    """One program computes ``rows x columns`` pairs, their products ``depth_bytes`` of a point at a time.

    ``pieces``: into how many the columns are split after the product, to need fewer registers. ``group``: how
    many rows of tiles are computed side by side, for the cache.
    """

    rows: int
    columns: int
    depth_bytes: int
    warps: int
    stages: int
    pieces: int = 1
    group: int = 8


class Plan(NamedTuple):
    """Tiles of the kernels: ``forward``, and ``separate`` where it is not safe; ``backward``; ``product``.

    ``inline_ptx``: whether the kernels may use instructions of NVIDIA's.
    """

    forward: Tile
    separate: Tile
    backward: Tile
    product: Tile
    inline_ptx: bool
    workspace_bytes: int = WORKSPACE_BYTES


class Block(NamedTuple):
    """Pairs that are computed by one launch."""

    rows: slice
    columns: slice

    @property
    def height(self) -> int:
        return self.rows.stop - self.rows.start

    @property
    def width(self) -> int:
        return self.columns.stop - self.columns.start


_PLANS = {
    "interpreter": Plan(*(Tile(32, 32, 128, warps=4, stages=1),) * 4, inline_ptx=False),
    "sm_80": Plan(
        forward=Tile(128, 128, 128, warps=8, stages=3, pieces=4),
        separate=Tile(128, 128, 128, warps=8, stages=3, pieces=4),
        backward=Tile(128, 64, 128, warps=8, stages=3, pieces=4),
        product=Tile(128, 128, 128, warps=8, stages=3),
        inline_ptx=True,
    ),
    "sm_90": Plan(
        forward=Tile(128, 128, 128, warps=4, stages=3, pieces=4),
        separate=Tile(128, 128, 128, warps=8, stages=3, pieces=4),
        backward=Tile(128, 128, 128, warps=8, stages=3, pieces=4),
        product=Tile(128, 128, 128, warps=8, stages=3),
        inline_ptx=True,
    ),
    "sm_100": Plan(
        forward=Tile(128, 128, 128, warps=8, stages=3, pieces=4),
        separate=Tile(128, 128, 128, warps=8, stages=3, pieces=4),
        backward=Tile(128, 128, 128, warps=8, stages=3, pieces=4),
        product=Tile(128, 128, 128, warps=8, stages=3),
        inline_ptx=True,
    ),
    "gfx942": Plan(
        forward=Tile(128, 128, 64, warps=8, stages=2, pieces=2),
        separate=Tile(128, 128, 64, warps=8, stages=2, pieces=2),
        backward=Tile(128, 128, 64, warps=8, stages=2, pieces=4),
        product=Tile(128, 128, 64, warps=8, stages=2),
        inline_ptx=False,
    ),
}


def plan_for(target: str) -> Plan:
    """For an architecture as :mod:`hypkernels.tritonlib.device_limits` names it."""
    return _PLANS[target]


def default_plan(points: Tensor) -> Plan:
    """For the device of ``points``."""
    if points.device.type != "cuda":
        return plan_for("interpreter")
    if torch.version.hip is not None:
        return plan_for("gfx942")
    major, _ = torch.cuda.get_device_capability(points.device)
    return plan_for("sm_100" if major >= 10 else "sm_90" if major == 9 else "sm_80")


def blocks(rows: int, columns: int, tile: Tile, pair_bytes: float, workspace_bytes: int) -> list[Block]:
    """All pairs, in blocks of whole tiles whose workspace is within bounds: one tile at least.

    As square as the pairs allow: what a block adds to the gradients is as long as its edges.
    """
    most = workspace_bytes / pair_bytes
    edge = math.sqrt(most)
    width = _even_part(columns, max(edge, most / max(rows, 1)), tile.columns)
    height = _even_part(rows, most / width, tile.rows)
    return [
        Block(slice(i, min(i + height, rows)), slice(j, min(j + width, columns)))
        for i in range(0, rows, height)
        for j in range(0, columns, width)
    ]


def _even_part(total: int, most: float, multiple: int) -> int:
    """The largest of equal parts of ``total``, none above ``most``, in multiples."""
    whole = max(int(most) // multiple, 1) * multiple
    parts = max(-(-total // whole), 1)
    return max(-(-total // (parts * multiple)), 1) * multiple
