"""``python -m hypkernels``: what runs here, for a bug report."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch

from hypkernels import backend
from hypkernels.cpu import library


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"


def describe() -> list[str]:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    triton = f"triton: {_version('triton')}" if find_spec("triton") else "triton: no, not installed"
    return [
        f"hypkernels {_version('hysac')}, Python {platform.python_version()}, PyTorch {torch.__version__}",
        f"{platform.system()} on {platform.machine()}, GPU: {gpu}",
        f"backend setting: {backend.setting()}",
        *library.describe(),
        triton,
        "torch: yes",
        "reference: yes",
    ]


if __name__ == "__main__":
    print("\n".join(describe()))
