"""Sampling, memory, roofline, growth and the session that puts them together."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks import measure as measure_module
from benchmarks import session as session_module
from benchmarks.cases import CASES
from benchmarks.growth import fit
from benchmarks.machine import ROOT
from benchmarks.measure import measure
from benchmarks.memory import Child, peak_beyond_inputs, peak_of_resident_set
from benchmarks.providers import PROVIDERS
from benchmarks.results import Results
from benchmarks.roofline import limit_seconds
from benchmarks.sampling import PHASES, Plan, interleave, quartiles
from benchmarks.session import Session
from benchmarks.test_cases import ReplayClock

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
CASE = CASES["exp_map0"]
SHAPE = {"B": 8, "D": 16}
EAGER = PROVIDERS["eager-fp32"]
CEILINGS = {"bytes_per_s": 1e9, "flop_per_s": {"float32": 1e10, "bfloat16": 1e10}}
PLAN = Plan(least=20, most=20, seconds=0.0)


def provider(name, program, **changes):
    return replace(EAGER, name=name, programs={"exp_map0": program}, **changes)


def test_providers_take_turns_on_the_same_fresh_data():
    calls = []

    def noting(name):
        def program(inputs):
            calls.append((name, inputs["x"].detach().clone()))
            return EAGER.programs["exp_map0"](inputs)

        return provider(name, program)

    samples = interleave(CASE, SHAPE, [noting("a"), noting("b"), noting("c")], CPU, PLAN)
    rounds = [calls[start : start + 3] for start in range(len(calls) - 60, len(calls), 3)]
    assert all({name for name, _ in turn} == {"a", "b", "c"} for turn in rounds)
    assert all(torch.equal(data, turn[0][1]) for turn in rounds for _, data in turn)
    assert not any(torch.equal(rounds[0][0][1], turn[0][1]) for turn in rounds[1:])
    assert len({tuple(name for name, _ in turn) for turn in rounds}) > 1
    assert all(len(samples[name].seconds[phase]) == 20 for name in "abc" for phase in PHASES)


def test_a_slow_provider_is_left_out_with_a_reason():
    def slow(inputs):
        time.sleep(0.2)
        return EAGER.programs["exp_map0"](inputs)

    samples = interleave(CASE, SHAPE, [EAGER, provider("slow", slow)], CPU, replace(PLAN, slowest=0.15))
    assert samples["slow"].left_out[0] == "too slow"
    assert samples["eager-fp32"].left_out is None


def test_phases_add_up_and_quartiles_are_those_of_numpy():
    samples = interleave(CASE, SHAPE, [EAGER], CPU, PLAN)["eager-fp32"]
    parts = zip(samples.seconds["forward"], samples.seconds["backward"], strict=True)
    np.testing.assert_allclose(samples.seconds["both"], [sum(pair) for pair in parts])
    assert quartiles([4.0, 1.0, 2.0, 3.0, 5.0]) == {"median": 3, "q1": 2, "q3": 4, "samples": 5}


def test_a_wrong_provider_has_no_time_and_a_raising_one_neither():
    def wrong(inputs):
        return (1.1 * EAGER.programs["exp_map0"](inputs)[0],)

    def raising(inputs):
        raise TypeError("no such dtype")

    providers = [EAGER, provider("wrong", wrong), provider("raising", raising)]
    found = measure(CASE, SHAPE, providers, CPU, CEILINGS, PLAN, None)
    assert {name: record["status"] for name, record in found.records.items()} == {
        "eager-fp32": "ok",
        "wrong": "wrong",
        "raising": "failed",
    }
    assert "off by 0.1" in found.records["wrong"]["detail"]
    assert found.records["raising"]["detail"] == "TypeError: no such dtype"
    assert "seconds" in found.records["eager-fp32"]
    assert not any("seconds" in found.records[name] for name in ("wrong", "raising"))


def test_running_out_of_memory_is_recorded():
    def greedy(inputs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    found = measure(CASE, SHAPE, [provider("greedy", greedy)], CPU, CEILINGS, PLAN, None)
    assert found.records["greedy"]["status"] == "out of memory"


def test_the_share_of_the_roofline_is_the_limit_over_the_median():
    record = measure(CASE, SHAPE, [EAGER], CPU, CEILINGS, PLAN, None).records["eager-fp32"]
    limit = max(record["operations"]["both"] / 1e10, record["bytes"]["both"] / 1e9)
    assert record["roofline"]["both"] == pytest.approx(limit / record["seconds"]["both"]["median"])


def test_the_limit_is_the_longer_of_computing_and_moving():
    assert limit_seconds(1e10, 1e6, CEILINGS, "float32") == 1.0
    assert limit_seconds(1e3, 2e9, CEILINGS, "float32") == 2.0


def test_the_resident_set_shows_what_is_allocated_and_freed():
    def run():
        block = torch.ones(16 * 2**20)  # 64 MiB
        time.sleep(0.01)
        del block

    run()
    assert 60 * 2**20 < peak_of_resident_set(run) < 80 * 2**20


def test_a_child_that_dies_measures_nothing_and_is_started_again(monkeypatch):
    monkeypatch.setattr("benchmarks.memory.CHILD_COMMAND", [sys.executable, "-c", "raise SystemExit(1)"])
    child = Child()
    assert child.peak("exp_map0", SHAPE, "eager-fp32") is None
    echo = "import sys; sys.stdin.readline(); print(4096, flush=True); sys.stdin.read()"
    monkeypatch.setattr("benchmarks.memory.CHILD_COMMAND", [sys.executable, "-c", echo])
    assert child.peak("exp_map0", SHAPE, "eager-fp32") == 4096
    child.close()


def test_memory_is_beyond_inputs_and_gradients(monkeypatch):
    monkeypatch.setattr("benchmarks.memory.peak_of_resident_set", lambda run: run() and 10_000)
    case, shape = CASES["exp_map0"], {"B": 8, "D": 16}
    gradients = 8 * 16 * 4 + 4
    assert peak_beyond_inputs(case, shape, EAGER, CPU) == 10_000 - gradients


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_growth_finds_the_exponent(exponent):
    sizes = (100, 200, 400, 800, 1600)
    exact = fit({size: 3.0 * size**exponent for size in sizes})
    assert exact.exponent == pytest.approx(exponent, abs=1e-9)
    assert exact.error == pytest.approx(0, abs=1e-7)
    noisy = fit({size: size**exponent * (1.3 if size == 400 else 1.0) for size in sizes})
    assert noisy.error > 0.02


def test_growth_needs_five_sizes():
    assert fit({1: 1.0, 2: 2.0, 4: 4.0, 8: 8.0}) is None
    assert fit({1: 0.0, 2: 2.0, 4: 4.0, 8: 8.0, 16: 16.0}) is None


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(session_module, "PLANS", {"small": PLAN})
    monkeypatch.setattr(session_module, "ceilings", lambda device: CEILINGS)


def test_a_session_goes_on_where_it_was_cut_short(quick, monkeypatch, tmp_path):
    first = Session("small", CPU, tmp_path, memory=False)
    first.measurement(CASE, SHAPE, [EAGER])
    first.close(complete=False)

    second = Session("small", CPU, tmp_path, memory=False)
    assert second.results.path == first.results.path
    monkeypatch.setattr(session_module, "measure", None)  # measuring again would raise
    again = second.measurement(CASE, SHAPE, [EAGER])
    assert again.records["eager-fp32"]["seconds"]["both"]["samples"] == 20
    assert not again.samples
    second.close(complete=True)
    assert Results.load(second.results.path).header["complete"]

    third = Session("small", CPU, tmp_path, memory=False)
    assert third.results.path != first.results.path
    assert not third.results.records


def test_a_measurement_that_breaks_is_not_repeated(quick, monkeypatch, tmp_path):
    asked = []

    def broken(*arguments):
        asked.append(arguments)
        raise RuntimeError("no")

    monkeypatch.setattr(session_module, "measure", broken)
    session = Session("small", CPU, tmp_path, memory=False)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="no"):
            session.measurement(CASE, SHAPE, [EAGER])
    assert len(asked) == 1


def test_memory_that_runs_out_while_it_is_taken_ends_no_group(monkeypatch):
    def no_memory(*arguments):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(measure_module, "_peak", no_memory)
    record = measure(CASE, SHAPE, [EAGER], CPU, CEILINGS, PLAN, None).records[EAGER.name]
    assert record["status"] == "out of memory"


def test_nothing_begins_when_the_time_is_up(quick, tmp_path):
    session = Session("small", CPU, tmp_path, time_limit=0.0, memory=False)
    assert session.measurement(CASE, SHAPE, [EAGER]) is None
    session.results.save()
    session.close(complete=True)
    assert not Results.load(session.results.path).header["complete"]


def test_a_small_run_ends_within_its_time_unless_told_otherwise(quick, monkeypatch, tmp_path):
    monkeypatch.setattr(session_module, "TIME_LIMITS", {"small": 0.0})
    monkeypatch.setattr(session_module, "PLANS", {"small": PLAN, "medium": PLAN})
    assert Session("small", CPU, tmp_path, memory=False).measurement(CASE, SHAPE, [EAGER]) is None
    for longer in (
        Session("small", CPU, tmp_path, time_limit=600.0, memory=False),
        Session("medium", CPU, tmp_path, memory=False),
    ):
        assert longer.measurement(CASE, SHAPE, [EAGER]) is not None


def test_the_clock_replays_the_samples():
    clock = ReplayClock()
    clock.load([0.25, 1.5])
    durations = []
    for _ in range(2):
        start = clock()
        clock.act()
        durations.append(clock() - start)
    assert durations == [0.25, 1.5]


def test_pytest_measures_records_and_reports(tmp_path):
    """The command of the README, for one provider of one case."""
    selection = ["-k", "pairwise_dist and eager-fp32", "--results", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "benchmarks", *selection], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout
    (path,) = tmp_path.glob("*/*.json")
    assert f"results, complete: {path}" in done.stdout
    results = Results.load(path)
    (record,) = results.records
    assert record["status"] == "ok"
    assert record["roofline"]["both"] > 0
    output = 4 * record["shape"]["B"] ** 2
    assert output < record["peak_bytes"] < 20 * output
    assert set(results.header["ceilings"]["flop_per_s"]) == {"float32", "bfloat16"}
