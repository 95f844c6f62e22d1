"""Sizes for the kernels of all pairs: tiles by GPU architecture, blocks by the workspace."""

from __future__ import annotations

import math
import os
from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hypkernels.tritonlib.device_limits import TARGETS

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
WORKSPACE_BYTES = 256 << 20
# A device computes some hundred programs at a time: with fewer than this it would wait long for the last
# ones.
_LEAST_PROGRAMS = 2048


class Tile(NamedTuple):
    """One program computes ``rows x columns`` pairs, their products ``depth_bytes`` of a point at a time.

    Rows and columns are multiples of 32.

    - ``pieces``: parts into which the columns are split after the product, to need fewer registers.
    - ``group``: rows of tiles that are computed side by side, for the cache.
    - ``run``: the most tiles below each other that one program computes.
    - ``kept_rows``: partial sums of a column that stay in registers until the run ends. Eight for each
      warp where a thread has several rows; 0: one for every row; 1: a single one, where registers do not
      suffice.
    """

    rows: int
    columns: int
    depth_bytes: int
    warps: int
    stages: int
    pieces: int = 1
    group: int = 8
    run: int = 16
    kept_rows: int = 0

    @property
    def kept(self) -> int:
        """``kept_rows`` in numbers: at most all rows."""
        return min(self.kept_rows or self.rows, self.rows)


class Plan(NamedTuple):
    """Tiles of the kernels: ``forward``, ``separate`` for its second launch, ``backward``, ``product``.

    ``inline_ptx``: whether the kernels may contain NVIDIA's assembly.
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


def _tile(rows: int, columns: int, warps: int, pieces: int = 1) -> Tile:
    return Tile(rows, columns, 128, warps, stages=3, pieces=pieces)


def _amd_tile(rows: int, columns: int, pieces: int = 1) -> Tile:
    """A tile for half the shared memory."""
    return Tile(rows, columns, 64, warps=8, stages=2, pieces=pieces)


class _Table(NamedTuple):
    """Plans of one architecture, in the order of the registers that the kernels need.

    ``bfloat16``: distances of bfloat16 points. ``half``: distances of float16 points, whose weights are
    wider, and squared distances and inner products of both. ``float32``: these of float32 points.
    ``angle``: angles of all.
    """

    bfloat16: Plan
    half: Plan
    float32: Plan
    angle: Plan


_WIDE, _NARROW = _tile(128, 128, 8, pieces=4), _tile(128, 64, 8, pieces=4)
_FEW_WARPS = _tile(128, 128, 4, pieces=4)
_HIGH = _tile(256, 128, 8, pieces=16)  # a quarter fewer bytes from L2 for each pair
_EIGHT_PIECES = _NARROW._replace(pieces=8)
_PRODUCT = _tile(128, 128, 8)
_SPLIT_PRODUCT = _PRODUCT._replace(depth_bytes=64, stages=2)  # float32 operands are split in registers
_SMALL_SPLIT_PRODUCT = _SPLIT_PRODUCT._replace(rows=64, warps=4)  # the larger one spills registers
_FLOAT32 = _HALF = Plan(_WIDE, _WIDE, _NARROW, _PRODUCT, inline_ptx=True)
_ANGLE = Plan(_NARROW, _NARROW, _tile(64, 64, 4, pieces=8)._replace(stages=2), _PRODUCT, inline_ptx=True)


def _spread(table: _Table, row_warps: int, together: Collection[str]) -> _Table:
    """A table with ``kept_rows`` for matrix units that give a thread several rows: mma.sync and wgmma.

    tcgen05 and v_mfma give it one row. Backward passes of the plans named ``together`` have registers
    for the sums of all columns of a tile.
    """

    def kept(tile: Tile) -> Tile:
        return tile._replace(kept_rows=8 * min(tile.warps, row_warps))

    plans = {
        name: plan._replace(
            forward=kept(plan.forward),
            backward=kept(plan.backward) if name in together else plan.backward._replace(kept_rows=1),
        )
        for name, plan in table._asdict().items()
    }
    return _Table(**plans)


_AMD_PRODUCT = _amd_tile(128, 128)
_AMD = Plan(
    _amd_tile(128, 128, pieces=2)._replace(kept_rows=32),
    _amd_tile(128, 128, pieces=2),
    _amd_tile(128, 128, pieces=8)._replace(kept_rows=1),
    _AMD_PRODUCT,
    inline_ptx=False,
)
_AMD_ANGLE = Plan(*(_amd_tile(128, 64, pieces=4),) * 3, _AMD_PRODUCT, inline_ptx=False)
_SMALL = Tile(32, 32, 128, warps=4, stages=1)
_INTERPRETER = Plan(_SMALL, _SMALL, _SMALL, _SMALL, inline_ptx=False)

_TABLES = {
    "interpreter": _Table(*(_INTERPRETER,) * 4),
    "sm_80": _Table(
        bfloat16=Plan(_WIDE, _WIDE, _tile(128, 64, 4, pieces=8), _PRODUCT, inline_ptx=True),
        half=_HALF,
        float32=Plan(_NARROW, _NARROW, _NARROW._replace(depth_bytes=64), _SPLIT_PRODUCT, inline_ptx=True),
        angle=Plan(
            _NARROW._replace(stages=2),
            _NARROW._replace(stages=2),
            Tile(64, 64, 64, warps=8, stages=2, pieces=4),
            _SPLIT_PRODUCT,
            inline_ptx=True,
        ),
    ),
    "sm_90": _Table(
        bfloat16=Plan(_HIGH, _FEW_WARPS, _FEW_WARPS._replace(pieces=16), _PRODUCT, inline_ptx=True),
        half=Plan(_HIGH, _FEW_WARPS, _WIDE, _PRODUCT, inline_ptx=True),
        float32=_FLOAT32,
        angle=_ANGLE,
    ),
    "sm_100": _Table(
        bfloat16=Plan(_WIDE, _WIDE, _FEW_WARPS._replace(pieces=16), _PRODUCT, inline_ptx=True),
        half=Plan(_WIDE, _WIDE, _WIDE, _PRODUCT, inline_ptx=True),
        float32=_FLOAT32._replace(forward=_WIDE._replace(pieces=8, kept_rows=1)),
        angle=_ANGLE._replace(forward=_EIGHT_PIECES._replace(kept_rows=1)),
    ),
    "sm_120": _Table(
        bfloat16=_HALF._replace(backward=_WIDE._replace(pieces=16)),
        half=_HALF._replace(backward=_WIDE._replace(pieces=8)),
        float32=Plan(
            _NARROW._replace(depth_bytes=64),
            _EIGHT_PIECES,
            _NARROW._replace(depth_bytes=64),
            _SMALL_SPLIT_PRODUCT,
            inline_ptx=True,
        ),
        angle=Plan(
            _NARROW._replace(depth_bytes=64, stages=2),
            _EIGHT_PIECES._replace(stages=2),
            Tile(64, 64, 64, warps=4, stages=2, pieces=16),
            _SMALL_SPLIT_PRODUCT,
            inline_ptx=True,
        ),
    ),
    "gfx942": _Table(*(_AMD,) * 3, angle=_AMD_ANGLE),
}
# ``row_warps``: the most warps over which a matrix unit spreads the rows of a tile.
_TABLES |= {
    "sm_80": _spread(_TABLES["sm_80"], row_warps=4, together={"bfloat16"}),
    "sm_90": _spread(_TABLES["sm_90"], row_warps=8, together={"bfloat16"}),
    "sm_120": _spread(_TABLES["sm_120"], row_warps=4, together={"bfloat16", "half"}),
}


# Other tiles for pairwise functions: their backward pass reads a gradient of each pair into registers.
_PAIRWISE: dict[tuple[str, str], dict[str, Any]] = {
    ("sm_90", "angle"): {"forward": _EIGHT_PIECES},  # with four, Triton 3.8 needs a stack
    ("sm_100", "half"): {"backward": _EIGHT_PIECES},  # with four, Triton 3.6 spills
    ("sm_100", "float32"): {"backward": _EIGHT_PIECES},
    ("sm_120", "half"): {"backward": _EIGHT_PIECES},  # distances take 115 registers: two blocks an SM
    ("sm_120", "angle"): {"backward": Tile(64, 64, 64, warps=4, stages=2, pieces=8)},
    ("gfx942", "half"): {"backward": _amd_tile(128, 128, pieces=4)},
    ("gfx942", "float32"): {"backward": _amd_tile(128, 128, pieces=4)},
}


def plan_for(target: str, dtype: torch.dtype, similarity: str) -> Plan:
    """The loss's plan for an architecture as :mod:`hypkernels.tritonlib.device_limits` names it."""
    table = _TABLES[target]
    if similarity == "angle":
        return table.angle
    if dtype == torch.float32:
        return table.float32
    return table.bfloat16 if (dtype, similarity) == (torch.bfloat16, "dist") else table.half


def pairwise_plan_for(target: str, dtype: torch.dtype, similarity: str) -> Plan:
    """The plan for a pairwise function, whose forward pass sums nothing."""
    plan = plan_for(target, dtype, similarity)
    plan = plan._replace(forward=plan.separate)
    if similarity == "angle":
        return plan._replace(**_PAIRWISE.get((target, "angle"), {}))
    kind = "float32" if dtype == torch.float32 else "half"
    tiles = {"backward": _TABLES[target].float32.backward, **_PAIRWISE.get((target, kind), {})}
    return plan._replace(**tiles)


def default_plan(points: Tensor, similarity: str) -> Plan:
    """The loss's plan for the device of ``points``."""
    return plan_for(_target(points.device), points.dtype, similarity)


def default_pairwise_plan(points: Tensor, similarity: str) -> Plan:
    return pairwise_plan_for(_target(points.device), points.dtype, similarity)


def _target(device: torch.device) -> str:
    if device.type != "cuda":
        return "interpreter"
    if torch.version.hip is not None:
        return "gfx942"
    gpu: Any = torch.cuda.get_device_properties(device)  # PyTorch's stubs do not know all of them
    return target_of(gpu.major, gpu.shared_memory_per_block_optin)


def target_of(major: int, shared_memory: int) -> str:
    """The newest target that is not newer than an NVIDIA GPU and needs no more shared memory than it
    has.

    Consumers' Blackwell, 12, is newer than sm_100 and has less shared memory. That a plan stays within
    its target's limit is checked when it is compiled.
    """
    return max(
        (
            name
            for name, target in TARGETS.items()
            if isinstance(target.architecture, int)
            and target.architecture <= 10 * major
            and target.shared_memory <= shared_memory
        ),
        key=lambda name: TARGETS[name].architecture,
    )


def blocks(rows: int, columns: int, tile: Tile, pair_bytes: float, workspace_bytes: int) -> list[Block]:
    """All pairs, in blocks of whole tiles whose workspace is within bounds; one tile at least.

    Blocks are as square as the pairs allow: the gradients that a block adds to are as long as its edges.
    """
    most = workspace_bytes / pair_bytes
    edge = math.sqrt(most)
    least_height = min(rows, edge) // tile.rows * tile.rows
    widest = (1 << 31) // tile.rows  # within a tile, the kernels count in 32 bits
    width = _even_part(columns, min(most / max(least_height, tile.rows), widest), tile.columns)
    height = _even_part(rows, most / width, tile.rows)
    return [
        Block(slice(i, min(i + height, rows)), slice(j, min(j + width, columns)))
        for i in range(0, rows, height)
        for j in range(0, columns, width)
    ]


def run_of_tiles(tile: Tile, block: Block) -> int:
    """How many tiles below each other one program computes; one if there are few tiles.

    All runs are of about the same length, so that programs end at the same time.
    """
    height, width = -(-block.height // tile.rows), -(-block.width // tile.columns)
    longest = max(1, min(tile.run, height * width // _LEAST_PROGRAMS))
    return max(1, -(-height // max(-(-height // longest), 1)))


def _even_part(total: int, most: float, multiple: int) -> int:
    """The largest of equal parts of ``total``, none above ``most``, in multiples."""
    whole = max(int(most) // multiple, 1) * multiple
    parts = max(-(-total // whole), 1)
    return max(-(-total // (parts * multiple)), 1) * multiple
