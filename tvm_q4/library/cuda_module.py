"""Compiling the CUDA modules of a library: which archs each module's source is for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tvm_q4.library.fatbin import compile_fatbin
from tvm_q4.library.nvcc import Tool, find_nvcc

_KERNEL = re.compile(r"__global__[^;{]*?\b(\w+)\s*\(", re.S)
_LAUNCH_BOUNDS = re.compile(r"__launch_bounds__\s*\([^)]*\)")
_SUFFIX = re.compile(r"_sm(\d+)(?:_kernel(?:_\d+)?)?$")


class SourceCompiler:
    """Compiles the source of each family's module for that family's archs.

    Parameters
    ----------
    target : mapping
        ``target`` of the metadata: ``archs``, and ``ptx`` (the arch of the PTX, or None).

    """

    def __init__(self, target: Mapping[str, Any]) -> None:
        from tvm_q4.cuda_target import CudaTarget

        self._families = CudaTarget(tuple(target["archs"])).families()
        self._ptx: int | None = target["ptx"]

    def compile_all(self, sources: Sequence[str]) -> dict[str, bytes]:
        """Fat binaries by source.

        Raises
        ------
        EnvironmentMismatch
            If there is no nvcc, or it fails.
        TargetError
            If nvcc does not know one of the archs.
        """
        nvcc = find_nvcc([arch for archs in self._families.values() for arch in archs])
        return {source: self._compile(source, nvcc) for source in sources}

    def _compile(self, source: str, nvcc: Tool) -> bytes:
        archs = self._families[family_of_source(source)]
        return compile_fatbin(source, archs, self._ptx if self._ptx in archs else None, nvcc=nvcc)


def kernel_names(source: str) -> list[str]:
    """Names of the kernels that CUDA source defines or declares, in order."""
    plain = _LAUNCH_BOUNDS.sub("", source)
    return list(dict.fromkeys(_KERNEL.findall(plain)))


def family_of_source(source: str) -> int:
    """The family in the kernels' names (``conv_sm75``); all kernels of a module are of one."""
    found = {match[1] for name in kernel_names(source) if (match := _SUFFIX.search(name))}
    assert len(found) == 1, f"kernels of families {sorted(found)} in one module"
    return int(found.pop())
