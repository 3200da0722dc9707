"""Loading and running a library through TVM's virtual machine, on the CPU or a GPU."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_q4.errors import InputError, LibraryError
from tvm_q4.library.backend import Backend, CpuBackend
from tvm_q4.library.cuda_backend import CudaBackend
from tvm_q4.library.format import read_metadata
from tvm_q4.library.inputs import InputSpec, as_array, batches
from tvm_q4.library.trace import Tracer


def load(
    path: str | Path,
    *,
    threads: int | None = None,
    cuda_graph: bool | None = None,
    lazy: bool = False,
) -> Library:
    """Load a library.

    Parameters
    ----------
    path : str or Path
        A ``.so`` that ``tvm-q4 compile`` wrote.
    threads : int, optional
        Threads of TVM's pool, which all libraries of the process share. Where None it stays as it
        is: the environment variable ``TVM_NUM_THREADS``, else the number of physical cores.
    cuda_graph : bool, optional
        Replay the network as one CUDA graph instead of launching its kernels one by one. Where
        None, that is done for batches of at most 8.
    lazy : bool
        Read the metadata only, and load the code when it is run: what `tvm_q4.compile` does with a
        library for a GPU that need not be here.

    Raises
    ------
    LibraryError
        If the file is no library of this format version, cannot run on this machine, or has no CUDA
        graph that is asked for.
    InputError
        If `threads` is below 1.
    """
    library = Library(path, threads=threads, cuda_graph=cuda_graph)
    if not lazy:
        library.open()
    return library


class Library:
    """A loaded library: its metadata, and the network as a function.

    It is not thread-safe: a run uses the library's one arena. Load it once a thread instead.

    Attributes
    ----------
    path : Path
    metadata : dict
        What the library's ``.tvm_q4`` section says; of a CUDA library, about the family of kernels
        that the GPU here runs (``family``).
    """

    def __init__(
        self, path: str | Path, *, threads: int | None = None, cuda_graph: bool | None = None
    ) -> None:
        self.path = Path(path)
        self.metadata: dict[str, Any] = read_metadata(self.path)
        self.input = InputSpec.from_metadata(self.metadata)
        self._cuda_graph = cuda_graph
        self._opened: Backend | None = None
        if threads is not None:
            set_threads(threads)

    def __repr__(self) -> str:
        model = self.metadata["model"].get("name")
        device = f", device={self._opened.device_name!r}" if self._opened else ""
        return f"Library({str(self.path)!r}, model={model!r}, input={self.input}{device})"

    def open(self) -> Backend:
        """Load the code for the device here, if that was not done; `run` does it by itself.

        Raises
        ------
        LibraryError
            If the library cannot run on this machine.
        """
        if self._opened is None:
            self._opened = _backend(self.path, self.metadata, self._cuda_graph)
            self.metadata = self._opened.metadata
        return self._opened

    @property
    def device(self) -> str:
        """What it runs on: ``cpu``, or a GPU's name and architecture."""
        return self.open().device_name

    @property
    def cuda_graph(self) -> bool:
        """Whether a run replays a CUDA graph."""
        return self.open().cuda_graph

    def run(self, x: Any, out: Any = None) -> Any:
        """Run the network on any number of images.

        Parameters
        ----------
        x : ndarray or DLPack tensor, [N, C, H, W]
            float32, quantized by the library, or integers of the quantized input's type. N may
            differ from the compiled batch: the images are cut into batches, the last one is padded.
            Contiguous, 64-byte aligned batches are read in place, others are copied first.
            A CUDA library takes tensors on its GPU too: one aligned batch of them is read in place,
            N must be a multiple of the batch, and values are not checked.
        out : ndarray or DLPack tensor, optional
            Gets the result; of its shape and dtype, writable, on the CPU or on the library's GPU.

        Returns
        -------
        ndarray, TVM tensor or type of `out`
            [N, ...]: float32 logits, or int32 accumulators of a library with integer output. For a
            tensor on the GPU a tensor there (use it through DLPack), whose values are ready for
            what runs in the same stream, CUDA's default one.

        Raises
        ------
        InputError
            If `x` or `out` cannot be used; the message has what was given and what is expected.
        """
        backend = self.open()
        if backend.owns(x):
            return backend.run(self.input, x, out, self.function)
        array = self._checked(x)
        pieces = [
            self._result(self.invoke(piece))[:count]
            for piece, count in batches(array, self.input.batch)
        ]
        result = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        if out is None:
            return result
        backend.store(result, out)
        return out

    def trace(self, x: Any) -> dict[str, NDArray]:
        """Every tensor that the library stores, by name, in logical layout [N, C, H, W] or [N, C].

        Tensors that live in registers only (accumulators, inner steps of an epilogue) are not among
        them. The result of the network is ``metadata["output"]["name"]``.

        Parameters
        ----------
        x : ndarray or DLPack tensor
            As for `run`.
        """
        self.open()
        array = self._checked(x)
        parts: list[dict[str, NDArray]] = []
        for piece, count in batches(array, self.input.batch):
            tracer = Tracer(self.metadata, str(piece.dtype))
            with self.instrumented(tracer):
                result = self._result(self.invoke(piece, plain=True))
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

    def function(self, dtype: str, *, plain: bool = False) -> Callable[[Any], Any]:
        """The virtual machine's function for an input of that dtype (see `tensor`).

        `plain` asks for one that calls each kernel, instead of replaying a CUDA graph.
        """
        name = "main" if dtype == self.input.dtype else "main_quantized"
        return self.open().function(name, plain=plain)

    def tensor(self, batch: NDArray) -> Any:
        """TVM tensor of exactly one batch where the library runs: in place if it can be."""
        return self.open().tensor(batch)

    def invoke(self, batch: NDArray, *, plain: bool = False) -> Any:
        """TVM tensor of the result for exactly one checked batch; for `plain` see `function`."""
        function = self.function(str(batch.dtype), plain=plain)
        return self.open().call(function, self.tensor(batch))

    def instrumented(self, callback: Callable[..., Any]) -> _Instrumented:
        """Context in which every call of a run goes to `callback`.

        It is called as ``callback(function, name, before, result, *args)``, before and after.
        """
        return _Instrumented(self.open(), callback)

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

    def __init__(self, backend: Backend, callback: Callable[..., Any]) -> None:
        self._backend, self._callback = backend, callback

    def __enter__(self) -> None:
        self._backend.set_instrument(self._callback)

    def __exit__(self, *_: object) -> None:
        self._backend.set_instrument(None)


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


def _backend(path: Path, metadata: dict[str, Any], cuda_graph: bool | None) -> Backend:
    if metadata["target"]["kind"] == "cuda":
        return CudaBackend(path, metadata, cuda_graph)
    if cuda_graph:
        raise LibraryError(f"library '{path}' is for the CPU; drop cuda_graph")
    return CpuBackend(path, metadata)
