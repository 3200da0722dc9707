"""Damage for files: bytes, JSON values and the fields of an ONNX model, chosen by a seed."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3, 255, 2**31, -(2**31), 2**63, 10**30, 0.5, -0.0, 1e-45, 1e308,
    float("nan"), float("inf"), "", "x", "\x00", "../../etc", "9" * 5000, "ä" * 300, [], [[]], [0],
    [1] * 40, {}, {"": None}, {"name": "x"},
)  # fmt: skip


def bytes_of(data: bytes, rng: Random) -> bytes:
    """`data` cut off, with bits turned, or with spans overwritten, dropped, doubled or put in."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        at = rng.randrange(len(out) + 1)
        span = rng.choice([1, 2, 8, 100])
        kind = rng.randrange(6)
        if kind == 0:
            del out[at:]
        elif kind == 1 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            out[at : at + span] = rng.randbytes(span)
        elif kind == 3:
            del out[at : at + span]
        elif kind == 4:
            out[at:at] = out[at : at + span]
        else:
            out[at:at] = rng.choice(
                [b"\x00", b"\xff", b"{", b"[" * 2000, b'"', rng.randbytes(span)]
            )
    return bytes(out)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every container of a JSON document with each of its keys or indices."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        item = waiting.pop()
        keys = list(item) if isinstance(item, dict) else range(len(item))
        for key in keys:
            found.append((item, key))
            if isinstance(item[key], (dict, list)):
                waiting.append(item[key])
    return found


def json_of(text: str, rng: Random) -> str:
    """A JSON document with some values replaced, dropped, exchanged or doubled."""
    document = json.loads(text)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        places = _places(document)
        if not places:
            break
        owner, key = rng.choice(places)
        other, name = rng.choice(places)
        kind = rng.randrange(5)
        if kind == 0:
            del owner[key]
        elif kind == 1:
            owner[key] = copy.deepcopy(other[name])
        elif kind == 2 and isinstance(owner, list):
            owner.insert(key, copy.deepcopy(owner[key]))
        elif kind == 2:
            owner[rng.choice(["x", "", str(name)])] = owner.pop(key)
        else:
            owner[key] = rng.choice(_VALUES)
    return json.dumps(document)


def text_of(text: str, rng: Random) -> bytes:
    """A JSON document damaged as values or, now and then, as bytes."""
    if rng.random() < 0.2:
        return bytes_of(text.encode(), rng)
    return json_of(text, rng).encode("utf-8", "surrogatepass")


def lines_of(text: str, rng: Random) -> bytes:
    """JSON lines, one of them damaged."""
    lines = text.splitlines()
    at = rng.randrange(len(lines))
    damaged = text_of(lines[at], rng)
    return b"\n".join([*(line.encode() for line in lines[:at]), damaged,
                       *(line.encode() for line in lines[at + 1 :])])  # fmt: skip


_INTEGERS = (0, 1, -1, 2, 3, 7, 100, 2**31 - 1, 2**31, -(2**31), 2**62, -(2**63))


def onnx_of(data: bytes, rng: Random) -> bytes:
    """An ONNX model with some fields changed, so that the protobuf itself stays readable."""
    import onnx

    if rng.random() < 0.2:
        return bytes_of(data, rng)
    model = onnx.load_from_string(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        rng.choice([_node, _node, _node, _tensor, _tensor, _header])(model, rng)
    return model.SerializeToString()


def _node(model: Any, rng: Random) -> None:
    nodes = model.graph.node
    if not nodes:
        return
    node, other = rng.choice(nodes), rng.choice(nodes)
    names = [t.name for t in model.graph.initializer] + [o for n in nodes for o in n.output]
    kind = rng.randrange(8)
    if kind == 0:
        node.op_type = rng.choice([other.op_type, "Nonsense", "", "Loop", "If", "Reshape", "Cast"])
    elif kind == 1 and node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice([*names, "", "nothing"])
    elif kind == 2 and node.output:
        node.output[0] = rng.choice([*names, "", "new"])
    elif kind == 3 and node.attribute:
        _attribute(rng.choice(node.attribute), rng)
    elif kind == 4:
        nodes.remove(node)
    elif kind == 5:
        nodes.append(node)
    elif kind == 6 and node.input:
        del node.input[rng.randrange(len(node.input))]
    else:
        node.domain = rng.choice(["", "com.microsoft", "ai.onnx", "qonnx.custom_op.general", "x"])


def _attribute(attribute: Any, rng: Random) -> None:
    kind = rng.randrange(5)
    if kind == 0:
        attribute.type = rng.randrange(15)
    elif kind == 1:
        attribute.i = rng.choice(_INTEGERS)
    elif kind == 2:
        attribute.ints[:] = [rng.choice(_INTEGERS) for _ in range(rng.randrange(6))]
    elif kind == 3:
        attribute.name = rng.choice(["axis", "pads", "perm", "x", ""])
    else:
        attribute.s = rng.randbytes(3)


def _tensor(model: Any, rng: Random) -> None:
    tensors = model.graph.initializer
    if not tensors:
        return
    tensor = rng.choice(tensors)
    kind = rng.randrange(7)
    if kind == 0:
        tensor.data_type = rng.randrange(30)
    elif kind == 1:
        tensor.dims[:] = [rng.choice(_INTEGERS) for _ in range(rng.randrange(5))]
    elif kind == 2:
        tensor.raw_data = bytes_of(tensor.raw_data, rng)
    elif kind == 3:
        tensors.remove(tensor)
    elif kind == 4:
        tensor.data_location = 1
        tensor.external_data.add(key="location", value=rng.choice(["x", "/etc/passwd", ""]))
    elif kind == 5 and tensor.dims:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(_INTEGERS)
    else:
        tensor.name = rng.choice([t.name for t in tensors])


def _header(model: Any, rng: Random) -> None:
    graph, kind = model.graph, rng.randrange(5)
    if kind == 0 and model.opset_import:
        rng.choice(model.opset_import).version = rng.choice(_INTEGERS) % 2**31
    elif kind == 1 and graph.output:
        graph.output[0].name = rng.choice(["nothing", *[o for n in graph.node for o in n.output]])
    elif kind == 2 and graph.input:
        shape = graph.input[0].type.tensor_type.shape
        if shape.dim:
            rng.choice(shape.dim).dim_value = rng.choice(_INTEGERS)
    elif kind == 3 and graph.input:
        graph.input[0].type.tensor_type.elem_type = rng.randrange(25)
    else:
        graph.input.add().name = "another"
