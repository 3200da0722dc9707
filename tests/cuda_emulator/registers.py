"""Names of the registers in inline PTX, and what every translated instruction needs."""

from __future__ import annotations

import re
from collections.abc import Callable

from tests.cuda_emulator.errors import EmulationError
from tests.cuda_emulator.text import split_top

Arch = int | None
"""Compute capability, such as 80; None: instructions are not checked for an architecture."""


class Registers:
    """C++ names of an ``asm`` statement's operands and of the registers that it declares."""

    def __init__(self, operands: list[str]) -> None:
        self._operands = operands
        self.local: dict[str, str] = {}

    def __call__(self, token: str) -> str:
        """C++ expression of one PTX operand."""
        token = token.strip()
        if token.startswith("%"):
            index = int(token[1:])
            if index >= len(self._operands):
                raise EmulationError(f"PTX operand {token} is not bound")
            return self._operands[index]
        if token in self.local:
            return self.local[token]
        if re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)U?", token):
            return token
        raise EmulationError(f"PTX operand {token!r} is not known")

    def group(self, token: str) -> list[str]:
        """C++ expressions of a vector operand ``{a, b, ...}`` or of a single one."""
        token = token.strip()
        parts = split_top(token[1:-1]) if token.startswith("{") else [token]
        return [self(p) for p in parts]

    def address(self, token: str) -> str:
        """C++ expression of a memory operand ``[reg + offset]``."""
        inner = token.strip()
        if not (inner.startswith("[") and inner.endswith("]")):
            raise EmulationError(f"PTX operand {token!r} is no address")
        return " + ".join(self(p) for p in inner[1:-1].split("+"))


Instruction = Callable[[str, list[str], Registers, Arch], str]
"""C++ of an instruction: from its opcode, its operands, the registers and the architecture."""


def not_modelled(opcode: str) -> EmulationError:
    """Error of an instruction that has no translation."""
    return EmulationError(f"PTX instruction {opcode!r} is not modelled")


def need(arch: Arch, least: int, opcode: str) -> None:
    """Refuse an instruction that the architecture does not have."""
    if arch is not None and arch < least:
        raise EmulationError(f"{opcode} needs sm_{least}, this kernel is for sm_{arch}")
