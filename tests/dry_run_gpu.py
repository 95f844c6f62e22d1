"""``make dry-run-gpu``: every command for a GPU on a CPU that passes for one, at small sizes.

    python tests/dry_run_gpu.py runs/dry-run

Each runs in a process of its own with :mod:`pretended_gpu`. Its results say that they are of a device
named ``pretended``, and are refused by the folder of results. As a plugin of pytest, ``-p dry_run_gpu``,
or before a module, ``python -m dry_run_gpu benchmarks.retrieval ...``, this makes device and small sizes.
"""

from __future__ import annotations

import argparse
import importlib
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
WIDTH = 32


def rows(count: int) -> int:
    """Few, different for different counts, and in their order."""
    return int(1.8 * math.log2(count))


def shrink() -> None:
    """The shapes and samples of the benchmarks, and the tuner's choices."""
    from benchmarks import roofline, sampling, session
    from benchmarks.cases import CASES
    from benchmarks.providers import PROVIDERS
    from hypkernels.contrastive import tune

    def small(shape):
        return {"B": rows(shape["B"]), "D": WIDTH} if "D" in shape else {"B": 2}

    for name, case in CASES.items():
        shapes = {size: tuple(map(small, of_size)) for size, of_size in case.shapes.items()}
        CASES[name] = replace(case, shapes=shapes)
    for name, provider in PROVIDERS.items():
        most = {case: rows(count) for case, count in provider.most_rows.items()}
        PROVIDERS[name] = replace(provider, most_rows=most)
    for name, plan in session.PLANS.items():
        session.PLANS[name] = replace(plan, least=1, most=1, seconds=0.0, slowest=math.inf)
    sampling.LONG = 0.0  # two runs are warm
    roofline.COPY_BYTES["cuda"], roofline.MATRIX_SIZE["cuda"] = 1 << 20, 512
    tune.OPTIONS.clear()
    tune.OPTIONS.update(rows=(32, 64))


def is_folder_of_results(folder: Path) -> bool:
    measured = (ROOT / "benchmarks" / "results").resolve()
    return measured in (folder.resolve(), *folder.resolve().parents)


def pytest_configure(config):
    folder = config.getoption("--results", None)
    if folder is not None and is_folder_of_results(folder):
        import pytest

        raise pytest.UsageError("a dry run measures nothing: --results must be another folder")


NOT_HERE = (
    # Fake tensors, of which a pretended GPU has none.
    "tests/kernels/test_tune_kernel.py::test_pytorch_multiplies_bfloat16_on_nvidia_only",
    "tests/kernels/test_pairwise_kernel.py::test_opcheck",
    # Gradients that come back from the CPU, which no operation tells a pretended GPU.
    "tests/kernels/test_maps_kernel.py",
    "tests/kernels/test_numbers_kernel.py::test_float64_points_beyond_the_range_of_a_kernel",
)


def commands(out: Path, share: int) -> Iterator[tuple[str, list[str]]]:
    """What ``make test-gpu`` and ``make bench-gpu`` run, and the tuner."""
    pretended = ["-m", "dry_run_gpu"]
    pytest = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "-p", "dry_run_gpu"]
    bench = [*pytest, "benchmarks", "--device", "cuda", "--size", "large", "--results", str(out)]
    yield (
        "tests",
        [
            *pytest,
            "tests/kernels",
            "tests/gpu",
            "--share",
            str(share),
            *(word for test in NOT_HERE for word in ("--deselect", test)),
            "--gpu-record",
            str(out / "gpu.json"),
        ],
    )
    yield "compilation", [*pretended, "benchmarks.compile", "--workers", "1"]
    yield "benchmarks, cut short", [*bench, "--time-limit", "20", "--commit", "none"]
    yield "benchmarks, to their end", [*bench, "--commit", "none"]
    sizes = ["--queries", "20", "--items", "200", "--width", str(WIDTH), "--rounds", "2"]
    yield "searches", [*pretended, "benchmarks.retrieval", "--device", "cuda", *sizes, "--results", str(out)]
    pages = ["--docs", str(out / "docs"), "--readme", str(out / "README.md")]
    yield "report", ["-m", "benchmarks.report", "--results", str(out), *pages]
    (found,) = out.glob("pretended/20*.json")
    yield "comparison", ["-m", "benchmarks.compare", str(found), str(found), "--all"]
    tune = ["hypkernels.contrastive.tune", "--rows", "40", "--width", str(WIDTH)]
    for dtype in ("bfloat16", "float32"):
        yield f"tuner, {dtype}", [*pretended, *tune, "--dtype", dtype]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/dry_run_gpu.py", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a new one, for what the commands write")
    parser.add_argument(
        "--share", type=int, default=12, help="of the tests, one case in so many (default: 12)"
    )
    options = parser.parse_args()
    if is_folder_of_results(options.folder):
        parser.error("a dry run measures nothing: another folder than that of the results")
    options.folder.mkdir(parents=True)
    out = options.folder.resolve()
    shutil.copy(ROOT / "README.md", out)
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": path, "HYPKERNELS_BACKEND": "auto"}
    failed = []
    for name, arguments in commands(out, options.share):
        began = time.monotonic()
        interpret = {"TRITON_INTERPRET": "1"} if "dry_run_gpu" in arguments else {}
        done = subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, env=environment | interpret, check=False
        )
        print(f"{name}: exit status {done.returncode}, {time.monotonic() - began:.0f} s", flush=True)
        if done.returncode:
            failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else "all of it ran")
    return 1 if failed else 0


if os.environ.get("TRITON_INTERPRET") == "1":
    import pretended_gpu  # noqa: F401

    shrink()

if __name__ == "__main__":
    if "pretended_gpu" not in sys.modules:
        raise SystemExit(main())
    sys.argv = sys.argv[1:]
    importlib.import_module(sys.argv[0]).main()
