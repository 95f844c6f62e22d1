"""Searches of galleries on a GPU, in PyTorch calls: what they find is what a CPU finds."""

from __future__ import annotations

import pytest
import torch
from on_gpu import DEVICE

from hypkernels import retrieval

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("where", ["there", "on the CPU"])
def test_a_gpu_finds_what_a_cpu_finds(dtype, where):
    generator = torch.Generator().manual_seed(0)
    queries, gallery = (torch.randn(n, 32, generator=generator).to(dtype) / 5 for n in (70, 3000))
    groups, targets = torch.arange(3000) % 3, torch.arange(70)
    there = gallery.to(DEVICE) if where == "there" else gallery
    for options in ({}, {"cone": "query", "min_radius": 0.3}, {"deny": torch.arange(50)}):
        found = retrieval.topk(queries.to(DEVICE), there, 9, 0.7, **options)
        wanted = retrieval.topk(queries, gallery, 9, 0.7, **options)
        assert found.indices.cpu().equal(wanted.indices)
        torch.testing.assert_close(found.distances.cpu(), wanted.distances)
    ranks = retrieval.positive_rank(
        queries.to(DEVICE), there, targets.to(DEVICE), 0.7, groups=groups, query_groups=targets % 3
    )
    wanted = retrieval.positive_rank(queries, gallery, targets, 0.7, groups=groups, query_groups=targets % 3)
    assert ranks.cpu().equal(wanted)
    limits = retrieval.range_search(queries.to(DEVICE), there, 1.0, 0.7).limits
    assert limits.cpu().equal(retrieval.range_search(queries, gallery, 1.0, 0.7).limits)
