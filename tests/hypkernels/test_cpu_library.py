"""The compiled library: how it is found and chosen, and how it behaves in processes, threads and forks."""

import math
import os
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
from native_rows import ISAS, needs_library

import hypkernels as hk
from hypkernels.cpu import library
from hypkernels.cpu import rows as native

pytestmark = pytest.mark.slow

CURV = torch.tensor(1.0)


def run_python(code, **environment):
    """A fresh process; what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@needs_library
@pytest.mark.parametrize("name", ISAS)
def test_the_environment_forces_an_instruction_set(name):
    code = "from hypkernels.cpu import library; print(library.isa())"
    assert run_python(code, HYPKERNELS_CPU_ISA=name) == name


@needs_library
def test_the_best_instruction_set_is_the_default():
    assert library.use_isa(None) == library.available_isas()[0]
    assert library.available_isas()[-1] == "baseline"


@needs_library
@pytest.mark.parametrize(
    ("name", "message"),
    [("sse9", "HYPKERNELS_CPU_ISA must be one of 'avx512', 'avx2', 'baseline', got 'sse9'")]
    + [(name, "and this machine runs") for name in library.ISAS if name not in ISAS],
)
def test_an_instruction_set_that_is_not_there_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        library.use_isa(name)


def test_a_library_that_is_not_there_is_reported(monkeypatch, tmp_path):
    monkeypatch.setattr(library, "_PATH", tmp_path / "libhypkernels.so.1")
    monkeypatch.setattr(library, "load", library.load.__wrapped__)
    assert "does not exist" in library.why_not()
    (tmp_path / "libhypkernels.so.1").write_bytes(b"no library")
    assert "cannot be loaded" in library.why_not()
    assert library.describe()[0].startswith("native: no, ")


def test_without_a_compiler_the_installation_succeeds(tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    setup = Path(__file__).parents[2] / "setup.py"
    if not setup.exists():
        pytest.skip("runs from the sources")
    build = ["build_ext", f"--build-lib={tmp_path / 'lib'}", f"--build-temp={tmp_path / 'temp'}"]
    done = subprocess.run(
        [sys.executable, "setup.py", *build],
        env={**os.environ, "CC": "/nonexistent/cc", "CXX": "/nonexistent/c++"},
        cwd=setup.parent,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.rglob("libhypkernels*"))


@needs_library
def test_the_description_names_what_runs():
    text = "\n".join(library.describe())
    assert library.isa() in text
    assert "threads" in text


@needs_library
def test_no_second_openmp_runtime():
    code = """
import torch
from hypkernels.cpu import rows
torch.set_num_threads(2)
x = torch.randn(4096, 64)
rows.forward("exp_map0", [x], [torch.tensor(1.0)])
(x @ x.mT).sum()
files = {line.split()[-1].rsplit("/", 1)[-1] for line in open("/proc/self/maps")}
print(sum(name.startswith(("libgomp", "libomp", "libiomp")) for name in files))
"""
    if not sys.platform.startswith("linux"):
        pytest.skip("reads /proc")
    assert run_python(code) == "1"


@needs_library
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("threads_before", [True, False])
def test_works_after_fork(threads_before):
    """In a child the parent's threads are gone; without any, the child may have its own."""
    code = f"""
import os, torch
from hypkernels.cpu import rows
torch.set_num_threads(2)
x, c = torch.randn(4096, 64), torch.tensor(1.0)
expected = rows.forward("exp_map0", [x], [c]) if {threads_before} else None
pid = os.fork()
if pid == 0:
    out = rows.forward("exp_map0", [x], [c])
    torch.set_num_threads(1)  # PyTorch itself waits for the threads
    same = expected is None or torch.equal(out, expected)
    os._exit(0 if same and out.isfinite().all() else 1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    assert run_python(code) == "0"


@needs_library
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_products_after_fork():
    """PyTorch's would wait for its threads too."""
    code = """
import os, torch
from hypkernels.cpu import pairwise
torch.set_num_threads(2)
x, c = torch.randn(300, 64) / 8, torch.tensor(1.0)
expected = pairwise.pairwise_dist(x, x, c)
pid = os.fork()
if pid == 0:
    out = pairwise.pairwise_dist(x, x, c)
    torch.set_num_threads(1)
    os._exit(0 if torch.allclose(out, expected, rtol=1e-5, atol=1e-6) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    assert run_python(code) == "0"


@needs_library
def test_several_threads_at_once():
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(500, 64 + i, generator=generator) / 8 for i in range(8)]
    expected = [native.forward("exp_map0", [x], [CURV]) for x in inputs]
    wrong = []

    def work(i):
        for _ in range(20):
            if not torch.equal(native.forward("exp_map0", [inputs[i]], [CURV]), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@needs_library
def test_denormals_are_not_flushed():
    """As -ffast-math would make the whole process do."""
    assert torch.tensor(1e-40).mul(0.5).item() > 0
    assert native.forward("log_map0", [torch.full((1, 64), 1e-40)], [CURV]).gt(0).all()


@needs_library
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 2), (5, 7), (37, 33), (130, 65)])
def test_no_bit_depends_on_what_was_in_memory(shape, dtype):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))

    def results(function, left_behind):
        leaves = [x.clone().requires_grad_(), y.clone().requires_grad_()]
        with hk.use_backend("native"):
            pins = [leave_behind(left_behind)]
            out = function(*leaves)
            pins.append(leave_behind(left_behind))
            return out.detach(), *torch.autograd.grad(out.sum(), leaves)

    losses = [partial(hk.contrastive_loss, similarity=name) for name in ("dist", "angle", "inner")]
    for function in (hk.oxy_angle, hk.pairwise_dist, hk.pairwise_inner, hk.pairwise_oxy_angle, *losses):
        expected = results(function, 0.0)
        for left_behind in (math.nan, math.inf, -math.inf):
            for one, other in zip(results(function, left_behind), expected, strict=True):
                assert torch.equal(one, other)


def leave_behind(value):
    """In memory that is free again, but for what comes back: it keeps that memory from the system."""
    pins = []
    for size in (1 << 17, 1 << 14, 1 << 11):
        for dtype in (torch.float32, torch.float64):
            *_, last = [torch.full((size,), value, dtype=dtype) for _ in range(8)]
            pins.append(last)
    return pins


def test_the_module_describes_itself():
    lines = run_python("import runpy; runpy.run_module('hypkernels', run_name='__main__')").splitlines()
    assert lines[0].startswith("hypkernels ")
    assert torch.__version__ in lines[0]
    assert any(line.startswith("native: ") for line in lines)


@needs_library
def test_products_leave_the_threads_of_mkl_as_they_were():
    """The library asks MKL for one thread while it multiplies: else sums depend on how many there are."""
    set_threads = getattr(library._torch_library(), "MKL_Set_Num_Threads_Local", None)
    if set_threads is None:
        pytest.skip("PyTorch's products are not MKL's")
    points = torch.randn(300, 65, generator=torch.Generator().manual_seed(0))
    set_threads(3)
    with hk.use_backend("native"):
        hk.pairwise_dist(points, points)
    assert set_threads(0) == 3
