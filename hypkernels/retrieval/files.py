"""Matrices in ``.npy`` and ``.safetensors`` files, mapped into memory and checked against the file's size."""

from __future__ import annotations

import json
import math
import mmap
import os
import struct
import warnings
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

_NPY_DTYPES = {"<f8": torch.float64, "<f4": torch.float32, "<f2": torch.float16}
_SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
}
_LONGEST_HEADER = 100_000_000  # of a safetensors file, as that library has it


class _Place(NamedTuple):
    """A dense tensor in a file: its dtype, its shape, and its first byte."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int


def map_file(path: str | os.PathLike[str], name: str | None = None) -> tuple[Tensor, mmap.mmap]:
    """The tensor that a file holds, as a view of the mapped file, and that map.

    Raises:
        FileNotFoundError: no such file.
        ValueError: neither format, a header that cannot be read, another dtype, an unknown ``name``, or a
            file that ends before the tensor does.
    """
    path = Path(path)
    with path.open("rb") as file:
        size = path.stat().st_size
        if path.suffix == ".npy":
            if name is not None:
                raise ValueError(f"name is of .safetensors files, and {path} holds one array; got {name!r}")
            place = _in_npy(path, file)
        elif path.suffix == ".safetensors":
            place = _in_safetensors(path, file, size, name)
        else:
            raise ValueError(f"a gallery file must be .npy or .safetensors, got {path}")
        count = math.prod(place.shape)
        end = place.offset + count * place.dtype.itemsize
        if end > size:
            raise ValueError(
                f"{path} is cut: its {place.shape} {_named(place.dtype)} numbers need {end} bytes, "
                f"it has {size}"
            )
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if not count:
        return torch.empty(place.shape, dtype=place.dtype), mapped
    return _of_buffer(mapped, place.dtype, count, place.offset).view(place.shape), mapped


def _of_buffer(buffer: Any, dtype: torch.dtype, count: int, offset: int) -> Tensor:
    with warnings.catch_warnings():  # PyTorch warns that the tensor is read-only
        warnings.simplefilter("ignore", UserWarning)
        return torch.frombuffer(buffer, dtype=dtype, count=count, offset=offset)


def of_array(array: np.ndarray) -> Tensor:
    """A tensor that is a view of an array or memory map."""
    if array.dtype.newbyteorder("=").str not in _NPY_DTYPES:
        raise TypeError(f"gallery must be float64, float32 or float16 as an array, got {array.dtype}")
    if not array.dtype.isnative or any(stride < 0 for stride in array.strides):
        raise ValueError("gallery must be an array of this machine's byte order and of positive strides")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)


def _in_npy(path: Path, file: BinaryIO) -> _Place:
    try:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read is None:
            raise ValueError(f"of version {version}")
        shape, by_columns, dtype = read(file)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} has no readable header of an .npy file: {error}") from error
    if dtype.str not in _NPY_DTYPES:
        raise ValueError(f"{path} must hold float64, float32 or float16, got {dtype}")
    if by_columns and len(shape) > 1:
        raise ValueError(f"{path} is stored by columns; save numpy.ascontiguousarray of it")
    return _Place(_NPY_DTYPES[dtype.str], tuple(shape), file.tell())


def _in_safetensors(path: Path, file: BinaryIO, size: int, name: str | None) -> _Place:
    try:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > min(size - 8, _LONGEST_HEADER):
            raise ValueError(f"it has {size} bytes, and its header alone {length}")
        header = json.loads(file.read(length))
        tensors = {key: value for key, value in header.items() if key != "__metadata__"}
        if name is None and len(tensors) != 1:
            raise KeyError(f"name must be one of {', '.join(sorted(tensors)) or 'none'}")
        if name is not None and name not in tensors:
            raise KeyError(f"name must be one of {', '.join(sorted(tensors)) or 'none'}, got {name!r}")
        entry = tensors[next(iter(tensors)) if name is None else name]
        kind, shape = entry["dtype"], tuple(map(int, entry["shape"]))
        begin, end = map(int, entry["data_offsets"])
    except KeyError as error:
        raise ValueError(f"{path}: {error.args[0]}") from None
    except (struct.error, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} has no readable header of a .safetensors file: {error}") from error
    if kind not in _SAFETENSORS_DTYPES:
        raise ValueError(f"{path} must hold F64, F32, BF16 or F16, got {kind}")
    dtype = _SAFETENSORS_DTYPES[kind]
    if begin < 0 or min(shape, default=1) < 0 or end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(
            f"{path} has no readable header of a .safetensors file: {shape} {kind} in {end - begin} bytes"
        )
    return _Place(dtype, shape, 8 + length + begin)


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
