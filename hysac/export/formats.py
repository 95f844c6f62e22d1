"""The formats in which a program is written, and how each runs: batches to points and distances."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hysac.export.towers import INPUTS, OUTPUTS

Run = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From a batch of a tower's input to its points and distances, on the CPU."""


@dataclass(frozen=True)
class Format:
    """A way to write programs.

    Attributes:
        suffix: of the files.
        packages: of Python, that writing and checking need.
        write: a program of a modality into a file.
        load: the file, ready to run.
    """

    suffix: str
    packages: tuple[str, ...]
    write: Callable[[torch.export.ExportedProgram, str, Path], object]
    load: Callable[[Path], Run]


def _write_onnx(program: torch.export.ExportedProgram, modality: str, path: Path) -> None:
    """Write an ONNX file. It holds at most 2 GB: more weights go into ``.onnx.data`` beside it."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    exported = torch.onnx.export(
        program,
        dynamo=True,
        verbose=False,
        input_names=[INPUTS[modality]],
        output_names=list(OUTPUTS),
        dynamic_shapes=({0: "batch"},),
    )
    assert exported is not None  # only the older exporter returns None
    ClearMetadataAndDocStringPass()(exported.model)  # it names every line of code, with its path
    exported.save(path)


def load_onnx(path: Path) -> Run:
    """An ONNX file in onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (of_input,) = session.get_inputs()

    def run(batch: Tensor) -> tuple[Tensor, Tensor]:
        points, distances = session.run(list(OUTPUTS), {of_input.name: batch.numpy()})
        return torch.from_numpy(np.asarray(points)), torch.from_numpy(np.asarray(distances))

    return run


def _write_program(program: torch.export.ExportedProgram, modality: str, path: Path) -> None:
    torch.export.save(program, path)


def _load_program(path: Path) -> Run:
    return torch.export.load(path).module()


def _write_compiled(program: torch.export.ExportedProgram, modality: str, path: Path) -> None:
    torch._inductor.aoti_compile_and_package(program, package_path=str(path))


def _load_compiled(path: Path) -> Run:
    return torch._inductor.aoti_load_package(str(path))


FORMATS: Mapping[str, Format] = {
    "onnx": Format(".onnx", ("onnx", "onnxscript", "onnxruntime"), _write_onnx, load_onnx),
    "pt2": Format(".pt2", (), _write_program, _load_program),
    "aoti": Format(".aoti.pt2", (), _write_compiled, _load_compiled),
}
"""The formats by their names for ``--format``."""


def check_installed(name: str) -> None:
    """Refuse a format whose packages are missing, before any work.

    Raises:
        ImportError: names the extra that installs them.
    """
    for package in FORMATS[name].packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ImportError(f"the format {name} needs {package}: pip install 'hysac[export]'") from error


def check_compiler() -> None:
    """Refuse AOTInductor without a C++ compiler.

    Raises:
        FileNotFoundError: there is none.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, RuntimeError) as error:
        raise FileNotFoundError(
            "the format aoti needs a C++ compiler, and there is none: install g++, or set CXX"
        ) from error


def versions(formats: Any) -> dict[str, str]:
    """The versions of the packages that wrote the files."""
    from importlib import metadata

    packages = {package for name in formats for package in FORMATS[name].packages}
    return {name: metadata.version(name) for name in ("hysac", "torch", "open_clip_torch", *sorted(packages))}
