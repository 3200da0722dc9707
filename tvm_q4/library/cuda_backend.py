"""A library on a GPU: its family's functions, copies to and from the device, CUDA graphs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_q4.errors import InputError, LibraryError
from tvm_q4.library import cuda_device
from tvm_q4.library.backend import ALIGNMENT, Backend, first_line
from tvm_q4.library.inputs import InputSpec
from tvm_q4.library.outputs import check_out

logger = logging.getLogger(__name__)

GRAPH_BATCH = 8
"""Largest batch that is run as a CUDA graph unless told otherwise: there, launches take as long as
kernels. A graph saves them, and keeps the memory of its tensors for itself."""


class CudaBackend(Backend):
    """A library on this machine's first GPU.

    Parameters
    ----------
    path : Path
    metadata : dict
        As read from the file.
    cuda_graph : bool, optional
        Run as a CUDA graph; where None, if the batch is at most 8 and the library has one.

    Raises
    ------
    LibraryError
        If there is no GPU here, the library has no code for it, or has no CUDA graph that is asked
        for.
    """

    def __init__(
        self, path: Path, metadata: dict[str, Any], cuda_graph: bool | None = None
    ) -> None:
        try:
            gpu = cuda_device.open_device()
            choice = cuda_device.choose(metadata["target"], gpu.arch)
        except LibraryError as error:
            raise LibraryError(f"library '{path}' cannot run here: {error}") from None
        super().__init__(path, of_family(metadata, choice.family), gpu.handle, str(gpu))
        self._suffix = f"_sm{choice.family}"
        self.cuda_graph = self._choose_graph(cuda_graph)
        warning = cuda_device.emulated_int4(metadata, gpu.arch)
        if warning:
            logger.warning("library '%s' on %s: %s", path, gpu, warning)
        elif choice.kind == "ptx":
            logger.info("the driver compiles PTX of sm_%d for %s", choice.arch, gpu)

    def _choose_graph(self, asked: bool | None) -> bool:
        if asked is False or (asked is None and self.metadata["batch"] > GRAPH_BATCH):
            return False
        has_graph = _function(self._vm, f"main_graph{self._suffix}") is not None
        if asked and not has_graph:
            msg = f"library '{self.path}' has no CUDA graph; compile it again, or drop cuda_graph"
            raise LibraryError(msg)
        return has_graph

    def function(self, name: str, *, plain: bool) -> Callable[[Any], Any]:
        """The virtual machine's function ``main`` or ``main_quantized`` of this family."""
        graph = "" if plain or not self.cuda_graph else "_graph"
        function = _function(self._vm, f"{name}{graph}{self._suffix}")
        assert function is not None, f"the library has no function {name}{graph}{self._suffix}"
        return function

    def call(self, function: Callable[[Any], Any], tensor: Any) -> Any:
        """Result of a function of the virtual machine.

        Raises
        ------
        LibraryError
            For whatever TVM or CUDA refuses.
        """
        try:
            return function(tensor)
        except Exception as error:  # of several kinds
            msg = f"library '{self.path}' failed on {self.device_name}: {first_line(error)}"
            raise LibraryError(msg) from error

    def owns(self, x: Any) -> bool:
        """Whether `x` is a DLPack tensor on a device of the GPU's kind."""
        if isinstance(x, np.ndarray) or not hasattr(x, "__dlpack_device__"):
            return False
        return int(x.__dlpack_device__()[0]) == self.device.dlpack_device_type()

    def tensor(self, batch: NDArray) -> Any:
        """TVM tensor on the device that holds one batch from the host."""
        buffer = self.buffer(batch.shape, str(batch.dtype))
        buffer.copyfrom(np.ascontiguousarray(batch))
        return buffer

    def view(self, x: Any, name: str) -> Any:
        """TVM tensor of a tensor on the device, without a copy.

        Raises
        ------
        InputError
            If it lies on another GPU, is not contiguous, or cannot be had through DLPack.
        """
        import tvm_ffi

        index = int(x.__dlpack_device__()[1])
        if index != self.device.index:
            msg = f"{name!r} is on GPU {index}, the library runs on GPU {self.device.index}"
            raise InputError(f"{msg}; move it there")
        if getattr(x, "requires_grad", False):
            x = x.detach()
        try:
            return tvm_ffi.from_dlpack(x, require_contiguous=True)
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            msg = f"{name!r} cannot be read through DLPack ({first_line(error)})"
            raise InputError(f"{msg}; give a contiguous tensor") from None

    def run(self, spec: InputSpec, x: Any, out: Any, function: Callable[[str], Any]) -> Any:
        """Run on a tensor on the device; the result stays there unless `out` is on the host.

        Nothing waits for the GPU: the work is queued in TVM's current stream, the default one.

        Raises
        ------
        InputError
            If `x` or `out` cannot be used.
        """
        x = self.view(x, spec.name)
        spec.check_device(x.shape, str(x.dtype))
        chosen = function(str(x.dtype))
        # Kernels refuse a view that begins behind its tensor's begin, so pieces are copied.
        whole = x.shape[0] == spec.batch and x.data_ptr() % ALIGNMENT == 0
        parts = [
            self.call(chosen, part if whole else self._copy(part)) for part in _split(x, spec.batch)
        ]
        if out is None and len(parts) == 1:
            return parts[0]
        shape, dtype = (x.shape[0], *parts[0].shape[1:]), str(parts[0].dtype)
        if out is not None and not self.owns(out):
            super().store(np.concatenate([part.numpy() for part in parts]), out)
            return out
        target = self._target(out, shape, dtype)
        for part, piece in zip(parts, _split(target, spec.batch), strict=True):
            piece.copyfrom(part)
        return target if out is None else out

    def store(self, result: NDArray, out: Any) -> None:
        """Copy a result on the host into an array of the host, or a tensor on the device."""
        if not self.owns(out):
            super().store(result, out)
            return
        self._target(out, result.shape, str(result.dtype)).copyfrom(np.ascontiguousarray(result))

    def _target(self, out: Any, shape: tuple[int, ...], dtype: str) -> Any:
        import tvm

        if out is None:
            return tvm.runtime.empty(shape, dtype, self.device)
        target = self.view(out, "out")
        check_out(str(target.dtype), tuple(target.shape), dtype, shape)
        return target

    def _copy(self, batch: Any) -> Any:
        buffer = self.buffer(tuple(batch.shape), str(batch.dtype))
        buffer.copyfrom(batch)
        return buffer


def of_family(metadata: dict[str, Any], family: int) -> dict[str, Any]:
    """Metadata of a library as it is for one family: its layers, calls and memory."""
    entry = next(e for e in metadata["families"] if e["family"] == family)
    own = {key: entry[key] for key in ("layers", "calls", "memory")}
    return metadata | own | {"family": family}


def _function(vm: Any, name: str) -> Callable[[Any], Any] | None:
    try:
        return vm[name]
    except AttributeError:
        return None


def _split(tensor: Any, batch: int) -> list[Any]:
    """Views of `batch` images each."""
    if tensor.shape[0] == batch:
        return [tensor]
    shape = (batch, *tensor.shape[1:])
    count = tensor.shape[0] // batch
    size = tensor.numel() // count * np.dtype(str(tensor.dtype)).itemsize
    return [tensor._create_view(shape, str(tensor.dtype), i * size) for i in range(count)]
