"""Watching a run: the tensors that each kernel of a library wrote, before the arena reuses them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from tvm_q4.errors import LibraryError
from tvm_q4.layouts import to_logical


class Tracer:
    """Instrument of a run that copies the outputs of every kernel in ``metadata["calls"]``.

    Parameters
    ----------
    metadata : mapping
        A library's metadata.
    dtype : str
        Dtype of the run's input: with the quantized one, the input's quantize is not called.
    """

    def __init__(self, metadata: Mapping[str, Any], dtype: str) -> None:
        self._calls = expected_calls(metadata, dtype)
        self._kernels = {call["kernel"] for call in metadata["calls"]}
        self._done = 0
        self._error: LibraryError | None = None
        self.tensors: dict[str, NDArray] = {}

    def __call__(self, _func: Any, name: str, before: bool, _result: Any, *args: Any) -> int:
        """Called by the virtual machine before and after each of its calls."""
        if not before and self._error is None and name in self._kernels:
            try:
                self._record(name, args)
            except LibraryError as error:  # not through the virtual machine: it would lose the type
                self._error = error
        return 0

    def _record(self, kernel: str, args: tuple[Any, ...]) -> None:
        call = self._calls[self._done] if self._done < len(self._calls) else None
        if call is None or call["kernel"] != kernel:
            expected = call["kernel"] if call else "no further kernel"
            msg = (
                f"call {self._done} of the library is {kernel!r}, its metadata says {expected!r}; "
                "compile the model again"
            )
            raise LibraryError(msg)
        self._done += 1
        outputs = call["outputs"]
        for entry, tensor in zip(outputs, args[len(args) - len(outputs) :], strict=True):
            array = to_logical(tensor.numpy(), entry["shape"], entry["layout"])
            self.tensors[entry["name"]] = array.astype(entry["dtype"], copy=False)

    def finish(self) -> dict[str, NDArray]:
        """The recorded tensors, in the order in which they were made.

        Raises
        ------
        LibraryError
            If the calls were not those that the metadata lists.
        """
        if self._error is not None:
            raise self._error
        if self._done != len(self._calls):
            missing = self._calls[self._done]["kernel"]
            raise LibraryError(
                f"kernel {missing!r} of the metadata was never called; compile the model again"
            )
        return self.tensors


def expected_calls(metadata: Mapping[str, Any], dtype: str) -> list[dict[str, Any]]:
    """Entries of ``metadata["calls"]`` that a run with an input of that dtype makes, in order.

    ``main_quantized`` takes the integers that the first quantize would have made, and so has every
    call but that one.
    """
    calls = list(metadata["calls"])
    quantized = metadata["input"]["quantized"]
    if dtype == metadata["input"]["dtype"] or quantized is None:
        return calls
    made = next(
        i for i, c in enumerate(calls) if any(o["name"] == quantized["name"] for o in c["outputs"])
    )
    return calls[:made] + calls[made + 1 :]
