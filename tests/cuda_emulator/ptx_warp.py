"""Inline PTX of warps and memory: mma, ldmatrix, cp.async, loads, stores and barriers."""

from __future__ import annotations

import re

from tests.cuda_emulator.errors import EmulationError
from tests.cuda_emulator.registers import Arch, Instruction, Registers, need, not_modelled

_MMA = re.compile(r"m(\d+)n8k(\d+)\.row\.col(\.satfinite)?\.s32\.([su])([48])\.([su])([48])\.s32")
_MMA_ARCH = {"m8n8k16": 75, "m8n8k32": 75, "m16n8k16": 80, "m16n8k32": 80, "m16n8k64": 80}
_MMA_K = {("8", 8): (16,), ("16", 8): (16, 32), ("8", 4): (32,), ("16", 4): (32, 64)}


def _collective(
    name: str, function: str, params: list[int], ins: list[str], outs: list[str]
) -> str:
    lines = [f"emu::lane->in[{i}] = {v};" for i, v in enumerate(ins)]
    values = ", ".join(map(str, params))
    lines.append(f'emu::collective(emu::Collective{{"{name}", emu::{function}, {{{values}}}}});')
    lines += [f"{v} = emu::lane->out[{i}];" for i, v in enumerate(outs)]
    return " ".join(lines)


def _mma(opcode: str, args: list[str], reg: Registers, arch: Arch) -> str:
    match = _MMA.fullmatch(opcode.removeprefix("mma.sync.aligned."))
    if match is None:
        raise not_modelled(opcode)
    m, k, saturate, a_sign, a_bits, b_sign, b_bits = match.groups()
    bits = int(a_bits)
    if a_bits != b_bits or int(k) not in _MMA_K.get((m, bits), ()):
        raise EmulationError(f"there is no instruction {opcode}")
    need(arch, _MMA_ARCH[f"m{m}n8k{k}"], opcode)
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
        raise not_modelled(opcode)
    need(arch, 75, opcode)
    number, outs = int(match[1]), reg.group(args[0])
    if len(outs) != number:
        raise EmulationError(f"{opcode} fills {number} registers, not {len(outs)}")
    all_lanes = int(arch == 75)
    return _collective(
        f"ldmatrix.x{number}", "ldmatrix", [number, all_lanes], [reg.address(args[1])], outs
    )


def _cp_async(opcode: str, args: list[str], reg: Registers, arch: Arch) -> str:
    need(arch, 80, opcode)
    if opcode == "cp.async.commit_group":
        return "emu::cp_async_commit();"
    if opcode == "cp.async.wait_all":
        return "emu::cp_async_wait_all();"
    if opcode == "cp.async.wait_group":
        return f"emu::cp_async_wait({reg(args[0])});"
    match = re.fullmatch(r"cp\.async\.(ca|cg)\.shared(?:::cta)?\.global(?:\.L2::\w+)*", opcode)
    if match is None or "cache_hint" in opcode:
        raise not_modelled(opcode)
    dst, src, size = reg.address(args[0]), reg.address(args[1]), reg(args[2])
    src_size = reg(args[3]) if len(args) > 3 else size
    if len(args) > 3 and args[3].strip() in reg.local:  # a predicate: ignore the source
        src_size = f"({src_size} ? 0 : {size})"
    least = 16 if match[1] == "cg" else 4
    return f"emu::cp_async({dst}, {src}, {size}, {src_size}, {least});"


_MEMORY = re.compile(
    r"(ld|st)\.(global|shared)(?:::cta)?(?:\.nc)?(?:\.L1::\w+|\.L2::\w+)*(\.v[24])?\.[sub]32"
)


def _memory(opcode: str, args: list[str], reg: Registers, arch: Arch) -> str:
    match = _MEMORY.fullmatch(opcode)
    if match is None:
        raise not_modelled(opcode)
    loads = match[1] == "ld"
    values, address = reg.group(args[0 if loads else 1]), reg.address(args[1 if loads else 0])
    n = len(values)
    if n != int((match[3] or ".v1")[2:]):
        raise EmulationError(f"{opcode} moves another number of registers than {n}")
    region = f"int64_t offset; emu::Region* region = emu::{match[2]}_at({address}, &offset);"
    size = 4 * n
    if loads:
        body = f"uint32_t v[{n}]; memcpy(v, emu::load(region, offset, {size}, {size}), {size}); "
        body += " ".join(f"{x} = v[{i}];" for i, x in enumerate(values))
    else:
        body = f"uint32_t v[{n}] = {{{', '.join(values)}}}; "
        body += f"memcpy(emu::store(region, offset, {size}, {size}, v), v, {size});"
    return f"{{ {region} {body} }}"


def _barrier(opcode: str, args: list[str], reg: Registers, arch: Arch) -> str:
    if opcode not in ("bar.sync", "barrier.sync.aligned") or [a.strip() for a in args] != ["0"]:
        raise EmulationError(f"PTX {opcode} {', '.join(args)} is not modelled")
    return "emu::barrier();"


def _warp_barrier(opcode: str, args: list[str], reg: Registers, arch: Arch) -> str:
    if args[0].strip().lower() not in ("0xffffffff", "-1"):
        raise EmulationError(f"PTX {opcode} of some lanes is not modelled")
    return "emu::sync_warp();"


INSTRUCTIONS: dict[str, Instruction] = {
    "mma.sync.aligned": _mma,
    "ldmatrix": _ldmatrix,
    "cp.async": _cp_async,
    "ld": _memory,
    "st": _memory,
    "bar.warp.sync": _warp_barrier,
    "bar": _barrier,
    "barrier": _barrier,
}
"""By the first parts of the opcode."""
