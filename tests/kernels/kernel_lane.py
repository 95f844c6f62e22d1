"""Where kernels run in this process: compiled on a GPU, in Triton's interpreter on the CPU, or nowhere."""

import os

import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu")
RUNNABLE = INTERPRETED or DEVICE.type == "cuda"
