"""The search of the tuner; tests/kernels/test_tune_kernel.py runs it on kernels."""

import pytest

pytest.importorskip("triton")

from hypkernels.contrastive.tune import OPTIONS, search, table
from hypkernels.tritonlib.tile_plan import Plan, Tile

START = Tile(128, 128, 128, warps=8, stages=3, kept_rows=64)


def test_the_search_climbs_to_the_best_tile():
    best = START._replace(rows=256, warps=4, stages=2)

    def cost(tile):
        return 1.0 + sum(abs(one - other) / other for one, other in zip(tile, best, strict=True))

    assert search(START, cost) == (best, 1.0)


def test_a_tile_that_does_not_run_is_never_chosen_nor_asked_for_twice():
    asked = []

    def cost(tile):
        asked.append(tile)
        return float("inf") if tile.rows == 256 else 1.0 / (tile.rows * tile.columns)

    best, _ = search(START, cost)
    assert (best.rows, best.columns) == (128, 256)
    assert len(asked) == len(set(asked))


def test_a_gain_within_the_noise_changes_nothing():
    assert search(START, lambda tile: 1.0 if tile == START else 0.995)[0] == START


def test_a_start_that_does_not_run_is_an_error():
    with pytest.raises(ValueError, match="must run"):
        search(START, lambda tile: float("inf"))


def test_the_table_is_the_source_of_the_plan():
    plan = Plan(START, START, START._replace(rows=64), START, inline_ptx=True)
    assert eval(table(plan), {"Plan": Plan, "Tile": Tile}) == plan


def test_every_option_is_a_field_of_a_tile():
    assert set(OPTIONS) <= set(Tile._fields)
