"""Where kernels run in this process: compiled on a GPU, in Triton's interpreter on the CPU, or nowhere."""

import os
import sys

import torch
import triton

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
PRETENDED = "pretended_gpu" in sys.modules  # and interpreted
DEVICE = torch.device("cuda" if torch.cuda.is_available() and (PRETENDED or not INTERPRETED) else "cpu")
RUNNABLE = INTERPRETED or DEVICE.type == "cuda"
# Triton's interpreter rounds the product of a ``tl.fma`` too before 3.9.
FMA_ROUNDS_ONCE = not INTERPRETED or tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 9)
