"""One case at one shape: every provider checked, timed and weighed, as records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from benchmarks.case import Case, Inputs, Shape
from benchmarks.gate import Answer, answer, expected, verdict
from benchmarks.memory import Child, peak_beyond_inputs
from benchmarks.providers.provider import Provider
from benchmarks.results import Record
from benchmarks.roofline import limit_seconds
from benchmarks.sampling import PHASES, Plan, Samples, interleave


@dataclass
class Measurement:
    """The records of a group, and the samples they summarise."""

    records: dict[str, Record]
    samples: dict[str, Samples] = field(default_factory=dict)


def measure(
    case: Case,
    shape: Shape,
    providers: list[Provider],
    device: torch.device,
    ceilings: Mapping[str, object],
    plan: Plan,
    child: Child | None,
) -> Measurement:
    """Gate all providers, then time those that passed, then take their memory.

    Args:
        case: what is computed.
        shape: its size.
        providers: who computes it; each must support the case and the device.
        device: where.
        ceilings: of the device, see :func:`benchmarks.roofline.ceilings`.
        plan: how long to sample.
        child: measures memory on a CPU; None leaves it out there.
    """
    records = _gate(case, shape, providers, device)
    right = [provider for provider in providers if records[provider.name]["status"] == "ok"]
    samples = interleave(case, shape, right, device, plan)
    for provider in right:
        record, taken = records[provider.name], samples[provider.name]
        if taken.left_out is not None:
            record["status"], record["detail"] = taken.left_out
            continue
        record["seconds"] = taken.summary()
        try:
            record["peak_bytes"] = _peak(case, shape, provider, device, child)
            record |= _work(case, shape, provider, device, ceilings, record["seconds"])
        except torch.OutOfMemoryError:  # as it was when the time was taken, less what has been kept since
            record["status"] = "out of memory"
    return Measurement(records, samples)


def _gate(case: Case, shape: Shape, providers: list[Provider], device: torch.device) -> dict[str, Record]:
    drawn = case.draw(shape, torch.Generator(device).manual_seed(1))
    wanted: dict[tuple[str, torch.dtype], Answer] = {}
    records = {}
    for provider in providers:
        reference = provider.computes, provider.dtype
        if reference not in wanted:
            wanted[reference] = expected(case, provider.computes, drawn, provider.dtype)
        record: Record = {"case": case.name, "shape": dict(shape), "provider": provider.name}
        records[provider.name] = record | _judge(case, provider, drawn, wanted[reference])
    return records


def _judge(case: Case, provider: Provider, drawn: Inputs, wanted: Answer) -> Record:
    inputs = case.prepare(drawn, provider.dtype)
    try:
        got = answer(case, provider.programs[case.name], inputs, points_dtype=provider.dtype)
    except torch.OutOfMemoryError:
        return {"status": "out of memory"}
    except Exception as raised:  # whatever a provider raises belongs into the table
        return {"status": "failed", "detail": f"{type(raised).__name__}: {raised}".splitlines()[0][:200]}
    error, wrong = verdict(provider, got, wanted)
    if wrong is not None:
        return {"status": "wrong", "error": error, "detail": wrong}
    return {"status": "ok", "error": error}


def _peak(
    case: Case, shape: Shape, provider: Provider, device: torch.device, child: Child | None
) -> int | None:
    if device.type == "cuda":
        return peak_beyond_inputs(case, shape, provider, device)
    return None if child is None else child.peak(case.name, shape, provider.name)


def _work(
    case: Case,
    shape: Shape,
    provider: Provider,
    device: torch.device,
    ceilings: Mapping[str, object],
    seconds: Mapping[str, Mapping[str, float]],
) -> Record:
    """Operations and bytes that cannot be avoided, and the share of the roofline that the medians reach."""
    inputs = case.prepare(case.draw(shape, torch.Generator(device).manual_seed(2)), provider.dtype)
    outputs = provider.programs[case.name](inputs)
    moved = case.compulsory_bytes(inputs, outputs)
    operations = case.operations(shape, inputs)
    roofline = {
        phase: limit_seconds(operations[phase], moved[phase], ceilings, provider.products)
        / seconds[phase]["median"]
        for phase in PHASES
    }
    return {"operations": operations, "bytes": moved, "roofline": roofline}
