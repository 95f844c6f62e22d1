#!/usr/bin/env bash
# Which hyperbolic functions survive the way out of PyTorch near zero, where points of small norm are.
#
# PyTorch 2.14.1, onnxscript 0.7.2, onnxruntime 1.32.0, OpenVINO 2026.4.1, CPU, float32, arguments 1e-6 to 0.5.
#   torch.onnx.export (dynamo) writes expm1 as Exp, Sub and log1p as Add, Log: 6 % off near 1e-6, in onnxruntime as in
#     OpenVINO; sinh, asinh, tanh and atanh keep operators of their own, right to 3e-7
#   torch.compile on a CPU writes atanh so that it is 6 % off there; eager atanh is right, and so are the compiled expm1,
#     log1p, sinh, asinh and tanh
#   float64 sinh is exported as Sinh, which is valid ONNX, and onnxruntime has no kernel for: the session is refused
# Expected before it was run: that functions which exist for the sake of small arguments, expm1 and log1p, are decomposed
#   into something that keeps them, and that a compiled function is as exact as the eager one.
# Fails if any of it behaves otherwise.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q 'torch==2.14.1' 'numpy==2.3.5' 'onnx==1.23.2' 'onnxscript==0.7.2' \
  'onnxruntime==1.32.0' 'openvino==2026.4.1'
cat > "$work/functions.py" <<'PY'
import importlib.metadata as metadata
import os
import sys

import numpy as np
import onnx
import onnxruntime
import openvino
import torch

print(*(f"{name} {metadata.version(name)}" for name in ("torch", "onnxscript", "onnxruntime", "openvino")))
os.chdir(sys.argv[1])
x = np.geomspace(1e-6, 0.5, 5000).astype(np.float32)
exact = {"sinh": np.sinh, "asinh": np.arcsinh, "tanh": np.tanh, "atanh": np.arctanh, "expm1": np.expm1, "log1p": np.log1p}


class Function(torch.nn.Module):
    def __init__(self, name):
        super().__init__()
        self.function = getattr(torch, name)

    def forward(self, x):
        return self.function(x)


def export(name, dtype):
    example = torch.ones(5000, dtype=dtype)
    torch.onnx.export(Function(name), (example,), f"{name}.onnx", dynamo=True, verbose=False, external_data=False)
    return [node.op_type for node in onnx.load(f"{name}.onnx").graph.node]


def in_onnxruntime(name):
    session = onnxruntime.InferenceSession(f"{name}.onnx")
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def in_openvino(name):
    return openvino.Core().compile_model(f"{name}.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(x)[0]


error = {}
for name, function in exact.items():
    wanted = function(x.astype(np.float64))
    nodes = export(name, torch.float32)
    results = {
        "eager": getattr(torch, name)(torch.from_numpy(x)).numpy(),
        "compiled": torch.compile(getattr(torch, name))(torch.from_numpy(x)).numpy(),
        "onnxruntime": in_onnxruntime(name),
        "openvino": in_openvino(name),
    }
    error[name] = {place: np.abs(result / wanted - 1).max() for place, result in results.items()}
    print(f"{name:6}", " ".join(f"{place} {one:.1e}" for place, one in error[name].items()), " ", *nodes)
cancels = {(name, place) for name, found in error.items() for place, one in found.items() if one > 0.01}
exact_ones = {(name, place) for name, found in error.items() for place, one in found.items() if one < 5e-7}
assert cancels == {
    *((name, place) for name in ("expm1", "log1p") for place in ("onnxruntime", "openvino")),
    ("atanh", "compiled"),
}, cancels
assert len(cancels) + len(exact_ones) == 24
print("float64 sinh:", *export("sinh", torch.float64))
try:
    onnxruntime.InferenceSession("sinh.onnx")
    raise SystemExit("onnxruntime has a float64 Sinh now")
except onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented as refusal:
    print("  ", str(refusal)[:120])
PY
"$work/venv/bin/python" -W ignore "$work/functions.py" "$work"
# Output seen:
#   torch 2.14.1 onnxscript 0.7.2 onnxruntime 1.32.0 openvino 2026.4.1
#   sinh   eager 1.1e-07 compiled 1.1e-07 onnxruntime 1.1e-07 openvino 1.1e-07   Sinh
#   asinh  eager 1.1e-07 compiled 1.1e-07 onnxruntime 1.1e-07 openvino 1.1e-07   Asinh
#   tanh   eager 5.8e-08 compiled 5.8e-08 onnxruntime 2.4e-07 openvino 6.4e-08   Tanh
#   atanh  eager 7.0e-08 compiled 5.6e-02 onnxruntime 1.1e-07 openvino 1.1e-07   Atanh
#   expm1  eager 5.9e-08 compiled 5.9e-08 onnxruntime 5.9e-02 openvino 5.9e-02   Exp Sub
#   log1p  eager 5.8e-08 compiled 5.8e-08 onnxruntime 5.9e-02 openvino 5.9e-02   Add Log
#   float64 sinh: Sinh
#      [ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Could not find an implementation for Sinh(9) node with name 'node_sinh'
