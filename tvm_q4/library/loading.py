"""Loading and running a library on the CPU through TVM's virtual machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_q4.errors import InputError, LibraryError
from tvm_q4.library.format import read_metadata
from tvm_q4.library.host import check_host, version_note
from tvm_q4.library.inputs import InputSpec, as_array, batches
from tvm_q4.library.trace import Tracer

_ALIGNMENT = 64
"""Bytes to which TVM's generated code may assume that tensors are aligned."""


def load(path: str | Path, *, threads: int | None = None) -> Library:
    """Load a library.

    Parameters
    ----------
    path : str or Path
        A ``.so`` that ``tvm-q4 compile`` wrote.
    threads : int, optional
        Threads of TVM's pool, which all libraries of the process share. Where None it stays as it
        is: the environment variable ``TVM_NUM_THREADS``, else the number of physical cores.

    Raises
    ------
    LibraryError
        If the file is no library of this format version, or cannot run on this machine.
    InputError
        If `threads` is below 1.
    """
    return Library(path, threads=threads)


class Library:
    """A loaded library: its metadata, and the network as a function.

    It is not thread-safe: a run uses the library's one arena. Load it once a thread instead.

    Attributes
    ----------
    path : Path
    metadata : dict
        What the library's ``.tvm_q4`` section says.
    """

    def __init__(self, path: str | Path, *, threads: int | None = None) -> None:
        self.path = Path(path)
        self.metadata: dict[str, Any] = read_metadata(self.path)
        self.input = InputSpec.from_metadata(self.metadata)
        check_host(self.metadata, self.path)
        if threads is not None:
            set_threads(threads)
        self._vm = _virtual_machine(self.path, self.metadata)
        self._buffers: dict[str, Any] = {}

    def __repr__(self) -> str:
        model = self.metadata["model"].get("name")
        return f"Library({str(self.path)!r}, model={model!r}, input={self.input})"

    def run(self, x: Any, out: Any = None) -> Any:
        """Run the network on any number of images.

        Parameters
        ----------
        x : ndarray or DLPack tensor, [N, C, H, W]
            float32, quantized by the library, or integers of the quantized input's type. N may
            differ from the compiled batch: the images are cut into batches, the last one is padded.
            Contiguous, 64-byte aligned batches are read in place, others are copied first.
        out : ndarray or DLPack tensor on the CPU, optional
            Gets the result; of its shape and dtype, writable.

        Returns
        -------
        ndarray or type of `out`
            [N, ...]: float32 logits, or int32 accumulators of a library with integer output.

        Raises
        ------
        InputError
            If `x` or `out` cannot be used; the message has what was given and what is expected.
        """
        array = self._checked(x)
        pieces = [
            self._result(self.invoke(piece))[:count]
            for piece, count in batches(array, self.input.batch)
        ]
        result = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        return result if out is None else _store(result, out)

    def trace(self, x: Any) -> dict[str, NDArray]:
        """Every tensor that the library stores, by name, in logical layout [N, C, H, W] or [N, C].

        Tensors that live in registers only (accumulators, inner steps of an epilogue) are not among
        them. The result of the network is ``metadata["output"]["name"]``.

        Parameters
        ----------
        x : ndarray or DLPack tensor
            As for `run`.
        """
        array = self._checked(x)
        parts: list[dict[str, NDArray]] = []
        for piece, count in batches(array, self.input.batch):
            tracer = Tracer(self.metadata, str(piece.dtype))
            with self.instrumented(tracer):
                result = self._result(self.invoke(piece))
            tensors = tracer.finish() | {self.metadata["output"]["name"]: result}
            parts.append({name: t[:count] for name, t in tensors.items()})
        return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}

    def logits(self, result: NDArray) -> NDArray[np.float32]:
        """Logits of what `run` returned: itself, or accumulators times (or over) their scales."""
        output = self.metadata["output"]
        if not output["integer"] or output["scale"] is None:
            return result.astype(np.float32)
        scale = np.asarray(output["scale"], np.float32)
        values = result.astype(np.float32)
        return values / scale if output["scale_form"] == "divide" else values * scale

    def function(self, dtype: str) -> Callable[[Any], Any]:
        """The virtual machine's function for an input of that dtype (see `tensor`)."""
        return self._vm["main" if dtype == self.input.dtype else "main_quantized"]

    def tensor(self, batch: NDArray) -> Any:
        """TVM tensor of exactly one batch: in place where alignment allows it, else a copy."""
        import tvm
        import tvm_ffi

        if (
            batch.flags.c_contiguous
            and batch.flags.writeable
            and batch.ctypes.data % _ALIGNMENT == 0
        ):
            return tvm_ffi.from_dlpack(batch)
        dtype = str(batch.dtype)
        if dtype not in self._buffers:
            self._buffers[dtype] = tvm.runtime.empty(self.input.shape, dtype)
        np.copyto(np.from_dlpack(self._buffers[dtype]), batch)
        return self._buffers[dtype]

    def invoke(self, batch: NDArray) -> Any:
        """TVM tensor of the result for exactly one checked batch."""
        return self.function(str(batch.dtype))(self.tensor(batch))

    def instrumented(self, callback: Callable[..., Any]) -> _Instrumented:
        """Context in which every call of a run goes to `callback`.

        It is called as ``callback(function, name, before, result, *args)``, before and after.
        """
        return _Instrumented(self._vm, callback)

    def _checked(self, x: Any) -> NDArray:
        array = as_array(x, self.input.name)
        self.input.check(array)
        return array

    def _result(self, tensor: Any) -> NDArray:
        result = tensor.numpy()
        if result.shape[:1] != (self.input.batch,):
            shape, batch = list(result.shape), self.input.batch
            msg = f"library '{self.path}' returned shape {shape} for batch {batch}"
            raise LibraryError(msg)
        return result


class _Instrumented:
    """Sets a virtual machine's instrument on entry and clears it on exit."""

    def __init__(self, vm: Any, callback: Callable[..., Any]) -> None:
        self._vm, self._callback = vm, callback

    def __enter__(self) -> None:
        self._vm.set_instrument(self._callback)

    def __exit__(self, *_: object) -> None:
        self._vm.set_instrument(None)


def set_threads(count: int) -> None:
    """Size of TVM's thread pool, for the whole process.

    TVM makes its pool on first use, of the size that ``TVM_NUM_THREADS`` has then; later it can
    shrink only.

    Raises
    ------
    InputError
        If `count` is below 1, or above what the pool was made with.
    """
    if count < 1:
        raise InputError(f"threads is {count}; it must be at least 1")
    import tvm

    os.environ["TVM_NUM_THREADS"] = str(count)
    if tvm.runtime.num_threads() == count:
        return
    tvm.get_global_func("runtime.config_threadpool")(1, count)
    found = tvm.runtime.num_threads()
    if found != count:
        msg = (
            f"threads is {count}, but this process already made TVM's pool with {found}; "
            f"set TVM_NUM_THREADS={count} before it starts"
        )
        raise InputError(msg)


def _virtual_machine(path: Path, metadata: dict[str, Any]) -> Any:
    import tvm

    from tvm_q4._compat import VirtualMachine

    try:
        # The pooled allocator (the default) keeps the arena of the last run for the next one.
        return VirtualMachine(tvm.runtime.load_module(str(path.resolve())), tvm.cpu())
    except Exception as error:  # TVM and the dynamic linker raise several kinds
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        cause = lines[-1] if lines else type(error).__name__
        note = version_note(metadata)
        msg = f"library '{path}' does not load here: {cause}{note}; compile the model again"
        raise LibraryError(msg) from error


def _store(result: NDArray, out: Any) -> Any:
    target = as_array(out, "out")
    if target.shape != result.shape or target.dtype != result.dtype:
        msg = (
            f"out is {target.dtype} {list(target.shape)}, the result is {result.dtype} "
            f"{list(result.shape)}; give an array of that shape and dtype"
        )
        raise InputError(msg)
    if not target.flags.writeable:
        raise InputError("out is read-only; give a writable array")
    np.copyto(target, result)
    return out
