"""Searches of galleries on a GPU, by kernels and in PyTorch calls: what they find is what a CPU finds."""

from __future__ import annotations

import pytest
import torch
from on_gpu import DEVICE, size

from hypkernels import retrieval, use_backend

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("where", ["there", "on the CPU"])
@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_a_gpu_finds_what_a_cpu_finds(dtype, where, backend):
    with use_backend(backend):
        _compare(dtype, where)


def _compare(dtype, where):
    generator = torch.Generator().manual_seed(0)
    count, items = size(70), size(3000)
    queries, gallery = (torch.randn(n, 32, generator=generator).to(dtype) / 5 for n in (count, items))
    groups, targets = torch.arange(items) % 3, torch.arange(count)
    there = gallery.to(DEVICE) if where == "there" else gallery
    for options in ({}, {"cone": "query", "min_radius": 0.3}, {"deny": torch.arange(size(50))}):
        found = retrieval.topk(queries.to(DEVICE), there, 9, 0.7, **options)
        with use_backend("auto"):
            wanted = retrieval.topk(queries, gallery, 9, 0.7, **options)
        assert found.indices.cpu().equal(wanted.indices)
        torch.testing.assert_close(found.distances.cpu(), wanted.distances)
    ranks = retrieval.positive_rank(
        queries.to(DEVICE), there, targets.to(DEVICE), 0.7, groups=groups, query_groups=targets % 3
    )
    limits = retrieval.range_search(queries.to(DEVICE), there, 1.0, 0.7).limits
    with use_backend("auto"):
        wanted = retrieval.positive_rank(
            queries, gallery, targets, 0.7, groups=groups, query_groups=targets % 3
        )
        assert limits.cpu().equal(retrieval.range_search(queries, gallery, 1.0, 0.7).limits)
    assert ranks.cpu().equal(wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_bounds_hold_for_what_matrix_units_round(dtype):
    """Tiles of the size that is launched, over all widths of a warp's share: against PyTorch in float64."""
    generator = torch.Generator(DEVICE).manual_seed(1)
    for width in (7, 64, 513, 2048):
        queries, gallery = (
            (torch.randn(n, width, generator=generator, device=DEVICE) / width**0.5).to(dtype)
            for n in (size(300), size(5000))
        )
        gallery[: size(100)] = queries[: size(100)]
        with use_backend("triton"):
            found = retrieval.topk(queries, gallery, 20)
        with use_backend("torch"):
            wanted = retrieval.topk(queries, gallery, 20)
        assert found.indices.equal(wanted.indices)
        assert found.distances.equal(wanted.distances)
