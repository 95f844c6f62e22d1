"""The operators' version: a cache of compiled graphs must not outlive what an operator takes and returns."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transforms import SUBJECTS

from hypkernels import operators

RECORD = Path(__file__).parent / "operators.json"


class _Seen(TorchDispatchMode):
    """What a compiled graph relies on: the schema of each operator that is called, and its results."""

    def __init__(self):
        super().__init__()
        self.operators = {}

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        out = operator(*args, **(kwargs or {}))
        if operator.namespace == "hypkernels":
            results = [f"{one.dtype} {tuple(one.shape)}" for one in tree_leaves(out)]
            self.operators[operator._schema.name] = {"schema": str(operator._schema), "results": results}
        return out


def seen():
    """Of a small call of every public function, forward and backward."""
    with _Seen() as mode:
        for subject in SUBJECTS.values():
            arguments = [one.float().requires_grad_() for one in subject.arguments()]
            subject.function(*arguments).sum().backward()
    return mode.operators


def test_a_change_of_an_operator_changes_its_version():
    """If this fails, raise ``operators.VERSION`` and run this file: old graphs go on with what they know."""
    recorded, operators_now = json.loads(RECORD.read_text()), seen()
    assert recorded["version"] == operators.VERSION
    assert operators_now == recorded["operators"]
    assert {f"hypkernels::{name}" for name in ("exp_map0", "exp_map0_backward")} <= set(operators_now)


PROBE = """
import sys
import pytest
import torch
from hypkernels import operators

operators.VERSION, columns = sys.argv[1], int(sys.argv[2])

def run(x):
    return x.new_ones(x.shape[0], columns)

operator = operators.Operator("(Tensor x) -> Tensor", run, run, None)
backward = operators.Operator("(Tensor grad, Tensor x) -> Tensor", run, run, None)
probe, _ = operators.register("probe", operator, backward, 1)
total = torch.compile(lambda x: probe(x).sum(1) * 2, fullgraph=True)(torch.ones(3))
print(total.tolist())
"""


@pytest.mark.slow
def test_caches_of_compiled_graphs_see_the_version(tmp_path):
    """The same schema with other results, in processes that share a cache."""
    environment = {
        **os.environ,
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
        "TORCHINDUCTOR_FX_GRAPH_CACHE": "1",
    }

    def totals(version, columns):
        command = [sys.executable, "-W", "ignore", "-c", PROBE, version, str(columns)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    assert totals("old", 4) == [8.0] * 3
    assert totals("new", 6) == [12.0] * 3


if __name__ == "__main__":
    RECORD.write_text(json.dumps({"version": operators.VERSION, "operators": seen()}, indent=1) + "\n")
