"""State of the translation of NVIDIA's form of a recipe: names, types and arrays, all checked."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_q4.errors import InputError
from tvm_q4.frontend.recipe_schema import is_int
from tvm_q4.quant import INT32_MAX, INT32_MIN, IntRange

Entry = dict[str, Any]
Arrays = dict[str, NDArray[Any]]

FULL = (INT32_MIN, INT32_MAX)
_IMAGE_SIZE = (224, 224)


class Translation:
    """Operators, arrays and names so far, and checked access to what they refer to."""

    def __init__(
        self, graph: dict[str, Any], arrays: Arrays, image_size: tuple[int, int] | None
    ) -> None:
        self.graph, self.arrays = graph, arrays
        self.default_size = image_size is None
        self.image_size = image_size or _IMAGE_SIZE
        self.types = _types(graph["types"])
        self.ops: list[Entry] = []
        self.out: Arrays = {}
        self.read: set[str] = set()
        self.names: dict[str, str] = {}
        self.kinds: dict[str, str] = {}
        self.relu_of: dict[str, str] = {}
        self.spatial: dict[str, tuple[int, int]] = {}
        self.aliases: dict[str, str] = {}
        self.meta: Entry = {
            "name": graph.get("name", "recipe"),
            "source_format": "nvidia-int4-recipe",
        }
        self.input: Entry = {}
        self.where = "recipe"

    def document(self) -> Entry:
        """The finished document; every array must have been read."""
        if not self.ops or not self.input:
            raise InputError("recipe: there is no input_quant operator; a recipe begins with one")
        unread = sorted(k for k in set(self.arrays) - self.read if not k.endswith("_shift"))
        if unread:
            raise InputError(f"recipe array {unread[0]!r} belongs to no operator; remove it")
        self.meta["tensor_aliases"] = self.aliases
        output = self.tensor(self.graph["ops"][-1]["output"])
        return {"meta": self.meta, "input": self.input, "output": output, "ops": self.ops}

    def check_inputs(self, op: Entry) -> None:
        """What an operator reads exists, and its type's range lies in the one it takes."""
        inputs = op["input"] if isinstance(op["input"], list) else [op["input"]]
        if len(inputs) != (2 if op["op"] == "add" else 1):
            raise InputError(f"{self.where}: has {len(inputs)} inputs")
        for name in inputs:
            if not isinstance(name, str) or name not in self.kinds:
                msg = f"{self.where}: reads tensor {name!r}, which no operator before it makes"
                raise InputError(msg)
            made, taken = self.type(self.kinds[name]), self.type(op["in_type"])
            if made.lo < taken.lo or made.hi > taken.hi:
                msg = (
                    f"{self.where}: in_type is {op['in_type']!r}, but {name!r} is "
                    f"{self.kinds[name]!r}"
                )
                raise InputError(msg)

    def type(self, name: Any) -> IntRange:
        """Range of a type that ``types`` declares."""
        if not isinstance(name, str) or name not in self.types:
            raise InputError(f"{self.where}: type {name!r} is not in 'types'")
        return self.types[name]

    def array(self, name: Any) -> NDArray[Any]:
        """An array by name."""
        if not isinstance(name, str) or name not in self.arrays:
            raise InputError(f"{self.where}: array {name!r} is not in model.npz")
        self.read.add(name)
        return self.arrays[name]

    def integers(self, name: Any, kind: Any) -> NDArray[Any]:
        """An array by name whose values must lie in its declared type."""
        array, allowed = self.array(name), self.type(kind)
        if array.dtype.kind not in "iu" or array.size == 0:
            found = f"{array.dtype} {list(array.shape)}"
            msg = f"{self.where}: array {name!r} is {found}, expected integers"
            raise InputError(msg)
        if int(array.min()) < allowed.lo or int(array.max()) > allowed.hi:
            limits = f"{allowed.lo}..{allowed.hi}"
            msg = f"{self.where}: array {name!r} leaves {limits}, the range of {kind}"
            raise InputError(msg)
        return array

    def emit(
        self, kind: str, name: str, inputs: list[str], arrays: Arrays, **attributes: Any
    ) -> None:
        """Append an operator of our format, its arrays named after the tensor that it makes."""
        refs = {key: f"{name}.{key}" for key in arrays}
        self.out.update({refs[key]: array for key, array in arrays.items()})
        self.ops.append({"op": kind, "name": name, "inputs": inputs, **refs, **attributes})

    def tensor(self, name: str) -> str:
        """Our name of a tensor; a ReLU that is no requantization's clamp is emitted here."""
        if name in self.relu_of and name not in self.names:
            source = self.tensor(self.relu_of[name])
            one, none = np.array([1], np.int32), np.array([0], np.int32)
            self.emit(
                "requantize", name, [source], {"multiplier": one, "shift": none}, lo=0,
                hi=INT32_MAX, dtype="int32", zero_point=0, in_zero_point=0, rounding="half_away",
            )  # fmt: skip
            self.names[name] = name
        return self.names[name]

    def made(self, op: Entry, size: tuple[int, int] | None) -> str:
        """Record that `op`'s output keeps its name, and its height and width."""
        output = op["output"]
        self.names[output] = output
        if size is not None:
            self.spatial[output] = size
        return output

    def size(self, name: str) -> tuple[int, int]:
        """Height and width of a tensor."""
        if name not in self.spatial:
            raise InputError(f"{self.where}: its input {name!r} has no height and width")
        return self.spatial[name]


def _types(entry: Any) -> dict[str, IntRange]:
    out = {}
    for name, bounds in entry.items() if isinstance(entry, dict) else ():
        if not isinstance(bounds, list) or len(bounds) != 2 or not all(is_int(v) for v in bounds):
            raise InputError(f"recipe type {name!r}: bounds {bounds!r} must be two integers")
        if not INT32_MIN <= bounds[0] <= bounds[1] <= INT32_MAX:
            raise InputError(f"recipe type {name!r}: bounds {bounds} leave int32")
        out[name] = IntRange(*bounds)
    return out
