"""Machine code of kernels, for tests of what nvcc made of them."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import tvm

from tests.cuda_emulator.prim_func import Kernel, lower_all
from tests.schedules.cuda.builders import lower
from tests.schedules.cuda.resources import Usage, kernel_usage
from tvm_q4._compat import tirx
from tvm_q4.library.fatbin import compile_fatbin, device_codes
from tvm_q4.library.nvcc import find_tool
from tvm_q4.schedules.cuda.pipeline import tir_pipeline
from tvm_q4.schedules.rule import ScheduleRule

_TOOLS = ("nvcc", "nvdisasm", "cuobjdump")
_MISSING = [f"nvidia-cuda-{tool}" for tool in _TOOLS if find_tool(tool) is None]

needs_sass = pytest.mark.skipif(
    bool(_MISSING), reason=f"reading machine code needs the packages {', '.join(_MISSING)}"
)


@dataclass(frozen=True)
class MachineCode:
    """A compiled kernel: its instructions, one a string, and what it takes."""

    instructions: tuple[str, ...]
    usage: Usage

    def named(self, pattern: str) -> list[str]:
        """Instructions whose opcode (with its modifiers) begins with a match of `pattern`."""
        return [i for i in self.instructions if re.match(pattern, opcode(i))]


def opcode(instruction: str) -> str:
    """Opcode of an instruction, without the predicate before it."""
    return re.sub(r"^@!?U?P\d+\s+", "", instruction).split(" ", 1)[0]


def sass(mod: tvm.IRModule, kind: str, arch: int, rules: list[ScheduleRule] | None = None) -> str:
    """Instructions of the kernels of a module's only layer of that kind, one a line."""
    lowered = lower(mod, arch, rules)
    (call,) = [c for c in lowered.calls if c.layer.kind == kind]
    _, codes = machine_code([lowered.mod[call.kernel]], arch)
    return "\n".join(line for code in codes.values() for line in code.instructions)


def machine_code(
    funcs: Sequence[tirx.PrimFunc], arch: int
) -> tuple[list[Kernel], dict[str, MachineCode]]:
    """Kernels of functions, and their machine code by name; nvcc runs once for all of them."""
    kernels = lower_all(funcs, f"sm_{arch}", tir_pipeline())
    (source,) = {kernel.source for kernel in kernels}
    return kernels, disassembled(source, arch)


@cache
def disassembled(source: str, arch: int) -> dict[str, MachineCode]:
    """Kernels of CUDA text that is compiled as libraries are, by name."""
    (code,) = device_codes(compile_fatbin(source, [arch]))
    nvdisasm, cuobjdump = (find_tool(name) for name in ("nvdisasm", "cuobjdump"))
    assert nvdisasm is not None
    assert cuobjdump is not None
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(code.data)
        listing = nvdisasm.run("-c", str(cubin))
        usage = kernel_usage(cuobjdump.run("--dump-resource-usage", str(cubin)))
    parts = re.split(r"^//-+ \.text\.(\S+) +-+$", listing, flags=re.MULTILINE)
    found = {
        name: MachineCode(_instructions(text), usage[name])
        for name, text in zip(parts[1::2], parts[2::2], strict=True)
    }
    assert found, "nvdisasm failed"
    return found


def _instructions(text: str) -> tuple[str, ...]:
    found = re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(.*?)\s*;", text, re.MULTILINE)
    # ptxas fills slots with instructions that never run.
    return tuple(i for i in found if i != "NOP" and not i.startswith(("@!PT", "@!UPT")))
