"""Inline PTX to C++: each instruction of an ``asm`` statement becomes a call of the runtime."""

from __future__ import annotations

import re

from tests.cuda_emulator import ptx_arithmetic, ptx_warp
from tests.cuda_emulator.errors import EmulationError
from tests.cuda_emulator.registers import Arch, Registers, not_modelled
from tests.cuda_emulator.text import split_top

_INSTRUCTION = re.compile(r"(?:@(!?)(%?\w+)\s+)?([a-z][\w.:]*)\s*(.*)", re.DOTALL)
_FAMILIES = {**ptx_warp.INSTRUCTIONS, **ptx_arithmetic.INSTRUCTIONS}


def translate_ptx(template: str, operands: list[str], arch: Arch) -> str:
    """C++ statements of one ``asm`` template.

    Parameters
    ----------
    template : str
        PTX text with ``%0``, ``%1``, ...
    operands : list of str
        C++ variable (outputs: assignable) of each operand, uint32_t or uint64_t.
    arch : int or None
        Compute capability such as 80; instructions that it lacks are an error. None: no check.

    Raises
    ------
    EmulationError
        An instruction is not modelled, or the architecture does not have it.
    """
    registers, out = Registers(operands), []
    for statement in re.sub(r"//[^\n]*", "", template).split(";"):
        text = statement.strip()
        while text.startswith("{"):
            text = text[1:].strip()
        if text in ("", "}"):
            continue
        out.append(_instruction(text, registers, arch))
    return " ".join(out)


def _instruction(text: str, registers: Registers, arch: Arch) -> str:
    if text.startswith(".reg"):
        return _declare(text, registers)
    match = _INSTRUCTION.fullmatch(text)
    if match is None:
        raise EmulationError(f"PTX {text!r} is not understood")
    negated, predicate, opcode, rest = match.groups()
    family = next((f for f in _FAMILIES if opcode == f or opcode.startswith(f + ".")), None)
    if family is None:
        raise not_modelled(opcode)
    body = _FAMILIES[family](opcode, split_top(rest), registers, arch)
    if predicate is None:
        return body
    return f"if ({negated}({registers(predicate)} != 0)) {{ {body} }}"


def _declare(text: str, registers: Registers) -> str:
    _, kind, names = text.split(None, 2)
    width = "uint64_t" if kind.endswith("64") else "uint32_t"
    out = []
    for name in (n.strip() for n in names.split(",")):
        registers.local[name] = f"ptx_{name.lstrip('%')}"
        out.append(f"{width} {registers.local[name]} = 0;")
    return " ".join(out)
