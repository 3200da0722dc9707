"""What holds for a model of any tool: bit-exact when compiled, and onnxruntime's own integers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

import tvm_q4


@dataclass(frozen=True)
class Checked:
    """What a check found.

    Attributes
    ----------
    equal : float
        Smallest share of elements of a tensor that equal onnxruntime's.
    bits : dict of str to (int, int)
        Weight and activation bits of each layer, by name.
    source : dict
        Where the library says that its model came from.
    """

    equal: float
    bits: dict[str, tuple[int, int]]
    source: dict[str, Any]


def check_model(
    path: Path, x: NDArray, *, batch: int, tensors: int, same_class: bool = True
) -> Checked:
    """Compile `path`, verify it against the reference executor and onnxruntime on images `x`.

    `tensors` are stored by the library and compared with onnxruntime's. Each layer by itself may
    differ from it by one step, where a float bias was rounded or float32 met a tie. `same_class`
    demands the class of onnxruntime left to itself; deep random networks may differ.
    """
    library = tvm_q4.compile(path, batch=batch, require_integer_only=True)
    report = tvm_q4.verify(library, path, x, onnxruntime=True)
    assert report["bit_exact"], report["first_mismatch"]
    assert report["output"]["equal"] == 1
    assert report["n"] == len(x)
    rows = {r["name"]: r for r in report["layers"] if "onnxruntime_equal" in r}
    assert len(rows) == tensors, list(rows)
    assert max(r["onnxruntime_max_step"] for r in rows.values()) <= 1
    assert rows["input"]["onnxruntime_equal"] == 1
    assert report["onnxruntime_top1_agreement"] == 1 or not same_class
    layers, model = library.metadata["layers"], library.metadata["model"]
    return Checked(
        min(r["onnxruntime_equal"] for r in rows.values()),
        {r["name"]: (r["weight_bits"], r["activation_bits"]) for r in layers},
        {"format": model["source_format"], "tool": model["source_tool"]} | model["source_details"],
    )
