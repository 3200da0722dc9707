"""Statistics of how two sets of named tensors differ, gathered over several batches."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_q4.errors import LibraryError


@dataclass
class Difference:
    """How many elements of a tensor were compared, were equal, and the largest difference."""

    elements: int = 0
    equal: int = 0
    max_step: float = 0

    def add(self, expected: NDArray, found: NDArray) -> NDArray[np.bool_]:
        """Count one more part of the tensor; True where elements are equal (NaN equals NaN)."""
        same = expected == found
        if not same.all():
            if np.issubdtype(expected.dtype, np.floating):
                same |= np.isnan(expected) & np.isnan(found)
                steps = np.abs(expected[~same].astype(np.float64) - found[~same])
            else:
                steps = np.abs(expected[~same].astype(np.int64) - found[~same].astype(np.int64))
            if steps.size:
                self.max_step = max(self.max_step, steps.max().item())
        self.elements += same.size
        self.equal += int(same.sum())
        return same

    @property
    def fraction(self) -> float:
        """Share of equal elements; exactly 1.0 only if all are."""
        return self.equal / self.elements

    @property
    def exact(self) -> bool:
        """Whether all elements were equal."""
        return self.equal == self.elements


class Comparison:
    """Tensors of a library against those of the reference executor and of the framework's model.

    Parameters
    ----------
    boundaries : collection of str
        Tensors that quantize a float island, from which equality is not demanded.
    """

    def __init__(self, boundaries: Collection[str]) -> None:
        self._boundaries = frozenset(boundaries)
        self._names: list[str] = []
        self._exact: dict[str, Difference] = {}
        self._models: dict[str, dict[str, Difference]] = {}
        self._output = Difference()
        self._exact_output = True
        self.mismatch: dict[str, Any] | None = None

    def add(
        self, expected: Mapping[str, NDArray], found: Mapping[str, NDArray], count: int
    ) -> None:
        """Compare the first `count` images of every tensor that both have.

        Raises
        ------
        LibraryError
            If a tensor has another shape in the library than in the model.
        """
        self._names = list(dict.fromkeys([*self._names, *expected]))
        for name in expected:
            if name in found:
                want, have = expected[name][:count], found[name][:count]
                if want.shape != have.shape:
                    msg = f"{name!r} is {have.shape} in the library, {want.shape} in the model"
                    raise LibraryError(msg)
                same = self._exact.setdefault(name, Difference()).add(want, have)
                if name not in self._boundaries:
                    self._note(name, want, have, same)

    def add_output(self, expected: NDArray, found: NDArray, count: int, *, exact: bool) -> None:
        """Compare the network's result; `exact` says whether equality is demanded."""
        same = self._output.add(expected[:count], found[:count])
        self._exact_output = exact
        if exact:
            self._note("output", expected[:count], found[:count], same)

    def add_model(
        self, source: str, values: Mapping[str, NDArray], found: Mapping[str, NDArray], count: int
    ) -> None:
        """Compare with the integers of a model in floats, which may differ by roundings.

        `source` begins the names of the report's keys: ``framework`` or ``onnxruntime``.
        """
        differences = self._models.setdefault(source, {})
        for name, value in found.items():
            differences.setdefault(name, Difference()).add(values[name][:count], value[:count])

    def _note(self, name: str, want: NDArray, have: NDArray, same: NDArray[np.bool_]) -> None:
        if self.mismatch is None and not same.all():
            index = tuple(np.argwhere(~same)[0].tolist())
            self.mismatch = {
                "name": name,
                "index": list(index),
                "expected": want[index].item(),
                "found": have[index].item(),
                "different": int((~same).sum()),
                "elements": int(same.size),
            }

    def report(self, end_at_mismatch: bool) -> dict[str, Any]:
        """``bit_exact``, ``layers``, ``output``, ``first_mismatch``: what `verify` returns."""
        demanded = [d for name, d in self._exact.items() if name not in self._boundaries]
        exact = bool(demanded) and all(d.exact for d in demanded)
        rows = [self._row(name) for name in self._names]
        if end_at_mismatch and self.mismatch is not None:
            last = self.mismatch["name"]
            stop = self._names.index(last) + 1 if last in self._names else len(rows)
            rows = rows[:stop]
        return {
            "bit_exact": exact and (self._output.exact or not self._exact_output),
            "layers": rows,
            "output": {"equal": self._output.fraction, "max_step": self._output.max_step},
            "first_mismatch": self.mismatch,
        }

    def _row(self, name: str) -> dict[str, Any]:
        found = self._exact.get(name)
        row: dict[str, Any] = {
            "name": name,
            "kind": "float boundary" if name in self._boundaries else "exact",
            "checked": found is not None,
            "equal": found.fraction if found else None,
            "max_step": found.max_step if found else None,
        }
        for source, differences in self._models.items():
            if name in differences:
                row[f"{source}_equal"] = differences[name].fraction
                row[f"{source}_max_step"] = differences[name].max_step
        return row


def top1_agreement(a: NDArray, b: NDArray) -> float | None:
    """Share of images whose largest logit has the same index; None for what is not [N, K]."""
    if a.ndim != 2 or a.shape != b.shape:
        return None
    return float((a.argmax(axis=1) == b.argmax(axis=1)).mean())
