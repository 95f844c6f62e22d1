"""The row kernels out of the ordinary: a curvature for each row, results beyond the range of their type."""

import pytest
import torch
from row_kernel_cases import run

from hypkernels.cone import kernel as cone
from hypkernels.distance import kernel as distance
from hypkernels.entailment import kernel as entailment
from hypkernels.maps import kernel as maps

LOSS_OPTIONS = (0.8, 0.1, 0.1, 0.2)
# name -> module, how many points, options
OPS = {
    "exp_map0": (maps, 1, ()),
    "log_map0": (maps, 1, ()),
    "exp_map": (maps, 2, ()),
    "log_map": (maps, 2, ()),
    "elementwise_inner": (distance, 2, ()),
    "elementwise_dist": (distance, 2, ()),
    "dist0": (distance, 1, ()),
    "half_aperture": (cone, 1, (0.1,)),
    "oxy_angle": (cone, 2, ()),
    "entailment_loss": (entailment, 2, LOSS_OPTIONS),
    "scaled_exp_map0": (maps, 1, ()),
}


def launched(name, points, *scalars):
    """Value and gradients of a sum of the values."""
    module, _, options = OPS[name]
    out = run(getattr(module, name), *points, *scalars, *options)
    grads = run(getattr(module, f"{name}_backward"), torch.ones_like(out), *points, *scalars, *options)
    return out, *grads


def curvatures(batch, layout):
    """Positive, not all dense: a few different values, ``batch``."""
    values = torch.rand(24, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.2
    return {
        "dense": values[: batch.numel()].reshape(batch),
        "of the outer rows": values[: batch[0]].reshape(-1, *[1] * (len(batch) - 1)).expand(batch),
        "of the inner rows": values[: batch[-1]].expand(batch),
        "expanded": values[0].expand(batch),
    }[layout]


@pytest.mark.parametrize("layout", ["dense", "of the outer rows", "of the inner rows", "expanded"])
@pytest.mark.parametrize("width", [5, 300])
@pytest.mark.parametrize("name", OPS)
def test_a_curvature_for_each_row(name, width, layout):
    """As row by row with its own one; the gradient by it is that of each row."""
    batch = torch.Size((3, 4))
    generator = torch.Generator().manual_seed(width)
    points = [torch.randn(*batch, width, generator=generator) for _ in range(OPS[name][1])]
    scalars = [curvatures(batch, layout)]
    if name == "scaled_exp_map0":
        scalars = [curvatures(batch, "dense") - 0.7, *scalars]
    results = launched(name, points, *scalars)
    assert all(one.shape == batch for one in results[1 + len(points) :])
    for i, j in ((0, 0), (1, 2), (2, 3)):
        alone = launched(name, [p[i, j] for p in points], *(one[i, j] for one in scalars))
        for actual, expected in zip(results, alone, strict=True):
            torch.testing.assert_close(actual[i, j], expected, rtol=0, atol=0)


def test_one_scale_beside_many_curvatures():
    x = torch.randn(6, 5)
    curv, scale = curvatures(torch.Size((6,)), "dense"), torch.tensor(0.7, dtype=torch.float64)
    *_, by_scale, by_curv = launched("scaled_exp_map0", [x], scale, curv)
    *_, by_scales, by_curvs = launched("scaled_exp_map0", [x], scale.expand(6), curv)
    torch.testing.assert_close(by_scale, by_scales.sum(), rtol=1e-15, atol=0)
    assert by_curv.equal(by_curvs)
