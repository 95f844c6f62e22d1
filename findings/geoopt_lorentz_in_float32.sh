#!/usr/bin/env bash
# What geoopt's Lorentz does with points that are close to each other, with std, with float64 and with dim.
#
# geoopt 0.5.1, PyTorch 2.14.1, CPU:
#   dist of a point and itself, float32: -8.8e-8 at radius 1; of points 1e-6 apart the same. The clamp before its
#     logarithm keeps that of float64 at 3e-8, which rounds to less than nothing in float32
#   logmap of points 1e-6 apart has a norm of 1e-4, in float64 too: norm() knows no shorter vectors
#   random_normal(std=0.01) and random_normal(std=100.) from one seed are the same points: it divides by the norm
#   check_vector_on_tangent of float64 vectors raises RuntimeError: it compares with float32 zeros
#   expmap and logmap take dim, and with dim=0 return points that are off the manifold and other vectors than with
#     dim=-1: their norm is taken over the last dimension
#   egrad2rgrad flips the sign of the first component of the gradient it is given, so that .grad of a parameter is
#     another one after an optimiser's step
# Expected before it was run: from its source all of it but for the sign: a distance that is wrong, but not negative.
# Fails if any of it behaves otherwise.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q 'torch==2.14.1' 'geoopt==0.5.1'
cat > "$work/lorentz.py" <<'PY'
import importlib.metadata as metadata

import geoopt
import torch

print(*(f"{name} {metadata.version(name)}" for name in ("geoopt", "torch")))


def point(space, dtype):
    space = torch.tensor([space], dtype=dtype)
    return torch.cat([(1 + space.square().sum(-1, keepdim=True)).sqrt(), space], -1)


for dtype in (torch.float32, torch.float64):
    manifold = geoopt.Lorentz(k=torch.tensor(1.0, dtype=dtype))
    x, y = point([1.0, 0.0], dtype), point([1.0, 1e-6], dtype)
    same, near = manifold.dist(x, x).item(), manifold.dist(x, y).item()
    length = manifold.norm(manifold.logmap(x, y)).item()
    print(f"{dtype}: dist(x, x) {same:.2g}; 1e-6 apart: dist {near:.3g}, |logmap| {length:.3g}")
    assert (same < 0 and near < 0) == (dtype == torch.float32)
    assert abs(length - 1e-4) < 1e-9

rows = []
for std in (0.01, 100.0):
    torch.manual_seed(0)
    rows.append(geoopt.Lorentz().random_normal(3, 4, std=std))
print(f"random_normal: std 0.01 and 100 differ by {(rows[0] - rows[1]).abs().max().item():.2g}")
assert torch.allclose(*rows)

try:
    manifold.check_vector_on_tangent(x, torch.zeros_like(x))
except RuntimeError as error:
    print("check_vector_on_tangent, float64:", error)
else:
    raise SystemExit("float64 vectors are checked now")

x, y = (torch.cat([point(space, torch.float64) for space in spaces])
        for spaces in (([1.0, 0.5], [0.2, -1.0], [2.0, 1.0]), ([0.5, 1.0], [1.0, 1.0], [-1.0, 0.3])))
moved = manifold.logmap(x.T, y.T, dim=0).T
print(f"logmap, dim=0: off by {(moved - manifold.logmap(x, y)).abs().max().item():.2g}")
assert (moved - manifold.logmap(x, y)).abs().max() > 0.1

grad = torch.ones(1, 3, dtype=torch.float64)
manifold.egrad2rgrad(x[:1], grad)
print("egrad2rgrad: a gradient of ones is then", grad.tolist())
assert grad.tolist() == [[-1.0, 1.0, 1.0]]
PY
"$work/venv/bin/python" -W ignore "$work/lorentz.py"
