"""Reading of ``.onnx`` files: the protobuf, tensors, and data that stands in files beside it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from tvm_q4.errors import InputError, UnsupportedError
from tvm_q4.quant import IntRange

_T = onnx.TensorProto
NARROW = {
    name: (dtype, IntRange(lo, hi))
    for name, dtype, lo, hi in (
        ("INT4", "int8", -8, 7), ("UINT4", "uint8", 0, 15),
        ("INT2", "int8", -2, 1), ("UINT2", "uint8", 0, 3),
    )
}  # fmt: skip
"""Types narrower than a byte: the container and the range."""

_LONGEST_NAME = 2000
_PLAIN = (
    "FLOAT", "DOUBLE", "INT8", "UINT8", "INT16", "UINT16", "INT32", "UINT32", "INT64", "BOOL",
)  # fmt: skip


@dataclass(frozen=True)
class OnnxFile:
    """A model as it was read; `folder` is where its external data stands."""

    model: onnx.ModelProto
    sha256: str
    folder: Path


def read_onnx(path: Path) -> OnnxFile:
    """Parse a file.

    Raises
    ------
    InputError
        If it cannot be read or is no ONNX model.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error.strerror or error}") from error
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise InputError(f"'{path}' is no ONNX model, or it is cut off") from error
    if not model.graph.node or not model.opset_import:
        raise InputError(f"'{path}' is no ONNX model: it holds no graph with an operator set")
    for text in _texts(model):
        if not isinstance(text, str) or not text.isprintable() or len(text) > _LONGEST_NAME:
            raise InputError(f"'{path}' holds the name {text!r:.80}; the file is damaged")
    return OnnxFile(model, hashlib.sha256(data).hexdigest(), path.parent)


def _texts(model: onnx.ModelProto) -> Iterator[str | bytes]:
    """Every name that a message may repeat; protobuf gives bytes for what is no UTF-8."""
    yield from (model.producer_name, model.producer_version)
    yield from (o.domain for o in model.opset_import)
    for body in (model.graph, *model.functions):
        for node in body.node:
            yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
            yield from (a.name for a in node.attribute)
            yield from (a.ref_attr_name for a in node.attribute)
    for tensor in model.graph.initializer:
        yield from (tensor.name, *(e.value for e in tensor.external_data))
    yield from (value.name for value in (*model.graph.input, *model.graph.output))


def type_name(data_type: int) -> str:
    """Name of an element type, ``FLOAT8E4M3FN``."""
    known = _T.DataType.values()
    return str(_T.DataType.Name(data_type)) if data_type in known else f"type {data_type}"


def tensor_array(
    tensor: onnx.TensorProto, folder: Path | None
) -> tuple[NDArray[Any], IntRange | None]:
    """Value of a tensor, in a container of whole bytes, and its range if that is narrower.

    Raises
    ------
    InputError
        If its data is missing or does not fit its shape.
    UnsupportedError
        If its element type has no exact form here (float16, float8, ...).
    """
    kind, where = type_name(tensor.data_type), f"tensor '{tensor.name}'"
    if kind not in (*_PLAIN, *NARROW):
        raise UnsupportedError(
            f"{where} has type {kind}; supported are float32 and integers of 2 to 32 bits"
        )
    shape = list(tensor.dims)
    if any(d < 0 for d in shape) or math.prod(shape) >= 2**31:
        raise InputError(f"{where} states the shape {shape}; the file is damaged")
    if tensor.data_location == _T.EXTERNAL:
        tensor = _with_external_data(tensor, folder)
    try:
        array = np.asarray(onnx.numpy_helper.to_array(tensor))
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f"{where}: its data does not fit {kind} {shape}") from error
    if list(array.shape) != shape:
        raise InputError(f"{where}: its data does not fit {kind} {shape}")
    if kind in NARROW:
        dtype, bounds = NARROW[kind]
        return array.astype(dtype), bounds
    return np.ascontiguousarray(array).reshape(shape), None


def _with_external_data(tensor: onnx.TensorProto, folder: Path | None) -> onnx.TensorProto:
    """A copy of the tensor that holds its bytes itself.

    Only files in the model's folder, or below it, are read: a model must not reach what lies
    elsewhere on the machine.
    """
    entry = {e.key: e.value for e in tensor.external_data}
    location, where = entry.get("location", ""), f"tensor '{tensor.name}'"
    if folder is None:
        raise InputError(f"{where} has its data in file '{location}', but no folder is known")
    path = (folder / location).resolve()
    if not location or not path.is_relative_to(folder.resolve()):
        raise InputError(
            f"{where} has its data in file '{location}', which is outside the model's folder; "
            "put the file beside the model"
        )
    if not path.is_file():
        raise InputError(
            f"{where} has its data in file '{location}', which is missing; put it beside the model"
        )
    start, count = (_position(entry, key, where) for key in ("offset", "length"))
    with path.open("rb") as file:
        size = path.stat().st_size
        count = size - start if "length" not in entry else count
        if start + count > size or count < 0:
            raise InputError(
                f"{where} needs bytes {start}..{start + count} of file '{location}', which has "
                f"{size}; the file is cut off"
            )
        file.seek(start)
        data = file.read(count)
    loaded = onnx.TensorProto()
    loaded.CopyFrom(tensor)
    loaded.ClearField("external_data")
    loaded.data_location = _T.DEFAULT
    loaded.raw_data = data
    return loaded


def _position(entry: dict[str, str], key: str, where: str) -> int:
    text = entry.get(key, "0")
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise InputError(f"{where}: the {key} of its data is '{text:.40}'; the file is damaged")
    return int(text)
