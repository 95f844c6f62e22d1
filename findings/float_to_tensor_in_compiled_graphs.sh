#!/usr/bin/env bash
# A Python float that changes from call to call, turned into a tensor for a custom operator, in torch.compile.
#
# PyTorch 2.14.1, inductor, CPU. The second call makes the float dynamic. From then on
#   torch.full((), w), torch.scalar_tensor(w)   keep the value of the call that was compiled: silently wrong
#   torch.tensor(w)                             compiles again for every value, until the limit of 8
#   torch.ones(()) * w, torch.zeros(()) + w     right for every value, one graph
# Expected before it was run: the same for all five.
# Fails if any of them behaves otherwise.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q 'torch==2.14.1' 'numpy==2.3.5'
cat > "$work/floats.py" <<'PY'
import torch

print("torch", torch.__version__)


@torch.library.custom_op("finding::scaled", mutates_args=(), schema="(Tensor x, Tensor w) -> Tensor")
def scaled(x, w):
    return x * w.to(x.dtype)


scaled.register_fake(lambda x, w: torch.empty_like(x))
ways = {
    "full": lambda w: torch.full((), w, dtype=torch.float64),
    "scalar_tensor": lambda w: torch.scalar_tensor(w, dtype=torch.float64),
    "tensor": lambda w: torch.tensor(w, dtype=torch.float64),
    "ones *": lambda w: torch.ones((), dtype=torch.float64) * w,
    "zeros +": lambda w: torch.zeros((), dtype=torch.float64) + w,
}
seen = {}
for name, way in ways.items():
    torch._dynamo.reset()

    def function(w, way=way):
        return 0.2 * w * scaled(torch.ones(4), way(w)).sum()

    compiled, wrong, end = torch.compile(function, fullgraph=True), 0, "20 calls"
    for i in range(20):
        w = 0.5 + 0.2 * i
        try:
            wrong += not torch.isclose(compiled(w), function(w)).item()
        except Exception as error:
            end = f"{type(error).__name__} at call {i + 1}"
            break
    seen[name] = (wrong, end)
    print(f"{name}: {wrong} wrong, {end}")
assert seen["full"] == seen["scalar_tensor"] == (18, "20 calls"), seen
assert seen["tensor"] == (0, "FailOnRecompileLimitHit at call 9"), seen
assert seen["ones *"] == seen["zeros +"] == (0, "20 calls"), seen
PY
"$work/venv/bin/python" -W ignore "$work/floats.py"
# Output seen:
#   torch 2.14.1+cu130
#   full: 18 wrong, 20 calls
#   scalar_tensor: 18 wrong, 20 calls
#   tensor: 0 wrong, FailOnRecompileLimitHit at call 9
#   ones *: 0 wrong, 20 calls
#   zeros +: 0 wrong, 20 calls
