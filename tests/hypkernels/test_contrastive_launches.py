"""How the kernels of the contrastive loss are launched, on fake GPU tensors: nothing runs."""

import re
from contextlib import nullcontext

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from hypkernels.contrastive import kernel
from hypkernels.contrastive.problem import Embeddings, Problem
from hypkernels.tritonlib.recording import recorded_launches
from hypkernels.tritonlib.tile_plan import plan_for

# Calls of PyTorch that launch nothing.
_FREE = re.compile(
    "prim::|empty|view|slice|select|expand|unbind|squeeze|transpose|aten::t$|alias|detach|as_strided|split"
)


class _Launches(TorchDispatchMode):
    """The calls of PyTorch that launch something on a GPU."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not _FREE.search(function._schema.name):
            self.names.append(function._schema.name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("explicit", [False, True], ids=["default targets", "targets"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("similarity", ["dist", "sqdist", "inner", "angle"])
def test_a_gpu_is_never_waited_for_and_launches_are_few(similarity, dtype, explicit, monkeypatch):
    """Fake GPU tensors have no values: reading one back raises. Of kernels, only launches are recorded."""
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: nullcontext())
    # That of fake tensors does not know the dtype of the result before PyTorch 2.14.
    monkeypatch.setattr(torch, "addmm", lambda total, a, b, out_dtype, out: out)
    cuda = {"device": "cuda", "dtype": torch.float64}
    with FakeTensorMode(), recorded_launches() as kernels, _Launches() as calls:
        sets = [torch.empty(rows, 96, device="cuda", dtype=dtype) for rows in (300, 400)]
        c, scale = torch.empty((), **cuda), torch.empty(300, **cuda)
        targets = torch.empty(300, dtype=torch.int64, device="cuda") if explicit else None
        embeddings = Embeddings(sets, c, kernel.summaries(sets))
        p = Problem(*embeddings.sides(0, 1), c, scale, targets, "ieee")
        plan = plan_for("sm_90", dtype, similarity)
        losses, saved = kernel.forward(p, similarity, True, plan=plan)
        gradients = kernel.backward(losses, p, saved, similarity, True, plan=plan)
    assert all(one.device.type == "cuda" for one in (losses, *saved, *gradients))
    matrices = 2 if similarity == "angle" else 1
    of_distance = similarity in ("dist", "sqdist")
    assert len(kernels) <= 16 + 13 * matrices + 2 * of_distance
    assert len(calls.names) <= (88 if explicit else 42) + 30 * matrices
