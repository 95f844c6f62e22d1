#!/usr/bin/env bash
# What Triton makes of a NamedTuple that a kernel takes as a compile-time constant, or puts into another tuple.
#
# triton 3.6.0 and 3.8.0, compiled for a capability of 9.0, without a GPU.
#   a property of its class: compiles in 3.6.0; gone in 3.8.0, where the constant is a tuple that has the fields alone
#   a field: a plain Python value in 3.6.0, which tl.static_range refuses, and which no other function takes if it is a
#     string, until it is assigned to a name annotated as tl.constexpr; a constant in 3.8.0
#   a NamedTuple of tensors within a tuple that grows by +=, as the results of an unrolled loop do: its fields' names are
#     lost in 3.6.0, and kept in 3.8.0
# Expected before it was run: that a constant is what it was given as, its properties with it, in either version.
# Fails if any of it behaves otherwise.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/compile.py" <<'PY'
from typing import NamedTuple

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


class Tile(NamedTuple):
    rows: int
    pieces: int
    name: str

    @property
    def half(self):
        return self.rows // 2


class Pair(NamedTuple):
    value: tl.tensor
    square: tl.tensor


@triton.jit
def pair(x, NAME: tl.constexpr):
    return Pair(x, x * x)


@triton.jit
def of_a_property(OUT, TILE: tl.constexpr):
    tl.store(OUT + tl.arange(0, TILE.half), 1.0)


@triton.jit
def of_a_field(OUT, TILE: tl.constexpr):
    for piece in tl.static_range(TILE.pieces):
        tl.store(OUT + piece, 1.0)


@triton.jit
def of_an_annotated_field(OUT, TILE: tl.constexpr):
    PIECES: tl.constexpr = TILE.pieces
    for piece in tl.static_range(PIECES):
        tl.store(OUT + piece, 1.0)


@triton.jit
def of_a_string(OUT, TILE: tl.constexpr):
    tl.store(OUT, pair(tl.load(OUT), TILE.name).square)


@triton.jit
def of_a_growing_tuple(OUT, TILE: tl.constexpr):
    pairs = ()
    for piece in tl.static_range(2):
        pairs += (pair(tl.load(OUT + piece), "a"),)
    tl.store(OUT, pairs[0].square + pairs[1].square)


for kernel in (of_a_property, of_a_field, of_an_annotated_field, of_a_string, of_a_growing_tuple):
    source = ASTSource(kernel, {"OUT": "*fp32", "TILE": "constexpr"}, {(1,): Tile(32, 4, "a")}, {})
    try:
        triton.compile(source, target=GPUTarget("cuda", 90, 32))
        outcome = "compiles"
    except Exception as error:
        while error.__cause__ is not None:
            error = error.__cause__
        outcome = str(error).splitlines()[-1]
    print(f"{triton.__version__} {kernel.fn.__name__}: {outcome}")
PY
for version in 3.6.0 3.8.0; do
  python3 -m venv "$work/$version"
  "$work/$version/bin/pip" install -q "triton==$version" 'numpy==2.3.5' setuptools
  TRITON_CACHE_DIR="$work/cache" "$work/$version/bin/python" "$work/compile.py" 2> /dev/null | tee -a "$work/seen"
done
diff "$work/seen" - <<'SEEN'
3.6.0 of_a_property: compiles
3.6.0 of_a_field: AssertionError('4 used as tl.static_range start value is not a constexpr')
3.6.0 of_an_annotated_field: compiles
3.6.0 of_a_string: AttributeError("'str' object has no attribute 'type'")
3.6.0 of_a_growing_tuple: ValueError("'square' is not in list")
3.8.0 of_a_property: AttributeError("'tuple' object has no attribute half")
3.8.0 of_a_field: compiles
3.8.0 of_an_annotated_field: compiles
3.8.0 of_a_string: compiles
3.8.0 of_a_growing_tuple: compiles
SEEN
