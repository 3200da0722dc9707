"""Inline PTX to C++: each instruction of an ``asm`` statement becomes a call of the runtime."""

from __future__ import annotations

import re
from collections.abc import Callable

from tests.cuda_emulator.errors import EmulationError
from tests.cuda_emulator.text import split_top

_INSTRUCTION = re.compile(r"(?:@(!?)(%?\w+)\s+)?([a-z][\w.:]*)\s*(.*)", re.DOTALL)
_MMA = re.compile(r"m(\d+)n8k(\d+)\.row\.col(\.satfinite)?\.s32\.([su])([48])\.([su])([48])\.s32")
_MMA_ARCH = {"m8n8k16": 75, "m8n8k32": 75, "m16n8k16": 80, "m16n8k32": 80, "m16n8k64": 80}
_MMA_K = {("8", 8): (16,), ("16", 8): (16, 32), ("8", 4): (32,), ("16", 4): (32, 64)}
_COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_BINARY = {"and": "&", "or": "|", "xor": "^", "add": "+", "sub": "-"}


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


Arch = int | None


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
        raise EmulationError(f"PTX instruction {opcode!r} is not modelled")
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


def _need(arch: Arch, least: int, opcode: str) -> None:
    if arch is not None and arch < least:
        raise EmulationError(f"{opcode} needs sm_{least}, this kernel is for sm_{arch}")


def _collective(name: str, function: str, params: list[int], ins: list[str], outs: list[str]) -> str:
    lines = [f"emu::lane->in[{i}] = {v};" for i, v in enumerate(ins)]
    values = ", ".join(map(str, params))
    lines.append(f'emu::collective(emu::Collective{{"{name}", emu::{function}, {{{values}}}}});')
    lines += [f"{v} = emu::lane->out[{i}];" for i, v in enumerate(outs)]
    return " ".join(lines)


def _mma(opcode: str, args: list[str], reg: Registers, arch: Arch) -> str:
    match = _MMA.fullmatch(opcode.removeprefix("mma.sync.aligned."))
    if match is None:
        raise EmulationError(f"PTX instruction {opcode!r} is not modelled")
    m, k, saturate, a_sign, a_bits, b_sign, b_bits = match.groups()
    bits = int(a_bits)
    if a_bits != b_bits or int(k) not in _MMA_K.get((m, bits), ()):
        raise EmulationError(f"there is no instruction {opcode}")
    _need(arch, _MMA_ARCH[f"m{m}n8k{k}"], opcode)
    if bits == 4 and arch is not None and arch >= 90:
        raise EmulationError(f"{opcode} is emulated in software on sm_{arch}: widen to int8")
    d, a, b, c = (reg.group(x) for x in args)
    half_rows, halves_k = int(m) // 8, int(k) * bits // 128
    want = (2 * half_rows, half_rows * halves_k, halves_k, 2 * half_rows)
    if (len(d), len(a), len(b), len(c)) != want:
        raise EmulationError(f"{opcode} takes {want} registers, not {list(map(len, (d, a, b, c)))}")
    params = [int(m), int(k), bits, int(a_sign == "s"), int(b_sign == "s"), int(bool(saturate))]
    params += [len(a), len(a) + len(b)]
    name = f"mma.m{m}n8k{k}.{a_sign}{a_bits}.{b_sign}{b_bits}"
    return _collective(name, "mma", params, a + b + c, d)


def _ldmatrix(opcode: str, args: list[str], reg: Registers, arch: Arch) -> str:
    match = re.fullmatch(r"ldmatrix\.sync\.aligned\.m8n8\.x([124])\.shared(::cta)?\.b16", opcode)
    if match is None:
        raise EmulationError(f"PTX instruction {opcode!r} is not modelled")
    _need(arch, 75, opcode)
    number, outs = int(match[1]), reg.group(args[0])
    if len(outs) != number:
        raise EmulationError(f"{opcode} fills {number} registers, not {len(outs)}")
    all_lanes = int(arch == 75)
    return _collective(f"ldmatrix.x{number}", "ldmatrix", [number, all_lanes], [reg.address(args[1])], outs)


def _cp_async(opcode: str, args: list[str], reg: Registers, arch: Arch) -> str:
    _need(arch, 80, opcode)
    if opcode == "cp.async.commit_group":
        return "emu::cp_async_commit();"
    if opcode == "cp.async.wait_all":
        return "emu::cp_async_wait_all();"
    if opcode == "cp.async.wait_group":
        return f"emu::cp_async_wait({reg(args[0])});"
    match = re.fullmatch(r"cp\.async\.(ca|cg)\.shared(?:::cta)?\.global(?:\.L2::\w+)*", opcode)
    if match is None or "cache_hint" in opcode:
        raise EmulationError(f"PTX instruction {opcode!r} is not modelled")
    size = reg(args[2])
    src_size = reg(args[3]) if len(args) > 3 else size
    if len(args) > 3 and args[3].strip() in reg.local:  # the form with a predicate: ignore the source
        src_size = f"({src_size} ? 0 : {size})"
    least = 16 if match[1] == "cg" else 4
    return f"emu::cp_async({reg.address(args[0])}, {reg.address(args[1])}, {size}, {src_size}, {least});"


def _cvt_pack(opcode: str, args: list[str], reg: Registers, arch: Arch) -> str:
    match = re.fullmatch(r"cvt\.pack\.sat\.([su])(2|4|8|16)\.s32(\.b32)?", opcode)
    if match is None or len(args) != (4 if match[3] else 3) or (match[2] == "16") == bool(match[3]):
        raise EmulationError(f"PTX instruction {opcode!r} is not modelled")
    _need(arch, 75, opcode)
    d, a, b = (reg(x) for x in args[:3])
    c = reg(args[3]) if match[3] else "0"
    return f"{d} = emu::cvt_pack((int){a}, (int){b}, {c}, {match[2]}, {int(match[1] == 's')});"


def _prmt(opcode: str, args: list[str], reg: Registers, arch: Arch) -> str:
    if opcode != "prmt.b32":
        raise EmulationError(f"PTX instruction {opcode!r} is not modelled")
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
        raise EmulationError(f"PTX instruction {opcode!r} is not modelled")
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
    function = {"shl.b32": "shl32", "shr.u32": "shr_u32", "shr.b32": "shr_u32", "shr.s32": "shr_s32"}
    if opcode not in function:
        raise EmulationError(f"PTX instruction {opcode!r} is not modelled")
    return f"{d} = emu::{function[opcode]}({a}, {n});"


def _multiply(opcode: str, args: list[str], reg: Registers, arch: Arch) -> str:
    family, mode, kind = opcode.split(".")
    if kind not in ("s32", "u32") or (mode == "hi" and family == "mad"):
        raise EmulationError(f"PTX instruction {opcode!r} is not modelled")
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


_MEMORY = re.compile(r"(ld|st)\.(global|shared)(?:::cta)?(?:\.nc)?(?:\.L1::\w+|\.L2::\w+)*(\.v[24])?\.[sub]32")


def _memory(opcode: str, args: list[str], reg: Registers, arch: Arch) -> str:
    match = _MEMORY.fullmatch(opcode)
    if match is None:
        raise EmulationError(f"PTX instruction {opcode!r} is not modelled")
    loads = match[1] == "ld"
    values, address = reg.group(args[0 if loads else 1]), reg.address(args[1 if loads else 0])
    n = len(values)
    if n != int((match[3] or ".v1")[2:]):
        raise EmulationError(f"{opcode} moves another number of registers than {n}")
    open_ = f"int64_t offset; emu::Region* region = emu::{match[2]}_at({address}, &offset); uint32_t v[{n}];"
    if loads:
        move = f"memcpy(v, emu::load(region, offset, {4 * n}, {4 * n}), {4 * n});"
        return f"{{ {open_} {move} " + " ".join(f"{x} = v[{i}];" for i, x in enumerate(values)) + " }"
    fill = " ".join(f"v[{i}] = {x};" for i, x in enumerate(values))
    return f"{{ {open_} {fill} memcpy(emu::store(region, offset, {4 * n}, {4 * n}, v), v, {4 * n}); }}"


def _barrier(opcode: str, args: list[str], reg: Registers, arch: Arch) -> str:
    if opcode not in ("bar.sync", "barrier.sync", "barrier.sync.aligned") or [a.strip() for a in args] != ["0"]:
        raise EmulationError(f"PTX {opcode} {', '.join(args)} is not modelled")
    return "emu::barrier();"


def _warp_barrier(opcode: str, args: list[str], reg: Registers, arch: Arch) -> str:
    if args[0].strip().lower() not in ("0xffffffff", "-1"):
        raise EmulationError(f"PTX {opcode} of some lanes is not modelled")
    return "emu::sync_warp();"


_FAMILIES: dict[str, Callable[[str, list[str], Registers, Arch], str]] = {
    "mma.sync.aligned": _mma,
    "ldmatrix": _ldmatrix,
    "cp.async": _cp_async,
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
    "ld": _memory,
    "st": _memory,
    "bar.warp.sync": _warp_barrier,
    "bar": _barrier,
    "barrier": _barrier,
    **{name: _binary for name in _BINARY},
}
