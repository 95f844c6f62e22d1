"""A small part of ``make dry-run-gpu``: the benchmarks and their report on a CPU that passes for a GPU."""

import json
import os
import subprocess
import sys

import pytest

from benchmarks.machine import ROOT

pytestmark = pytest.mark.slow

# In one process, since most of the time goes to imports.
PROGRAM = """
import sys
import dry_run_gpu, pytest, torch
from pathlib import Path
from benchmarks import report

def refused(match, *mistakes):
    for mistake in mistakes:
        with pytest.raises((RuntimeError, TypeError), match=match):
            mistake()

points = torch.ones(3, 4, device="cuda")
assert points[:, 1:].double().device == torch.device("cuda", 0) != points.cpu().device
refused("one device", lambda: points + torch.ones(4))
refused("numpy", points.numpy)
refused("generator", lambda: torch.rand(2, generator=torch.Generator("cuda")))
torch.cuda.set_sync_debug_mode("error")
refused("waits", points.sum().item, points.cpu, lambda: points[points > 0], lambda: torch.ones(2).cuda())
torch.cuda.set_sync_debug_mode("default")

graph, total = torch.cuda.CUDAGraph(), points.sum()
with torch.cuda.graph(graph):
    doubled = total * 2
total.fill_(5)
graph.replay()
assert doubled.cpu() == 10

folder = Path(sys.argv[1])
assert dry_run_gpu.is_folder_of_results(Path("benchmarks/results/here"))
assert not dry_run_gpu.is_folder_of_results(folder)
some = "contrastive_dist-B21 and (triton-bf16 or torch-fp32 or eager-fp32)"
options = ["-q", "-p", "no:cacheprovider", "-p", "no:randomly", "-p", "dry_run_gpu", "-k", some]
where = ["--device", "cuda", "--size", "large", "--results", str(folder), "--commit", "none"]
status = pytest.main(["benchmarks", *options, *where])
report.main(["--results", str(folder), "--docs", str(folder / "docs"), "--readme", "LICENSE"])
raise SystemExit(status)
"""


def test_a_small_part_of_it(tmp_path):
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path, "HYPKERNELS_BACKEND": "auto"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (results,) = tmp_path.glob("pretended/*.json")
    document = json.loads(results.read_text())
    assert document["device"]["name"] == "pretended"
    assert document["complete"]
    assert not document["whole"]
    found = {record["provider"]: record["status"] for record in document["records"]}
    assert len(found) == 3
    assert set(found.values()) == {"ok"}
    assert "## pretended, large" in (tmp_path / "docs" / "benchmarks.md").read_text()
