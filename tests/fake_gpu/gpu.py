"""Put the emulator in place of a GPU; for a process of its own, which can have no other GPU."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.cuda_emulator.build import compiler
from tests.cuda_emulator.launch import Argument, run
from tests.cuda_emulator.translate import translate
from tvm_q4.library.cuda_device import load_runtime
from tvm_q4.library.cuda_module import kernel_names

_HERE = Path(__file__).parent
_LAUNCHER = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.POINTER(ctypes.c_uint),
    ctypes.POINTER(ctypes.c_void_p),
    ctypes.c_int,
)
_REPLAYER = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)


class EmulatedGpu:
    """The process's GPU from now on.

    Parameters
    ----------
    arch : int
        Its compute capability.
    sources : sequence of str
        CUDA source of the modules that libraries hold as machine code.

    Attributes
    ----------
    launches : list of str
        Kernels in the order in which they ran, those of graphs included.
    replayed : int
        How many of them a graph launched.
    error : Exception, optional
        What the emulator refused last.
    """

    def __init__(self, arch: int, sources: Sequence[str]) -> None:
        self._arch = arch
        self._source = {name: source for source in sources for name in kernel_names(source)}
        self._captured: list[tuple[str, list[int], list[Argument]]] = []
        self.launches: list[str] = []
        self.replayed = 0
        self.error: Exception | None = None
        self._driver = _load_driver()
        self._driver.cudaFakeBytes.restype = ctypes.c_int64
        self._driver.cudaFakeBytes.argtypes = [ctypes.c_void_p]
        self._callbacks = (_LAUNCHER(self._launch), _REPLAYER(self._replay))
        self._driver.cudaFakeSetUp(arch, *self._callbacks)

    def _launch(self, name: bytes, extents: Sequence[int], arguments: object, capture: int) -> int:
        try:
            call = (name.decode(), list(extents[:7]), self._arguments(name.decode(), arguments))
            if capture:
                self._captured.append(call)
                return len(self._captured) - 1
            return self._run(*call)
        except Exception as error:  # none leaves a C callback; the driver reports a failed launch
            self.error = error
            return -1

    def _replay(self, number: int) -> int:
        self.replayed += 1
        try:
            return self._run(*self._captured[number])
        except Exception as error:
            self.error = error
            return -1

    def _run(self, name: str, extents: list[int], arguments: list[Argument]) -> int:
        self.launches.append(name)
        grid, block, shared = extents[:3], extents[3:6], extents[6]
        run(self._source[name], name, grid, block, arguments, shared, arch=self._arch)
        return 0

    def _arguments(self, name: str, pointers: object) -> list[Argument]:
        """Arrays over the device memory that a launch's arguments point to."""
        found: list[Argument] = []
        parameters = translate(self._source[name], name, self._arch).parameters
        for parameter, pointer in zip(parameters, pointers, strict=False):
            if not parameter.pointer:
                found.append(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_int32))[0])
                continue
            address = ctypes.cast(pointer, ctypes.POINTER(ctypes.c_void_p))[0]
            size = self._driver.cudaFakeBytes(address)
            found.append(np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address)))
        return found


def _load_driver() -> ctypes.CDLL:
    folder = Path(tempfile.mkdtemp(prefix="tvm-q4-fake-gpu-"))
    runtime, driver = folder / "libcudart.so.13", folder / "libcuda.so.1"
    flags = [str(compiler()), "-std=c++17", "-O1", "-fPIC", "-shared"]
    script = f"-Wl,--version-script={_HERE / 'driver.map'}"
    name = f"-Wl,-soname,{runtime.name}"
    source = _HERE / "driver.cpp"
    subprocess.run([*flags, source, script, name, "-o", runtime], check=True)
    empty = ["-x", "c++", "/dev/null", f"-Wl,-soname,{driver.name}", "-o", driver]
    subprocess.run([*flags, *empty], check=True)
    # Once a library of that name is loaded, TVM's gets it, wherever it lies.
    loaded = [ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL) for path in (runtime, driver)]
    problem = load_runtime()
    assert problem is None, problem
    return loaded[0]
