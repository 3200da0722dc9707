"""Where a library's code runs: TVM's virtual machine on the CPU, and its tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_q4.errors import InputError, LibraryError
from tvm_q4.library.host import check_host, version_note
from tvm_q4.library.inputs import InputSpec, as_array
from tvm_q4.library.outputs import store

ALIGNMENT = 64
"""Bytes to which TVM's generated code may assume that tensors are aligned."""


class Backend(ABC):
    """A library's virtual machine on one device.

    Attributes
    ----------
    path : Path
    metadata : dict
        The library's, about the code that runs.
    device : tvm.runtime.Device
    device_name : str
    cuda_graph : bool
        Whether runs replay a CUDA graph.
    """

    cuda_graph = False

    def __init__(self, path: Path, metadata: dict[str, Any], device: Any, name: str) -> None:
        self.path, self.metadata, self.device, self.device_name = path, metadata, device, name
        self._vm = virtual_machine(path, metadata, device)
        self._buffers: dict[str, Any] = {}

    @abstractmethod
    def function(self, name: str, *, plain: bool) -> Callable[[Any], Any]:
        """The virtual machine's function ``main`` or ``main_quantized``.

        `plain` asks for one that calls each kernel, which instruments can watch.
        """

    def call(self, function: Callable[[Any], Any], tensor: Any) -> Any:
        """Result of a function of the virtual machine, with errors that name the library."""
        return function(tensor)

    @abstractmethod
    def owns(self, x: Any) -> bool:
        """Whether `x` is a tensor in the memory of a device, which is used where it lies."""

    @abstractmethod
    def tensor(self, batch: NDArray) -> Any:
        """TVM tensor of one batch of the host's: in place where that can be, else a copy."""

    @abstractmethod
    def run(self, spec: InputSpec, x: Any, out: Any, function: Callable[[str], Any]) -> Any:
        """Run on a tensor that the backend owns; `function` gives the function of a dtype."""

    def store(self, result: NDArray, out: Any) -> None:
        """Copy a result to where the user wants it.

        Raises
        ------
        InputError
            If `out` cannot take it.
        """
        store(result, as_array(out, "out"))

    def buffer(self, shape: tuple[int, ...], dtype: str) -> Any:
        """The tensor on the device that holds one batch of inputs of that dtype."""
        import tvm

        if dtype not in self._buffers:
            self._buffers[dtype] = tvm.runtime.empty(shape, dtype, self.device)
        return self._buffers[dtype]

    def set_instrument(self, callback: Callable[..., Any] | None) -> None:
        """Have each call of a run go to `callback`; to none where None."""
        self._vm.set_instrument(callback)


class CpuBackend(Backend):
    """A library on this CPU; its instructions must be this CPU's (see `check_host`)."""

    def __init__(self, path: Path, metadata: dict[str, Any]) -> None:
        import tvm

        check_host(metadata, path)
        super().__init__(path, metadata, tvm.cpu(), "cpu")

    def function(self, name: str, *, plain: bool) -> Callable[[Any], Any]:
        """The virtual machine's function of that name, which calls each kernel always."""
        return self._vm[name]

    def owns(self, x: Any) -> bool:
        """Whether `x` lies on a device: never, all tensors are the host's."""
        return False

    def run(self, spec: InputSpec, x: Any, out: Any, function: Callable[[str], Any]) -> Any:
        """Refuse: tensors of other devices are not read here."""
        raise InputError(f"input {spec.name!r} is on a device; this library runs on the CPU")

    def tensor(self, batch: NDArray) -> Any:
        """TVM tensor of one batch: in place where alignment allows it, else a copy."""
        import tvm_ffi

        if (
            batch.flags.c_contiguous
            and batch.flags.writeable
            and batch.ctypes.data % ALIGNMENT == 0
        ):
            return tvm_ffi.from_dlpack(batch)
        buffer = self.buffer(batch.shape, str(batch.dtype))
        np.copyto(np.from_dlpack(buffer), batch)
        return buffer


def virtual_machine(path: Path, metadata: Mapping[str, Any], device: Any) -> Any:
    """TVM's virtual machine with a library's code.

    Raises
    ------
    LibraryError
        If the library does not load.
    """
    import tvm

    from tvm_q4._compat import VirtualMachine

    try:
        # The pooled allocator (the default) keeps the arena of the last run for the next one.
        return VirtualMachine(tvm.runtime.load_module(str(path.resolve())), device)
    except Exception as error:  # TVM and the dynamic linker raise several kinds
        note = version_note(metadata)
        msg = f"library '{path}' does not load here: {_last_line(error)}{note}"
        raise LibraryError(f"{msg}; compile the model again") from error


def first_line(error: Exception) -> str:
    """The first line of an error of TVM's, which says what went wrong while running."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
