#!/usr/bin/env bash
# What geoopt's PoincareBall does with points very near to the origin and far from it.
#
# geoopt 0.5.1, PyTorch 2.14.1, CPU, c = 1:
#   dist, dist0 and logmap0 of float32 points at a distance of 1e-6 to 3e-6 from the origin are off by up to 5 %, those
#     of float64 points by up to 1e-10: artanh is (log(1 + x) - log(1 - x)) / 2, which cancels
#   no distance is larger than 2 artanh(1 - 1e-7), 16.81 in float64 and, as 1 - 1e-7 rounds, 16.64 in float32: points
#     at a distance of 20 are as far apart as that, and the gradient is 0
# Expected before it was run: right near the origin; far from it float32 that loses digits, and right in float64.
# Fails if any of it behaves otherwise.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q 'torch==2.14.1' 'geoopt==0.5.1'
cat > "$work/ball.py" <<'PY'
import importlib.metadata as metadata
import math

import geoopt
import torch

print(*(f"{name} {metadata.version(name)}" for name in ("geoopt", "torch")))
for dtype, least, most in ((torch.float32, 1e-3, 0.2), (torch.float64, 1e-13, 1e-9)):
    ball = geoopt.PoincareBall(c=torch.tensor(1.0, dtype=dtype))
    sizes = (5e-7 * torch.linspace(1, 3, 50, dtype=torch.float64)).to(dtype)
    points = torch.stack([sizes, torch.zeros_like(sizes)], 1)
    expected = 2 * torch.atanh(sizes.double())
    errors = {
        "dist": ball.dist(points, torch.zeros_like(points)).double() / expected - 1,
        "dist0": ball.dist0(points).double() / expected - 1,
        "logmap0": 2 * ball.logmap0(points)[:, 0].double() / expected - 1,
    }
    for name, error in errors.items():
        print(f"{dtype}: {name}, 1e-6 to 3e-6 from the origin: off by {error.abs().max().item():.2g}")
        assert least < error.abs().max() < most

    x = torch.tensor([[math.tanh(5.0), 0.0]], dtype=dtype, requires_grad=True)
    distance = ball.dist(x, -x.detach())
    (gradient,) = torch.autograd.grad(distance.sum(), x)
    print(f"{dtype}: dist of points at a distance of 20: {distance.item():.5g}, gradient {gradient.tolist()}")
    bound = torch.tensor(1 - 1e-7, dtype=dtype).double()
    assert abs(distance.item() - 2 * math.atanh(bound)) < 1e-4
    assert gradient.abs().max() == 0
PY
"$work/venv/bin/python" -W ignore "$work/ball.py"
