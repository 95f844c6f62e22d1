#!/usr/bin/env bash
# What geoopt's PoincareBall makes of its argument c: another number in the caller's tensor, and infinity from 89 on.
#
# geoopt 0.5.1, PyTorch 2.14.1, CPU:
#   PoincareBall(c=t) of a float32 tensor t leaves log(exp(t) - 1) in t: 2 becomes 1.8546, without a warning
#   a second ball of the same t has a c of 1.8546, and so has the first one then: all share the memory of t
#   PoincareBall(c=100.) has a c of infinity: exp(100) is none of float32. Its distances are NaN
#   SphereProjection(k=t), written alike, does the same
# Expected before it was run: from its source the overwritten tensor and the infinity; not that the first ball changes.
# Fails if any of it behaves otherwise.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q 'torch==2.14.1' 'geoopt==0.5.1'
cat > "$work/ball.py" <<'PY'
import importlib.metadata as metadata

import geoopt
import torch

print(*(f"{name} {metadata.version(name)}" for name in ("geoopt", "torch")))
for manifold in (geoopt.PoincareBall, geoopt.SphereProjection):
    given = torch.tensor(2.0)
    first = manifold(given)
    print(f"{manifold.__name__}(2): the argument is then {given.item():.5g}, |k| {first.k.abs():.5g}")
    assert abs(given.item() - 2) > 0.1
    assert torch.allclose(first.k.abs(), torch.tensor(2.0))
    second = manifold(given)
    print(f"  after a second one of it: |k| {first.k.abs():.5g} and {second.k.abs():.5g}")
    assert abs(first.k.abs() - 2) > 0.1
    assert torch.equal(first.k, second.k)

ball = geoopt.PoincareBall(c=100.0)
distance = ball.dist(torch.tensor([0.01, 0.0]), torch.tensor([0.0, 0.01]))
print(f"PoincareBall(c=100.): c {ball.c.item()}, a distance {distance.item()}")
assert ball.c.isinf()
assert distance.isnan()
PY
"$work/venv/bin/python" -W ignore "$work/ball.py"
