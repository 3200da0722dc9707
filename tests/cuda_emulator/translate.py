"""TVM's CUDA text to C++ over checked memory."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.cuda_emulator.errors import EmulationError
from tests.cuda_emulator.ptx import translate_ptx
from tests.cuda_emulator.registers import Arch
from tests.cuda_emulator.text import closing, split_top

_SCALARS = (
    "signed char|unsigned char|unsigned short|unsigned int|unsigned long long|long long"
    "|unsigned long|unsigned|char|short|int|long|float|double|void|bool|uint|uchar|ushort"
    "|u?int(?:8|16|32|64)_t"
)
_VECTORS = r"u?(?:char|short|int|longlong)[1234]|float[1234]"
_TYPE = rf"(?:{_SCALARS}|{_VECTORS}|T)"
_POINTER = re.compile(rf"\b(?:const\s+)?({_TYPE})\s*\*(?:\s*(?:__restrict__|const)\b)*")
_REFERENCE = re.compile(rf"\b({_TYPE})\s*&\s*(?=\w)")
_BOUNDS = r"(?:__launch_bounds__\((\d+)(?:,\s*\d+)?\)\s*)?"
_KERNEL = re.compile(rf'extern "C" __global__ void {_BOUNDS}(\w+)\(([^)]*)\)\s*([;{{])')
_STATIC_SHARED = re.compile(
    rf"__shared__\s+(?:alignas\((\d+)\)\s+|__align__\((\d+)\)\s+)?({_TYPE})\s+(\w+)\[(\d+)\];"
)
_DYNAMIC_SHARED = re.compile(
    rf"extern\s+__shared__\s+(?:alignas\((\d+)\)\s+|__align__\((\d+)\)\s+)?({_TYPE})\s+(\w+)\[\];"
)
_LOCAL = re.compile(rf"^(\s*)(?:alignas\(\d+\)\s+)?({_TYPE})\s+(\w+)\[(\d+)\];", re.MULTILINE)
_ASM = re.compile(r"\b(?:__asm__|asm)\b\s*(?:__volatile__|volatile)?\s*\(")
_ESCAPES = {"n": "\n", "t": "\t", '"': '"', "\\": "\\", "r": "\n"}


@dataclass(frozen=True)
class Parameter:
    """A kernel's parameter: its name, and its C type (a pointer's element type)."""

    name: str
    c_type: str
    pointer: bool


@dataclass(frozen=True)
class Translation:
    """A kernel as C++: the text, its parameters, and the most threads that a block may have."""

    text: str
    parameters: tuple[Parameter, ...]
    max_threads: int


def translate(source: str, kernel: str, arch: Arch = None) -> Translation:
    """Turn the CUDA source of a module into C++ that runs one of its kernels.

    Parameters
    ----------
    source : str
        What ``inspect_source()`` of TVM's CUDA module returns.
    kernel : str
        Name of the ``__global__`` function.
    arch : int or None
        Compute capability for which instructions are checked; None: no check.

    Returns
    -------
    Translation
        Line numbers that the C++ records are those of `source`.

    Raises
    ------
    EmulationError
        There is no such kernel, or the source has what the emulator does not model.
    """
    text = _blank_preprocessor(source)
    text = _replace_asm(text, arch)
    parameters, max_threads, text = _extract_kernel(_replace_memory(text), kernel)
    call = ", ".join(_argument(i, p) for i, p in enumerate(parameters))
    head = '#include "emulator.h"\n#line 1\n'
    tail = (
        '\nextern "C" void emu_kernel(emu::Region** regions, const int64_t* scalars) {\n'
        f"  (void)regions, (void)scalars;\n  {kernel}({call});\n}}\n"
    )
    return Translation(head + text + tail, parameters, max_threads)


def _blank_preprocessor(source: str) -> str:
    """TVM puts all directives first: what stands up to the last one becomes empty lines."""
    lines = source.split("\n")
    last = max((i for i, line in enumerate(lines) if line.lstrip().startswith("#")), default=-1)
    return "\n".join([""] * (last + 1) + lines[last + 1 :])


def _replace_asm(text: str, arch: Arch) -> str:
    out, position = [], 0
    while match := _ASM.search(text, position):
        end = closing(text, match.end() - 1)
        inner = text[match.end() : end]
        try:
            block = _asm_block(inner, arch)
        except EmulationError as error:
            line = text.count("\n", 0, match.start()) + 1
            raise EmulationError(f"line {line}: {error}") from None
        out += [text[position : match.start()], block, "\n" * inner.count("\n")]
        position = end + 1
    return "".join([*out, text[position:]])


def _asm_block(inner: str, arch: Arch) -> str:
    sections = _sections(inner)
    template = "".join(
        re.sub(r"\\(.)", lambda m: _ESCAPES[m[1]], s)
        for s in re.findall(r'"((?:[^"\\]|\\.)*)"', sections[0])
    )
    before, after, names = [], [], []
    for section, text in enumerate(sections[1:3]):
        for operand in split_top(text):
            name = f"operand_{len(names)}"
            names.append(name)
            constraint = re.match(r'"([=+]?)([a-z])"\s*', operand)
            if constraint is None or constraint[2] not in "rlnfh":
                raise EmulationError(f"asm operand {operand!r} is not modelled")
            first, last = _operand(name, constraint, operand[constraint.end() :], section == 0)
            before.append(first)
            after.append(last)
    body = translate_ptx(template, names, arch)
    return "{ " + " ".join([*before, body, *after]) + " }"


def _operand(
    name: str, constraint: re.Match[str], expression: str, output: bool
) -> tuple[str, str]:
    """Statements that bind an operand's variable before, and write it back after, the PTX."""
    mode, letter = constraint.groups()
    wide = letter == "l"
    read = f"emu::reg{64 if wide else 32}({expression})"
    value = "0" if output and mode == "=" else read
    declaration = f"uint{64 if wide else 32}_t {name} = {value}; (void){name};"
    result = f"emu::as_float({name})" if letter == "f" else name
    return declaration, f"{expression} = {result};" if output else ""


def _sections(inner: str) -> list[str]:
    """Template, outputs, inputs and clobbers of an asm statement."""
    sections, depth, quoted, start = [], 0, False, 0
    for i, char in enumerate(inner):
        if char == '"' and inner[i - 1 : i] != "\\":
            quoted = not quoted
        elif not quoted and char in "([":
            depth += 1
        elif not quoted and char in ")]":
            depth -= 1
        elif not quoted and depth == 0 and char == ":":
            sections.append(inner[start:i])
            start = i + 1
    return [*sections, inner[start:], "", ""]


def _extract_kernel(text: str, kernel: str) -> tuple[tuple[Parameter, ...], int, str]:
    """Keep the device functions and one kernel, whose statements record their line."""
    found: tuple[tuple[Parameter, ...], int] | None = None
    out, position = [], 0
    while match := _KERNEL.search(text, position):
        end = match.end() if match[4] == ";" else closing(text, match.end() - 1) + 1
        body = text[match.start() : end]
        out.append(text[position : match.start()])
        position = end
        if match[4] == ";" or match[2] != kernel:
            out.append("\n" * body.count("\n"))
            continue
        found = tuple(_parameter(p) for p in split_top(match[3])), int(match[1] or 1024)
        header = f"static void {kernel}({match[3]}) "
        first_line = text.count("\n", 0, match.end()) + 1
        out.append(header + _mark_lines(text[match.end() - 1 : end], first_line))
    if found is None:
        names = [m[2] for m in _KERNEL.finditer(text)]
        raise EmulationError(f"the source has no kernel {kernel!r}; it has {sorted(set(names))}")
    return *found, "".join([*out, text[position:]])


def _mark_lines(body: str, first_line: int) -> str:
    lines, previous = [], "{"
    for number, line in enumerate(body.split("\n"), first_line):
        stripped = line.strip()
        marked = previous in ";{}" and stripped and number > first_line
        if marked and not stripped.startswith(("}", "else")):
            line = f"emu::lane->line = {number}; {line}"
        lines.append(line)
        previous = stripped[-1:] or previous
    return "\n".join(lines)


def _parameter(text: str) -> Parameter:
    match = re.fullmatch(rf"(emu::P<)?({_TYPE})>?\s+(\w+)", text)
    if match is None:
        raise EmulationError(f"kernel parameter {text!r} is not modelled")
    return Parameter(match[3], match[2], match[1] is not None)


def _argument(index: int, parameter: Parameter) -> str:
    if parameter.pointer:
        return f"emu::P<{parameter.c_type}>(regions[{index}], 0)"
    return f"({parameter.c_type})scalars[{index}]"


def _replace_memory(text: str) -> str:
    index = iter(range(1000))

    def static(match: re.Match[str]) -> str:
        align, align2, c_type, name, count = match.groups()
        where = f'{next(index)}, "{name}", {count}, {align or align2 or f"alignof({c_type})"}'
        return f"emu::P<{c_type}> {name} = emu::shared_array<{c_type}>({where});"

    def dynamic(match: re.Match[str]) -> str:
        align, align2, c_type, name = match.groups()
        return f"emu::P<{c_type}> {name} = emu::dynamic_shared<{c_type}>({align or align2 or 16});"

    # A template's by-value parameter must not take part in deduction: a proxy stands there.
    text = re.sub(r"(?<=, )T (?=\w+\))", "typename emu::Same<T>::type ", text)
    text = _POINTER.sub(r"emu::P<\1> ", text)
    text = re.sub(r"reinterpret_cast<emu::P<([\w ]+)> >", r"emu::recast<\1>", text)
    text = _REFERENCE.sub(r"emu::RefArg<\1> ", text)
    text = _DYNAMIC_SHARED.sub(dynamic, text)
    text = _STATIC_SHARED.sub(static, text)
    return _LOCAL.sub(r'\1emu::Local<\2, \4> \3("\3");', text)
