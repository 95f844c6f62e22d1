#!/usr/bin/env bash
# What do_not_specialize does to a tuple that a Triton kernel takes: nothing. A kernel is compiled for the numbers within.
#
# triton 3.6.0, 3.8.0 and 3.9.0, what a launch looks a binary up by, without a GPU.
#   a number named in do_not_specialize: the same key for 1, 48 and 50
#   numbers in a tuple that is named there: a constant for 1, an integer divisible by 16 for 48, an integer for 50: three keys
#   the same in a NamedTuple
# Expected before it was run: that what an argument holds is not specialised either, so that sizes of a batch can be grouped.
# Fails if any of it behaves otherwise.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/keys.py" <<'PY'
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import create_function_from_signature


class Sizes(NamedTuple):
    rows: int


@triton.jit(do_not_specialize=["size"])
def kernel(size):
    pass


bind = create_function_from_signature(kernel.signature, kernel.params, make_backend(GPUTarget("cuda", 90, 32)))
for name, make in (("number", int), ("tuple", lambda rows: (rows,)), ("named tuple", Sizes)):
    keys = [bind(make(rows))[1] for rows in (1, 48, 50)]
    print(f"{triton.__version__} {name}: {len({str(key) for key in keys})} of 3")
PY
for version in 3.6.0 3.8.0 3.9.0; do
  python3 -m venv "$work/$version"
  "$work/$version/bin/pip" install -q "triton==$version" 'numpy==2.3.5' setuptools
  "$work/$version/bin/python" "$work/keys.py" | tee -a "$work/seen"
done
diff "$work/seen" - <<'SEEN'
3.6.0 number: 1 of 3
3.6.0 tuple: 3 of 3
3.6.0 named tuple: 3 of 3
3.8.0 number: 1 of 3
3.8.0 tuple: 3 of 3
3.8.0 named tuple: 3 of 3
3.9.0 number: 1 of 3
3.9.0 tuple: 3 of 3
3.9.0 named tuple: 3 of 3
SEEN
