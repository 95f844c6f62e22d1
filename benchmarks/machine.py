"""What identifies a run: the device, the software and the measured source."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
SOURCES = ("hypkernels", "hysac", "benchmarks")


def describe_device(device: torch.device) -> dict[str, object]:
    """``slug`` names the folder of results, ``name`` is for people."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name = torch.cuda.get_device_name(device)
        return {
            "slug": _slug(name),
            "name": name,
            "kind": "cuda",
            "memory_bytes": properties.total_memory,
            "driver": _driver(),
        }
    cores = torch.get_num_threads()
    name = f"{_cpu_name()}, {cores} core{'s' if cores > 1 else ''}"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "slug": _slug(name),
        "name": name,
        "kind": "cpu",
        "memory_bytes": memory,
        "driver": None,
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


def describe_software() -> dict[str, str | None]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "cuda": torch.version.cuda,
        "system": f"{platform.system()} {platform.machine()}",
    }


def commit() -> str | None:
    """The commit of the working tree, ``+`` if it differs from it, None outside a repository."""
    try:
        head = _output("git", "rev-parse", "--short=10", "HEAD")
        changes = _output("git", "status", "--porcelain", "--", *SOURCES, ":(exclude)benchmarks/results")
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changes else "")


def source_digest() -> str:
    """Of all Python files that take part, so that an interrupted run resumes with the same code only."""
    digest = hashlib.sha256()
    for path in sorted(path for folder in SOURCES for path in (ROOT / folder).rglob("*.py")):
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _cpu_name() -> str:
    try:
        info = Path("/proc/cpuinfo").read_text()
    except OSError:
        info = ""
    found = re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE)
    name = found.group(1) if found else platform.processor() or platform.machine()
    name = re.sub(r"\((R|TM|tm)\)|\bCPU\b|\bProcessor\b|@.*", " ", name)
    return " ".join(name.split())


def _driver() -> str | None:
    try:
        query = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        return _output(*query).splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _output(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()
