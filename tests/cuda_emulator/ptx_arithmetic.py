"""Inline PTX that computes in registers."""

from __future__ import annotations

import re

from tests.cuda_emulator.registers import Arch, Instruction, Registers, need, not_modelled

_COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_BINARY = {"and": "&", "or": "|", "xor": "^", "add": "+", "sub": "-"}


def _cvt_pack(opcode: str, args: list[str], reg: Registers, arch: Arch) -> str:
    match = re.fullmatch(r"cvt\.pack\.sat\.([su])(2|4|8|16)\.s32(\.b32)?", opcode)
    if match is None or len(args) != (4 if match[3] else 3) or (match[2] == "16") == bool(match[3]):
        raise not_modelled(opcode)
    need(arch, 75, opcode)
    d, a, b = (reg(x) for x in args[:3])
    c = reg(args[3]) if match[3] else "0"
    return f"{d} = emu::cvt_pack((int){a}, (int){b}, {c}, {match[2]}, {int(match[1] == 's')});"


def _prmt(opcode: str, args: list[str], reg: Registers, arch: Arch) -> str:
    if opcode != "prmt.b32":
        raise not_modelled(opcode)
    d, a, b, c = map(reg, args)
    return f"{d} = emu::prmt({a}, {b}, {c});"


def _lop3(opcode: str, args: list[str], reg: Registers, arch: Arch) -> str:
    d, a, b, c, table = map(reg, args)
    return f"{d} = emu::lop3({a}, {b}, {c}, {table});"


def _dp4a(opcode: str, args: list[str], reg: Registers, arch: Arch) -> str:
    _, a_type, b_type = opcode.split(".")
    d, a, b, c = map(reg, args)
    return f"{d} = emu::dp4a({a}, {int(a_type == 's32')}, {b}, {int(b_type == 's32')}, {c});"


def _c_type(opcode: str) -> str:
    kind = opcode.rsplit(".", 1)[1]
    if kind[0] not in "sub" or kind[1:] not in ("16", "32", "64"):
        raise not_modelled(opcode)
    return f"int{kind[1:]}_t" if kind[0] == "s" else f"uint{kind[1:]}_t"


def _binary(opcode: str, args: list[str], reg: Registers, arch: Arch) -> str:
    d, a, b = map(reg, args)
    c = _c_type(opcode)
    return f"{d} = ({c})(({c}){a} {_BINARY[opcode.split('.')[0]]} ({c}){b});"


def _min_max(opcode: str, args: list[str], reg: Registers, arch: Arch) -> str:
    d, a, b = map(reg, args)
    c = _c_type(opcode)
    return f"{d} = {opcode.split('.')[0]}(({c}){a}, ({c}){b});"


def _shift(opcode: str, args: list[str], reg: Registers, arch: Arch) -> str:
    d, a, n = map(reg, args)
    function = {
        "shl.b32": "shl32",
        "shr.u32": "shr_u32",
        "shr.b32": "shr_u32",
        "shr.s32": "shr_s32",
    }
    if opcode not in function:
        raise not_modelled(opcode)
    return f"{d} = emu::{function[opcode]}({a}, {n});"


def _multiply(opcode: str, args: list[str], reg: Registers, arch: Arch) -> str:
    family, mode, kind = opcode.split(".")
    if kind not in ("s32", "u32") or (mode == "hi" and family == "mad"):
        raise not_modelled(opcode)
    wide = "int64_t" if kind == "s32" else "uint64_t"
    values = [reg(a) for a in args]
    product = f"({wide})({_c_type(opcode)}){values[1]} * ({_c_type(opcode)}){values[2]}"
    if mode == "hi":
        product = f"({product}) >> 32"
    addend = f" + {values[3]}" if family == "mad" else ""
    cast = "uint64_t" if mode == "wide" else "uint32_t"
    return f"{values[0]} = ({cast})(({product}){addend});"


def _setp(opcode: str, args: list[str], reg: Registers, arch: Arch) -> str:
    _, compare, _ = opcode.split(".")
    p, a, b = map(reg, args)
    c = _c_type(opcode)
    return f"{p} = ({c}){a} {_COMPARE[compare]} ({c}){b};"


def _selp(opcode: str, args: list[str], reg: Registers, arch: Arch) -> str:
    d, a, b, p = map(reg, args)
    return f"{d} = {p} ? {a} : {b};"


def _mov(opcode: str, args: list[str], reg: Registers, arch: Arch) -> str:
    d, a = map(reg, args)
    return f"{d} = {a};"


INSTRUCTIONS: dict[str, Instruction] = {
    "cvt.pack": _cvt_pack,
    "prmt": _prmt,
    "lop3.b32": _lop3,
    "dp4a": _dp4a,
    "setp": _setp,
    "selp": _selp,
    "mov": _mov,
    "shl": _shift,
    "shr": _shift,
    "mul": _multiply,
    "mad": _multiply,
    "min": _min_max,
    "max": _min_max,
    **{name: _binary for name in _BINARY},
}
"""By the first parts of the opcode."""
