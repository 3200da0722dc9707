"""Dot-product forms: which CPU gets which, and what its compiler makes of them."""

from __future__ import annotations

import re

import numpy as np
import pytest
import tvm
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from tests.schedules.builders import (
    S4,
    S8,
    U4,
    U8,
    call_of,
    cpu,
    kernel_asm,
    lower,
    module,
    requantized,
    weights,
)
from tvm_q4 import ops
from tvm_q4.quant import IntRange
from tvm_q4.schedules import lanes
from tvm_q4.schedules.cpu.dot import DotForm, dot_forms
from tvm_q4.schedules.kernel import prim_func

CPUS = ("znver4", "cascadelake", "icelake-server", "alderlake", "haswell", "znver3", "x86-64")
RANGES = (U4, S4, U8, S8, IntRange(0, 127), IntRange(0, 128), IntRange(0, 2), IntRange(-127, 127))


def _names(mcpu: str, data: IntRange, bits: int) -> list[str]:
    return [f.name for f in dot_forms(cpu(mcpu), data, bits)]


@pytest.mark.parametrize(
    ("mcpu", "data", "bits", "best"),
    [
        ("znver4", U8, 8, "vnni512"),
        ("znver4", S4, 4, "vnni512"),
        ("cascadelake", S8, 8, "vnni512"),
        ("alderlake", U8, 8, "vnni256"),
        ("alderlake", U4, 4, "vnni256"),
        ("haswell", U4, 4, "maddubs"),
        ("haswell", U8, 4, "maddubs"),
        ("haswell", S8, 4, "maddubs"),
        ("haswell", U8, 8, "madd"),
        ("haswell", S8, 8, "madd"),
        ("haswell", U4, 8, "maddubs"),
        ("x86-64", U8, 8, "generic"),
        ("x86-64", U4, 4, "generic"),
    ],
)
def test_best_form(mcpu: str, data: IntRange, bits: int, best: str) -> None:
    assert _names(mcpu, data, bits)[0] == best


@pytest.mark.parametrize("mcpu", CPUS)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("data", RANGES)
def test_maddubs_only_where_no_pair_saturates(mcpu: str, bits: int, data: IntRange) -> None:
    names = _names(mcpu, data, bits)
    largest = 255 if data.signed else data.hi  # signed data are shifted by 128
    fits = 2 * largest * (1 << (bits - 1)) <= 32767
    assert ("maddubs" in names) == (fits and mcpu != "x86-64")
    assert names[-1] == "generic"


@pytest.mark.parametrize("data", RANGES)
def test_scaled_nibbles_never_saturate(data: IntRange) -> None:
    for form in dot_forms(cpu("haswell"), data, 4):
        if form.name == "maddubs" and form.nibble_scale == 16:
            assert 2 * (255 if data.signed else data.hi) * 128 <= 32767


def test_other_architectures_get_the_generic_form() -> None:
    arm = Target({"kind": "llvm", "mtriple": "aarch64-linux-gnu"})
    assert [f.name for f in dot_forms(arm, U8, 8)] == ["generic"]


def test_forms_state_their_widths() -> None:
    forms = {f.name: f for f in dot_forms(cpu("znver4"), U4, 4)}
    assert {n: f.width for n, f in forms.items()} == {
        "vnni512": 4, "vnni256": 4, "maddubs": 4, "madd": 2, "generic": 1,
    }  # fmt: skip
    assert all(f.vector_bytes == 16 * f.width for f in forms.values())
    assert [n for n, f in forms.items() if not f.unsigned_only] == ["madd", "generic"]


def _unpacked(form: DotForm, packed: np.ndarray) -> np.ndarray:
    """Both vectors that `unpack` makes of every byte value, evaluated by TVM."""
    size = form.vector_bytes

    def body() -> None:
        x = T.arg("x", T.buffer((packed.size,), "int8"))
        y = T.arg("y", T.buffer((2, packed.size), "int8"))
        with T.serial(0, packed.size // size) as i:
            low, high = form.unpack(lanes.load(x, [i * size], size))
            lanes.store(y, [0, i * size], low, size)
            lanes.store(y, [1, i * size], high, size)

    compiled = tvm.compile(tvm.IRModule({"f": prim_func("f", body)}), target="llvm")
    out = tvm.runtime.tensor(np.zeros((2, packed.size), np.int8))
    compiled["f"](tvm.runtime.tensor(packed), out)
    return out.numpy()


@pytest.mark.parametrize("scale", [1, 16])
@pytest.mark.parametrize("width", [1, 2, 4])
def test_unpack_gives_low_nibbles_first(scale: int, width: int) -> None:
    packed = np.arange(256, dtype=np.uint8).view(np.int8)
    found = _unpacked(DotForm("any", width, False, scale, 1), packed)
    nibbles = np.stack([packed.view(np.uint8) & 15, packed.view(np.uint8) >> 4]).astype(int)
    signed = np.where(nibbles < 8, nibbles, nibbles - 16)
    np.testing.assert_array_equal(found, signed * scale)


ASM_LAYERS = {
    "3x3": ((1, 64, 28, 28), 64, 3),
    "1x1": ((1, 256, 14, 14), 64, 1),
    "7x7 image": ((1, 64, 7, 7), 64, 3),
}
INSTRUCTIONS = {
    "cascadelake": ("vpdpbusd", "zmm"),
    "znver4": ("vpdpbusd", "zmm"),
    "alderlake": ("vpdpbusd", "ymm"),
}


def _inner_code(mcpu: str, layer: str, bits: int, data: IntRange, instruction: str) -> list[str]:
    """Instructions from the first to the last dot product of a convolution's kernel."""
    rng = np.random.default_rng(0)
    shape, out, k = ASM_LAYERS[layer]
    w = weights(rng, bits, (out, shape[1], k, k))

    def emit(b, x):
        conv = ops.conv2d(
            x, w, [0], name="c", strides=[1, 1], padding=[k // 2] * 4, weight_bits=bits
        )
        return requantized(b, b.emit(conv), rng)

    lowered = lower(module(shape, data, emit), cpu(mcpu))
    asm = kernel_asm(lowered, call_of(lowered, "conv2d"), cpu(mcpu)).splitlines()
    at = [i for i, line in enumerate(asm) if instruction in line.split("#")[0]]
    assert at, f"{mcpu} has no {instruction}"
    return asm[at[0] : at[-1] + 1]


def _spills(code: list[str]) -> list[str]:
    """Vector instructions that read or write the stack."""
    return [line for line in code if re.search(r"\(%r[sb]p\)", line) and re.search("[xyz]mm", line)]


@pytest.mark.parametrize("layer", ASM_LAYERS)
@pytest.mark.parametrize("operands", [(8, U8), (4, U4), (8, S8)], ids=["w8u8", "w4u4", "w8s8"])
@pytest.mark.parametrize("mcpu", INSTRUCTIONS)
def test_vnni_keeps_accumulators_in_registers(
    mcpu: str, operands: tuple[int, IntRange], layer: str
) -> None:
    instruction, register = INSTRUCTIONS[mcpu]
    code = _inner_code(mcpu, layer, *operands, instruction)
    dots = [line for line in code if instruction in line]
    assert all(register in line for line in dots)
    assert len(dots) >= 4
    assert _spills(code) == []


@pytest.mark.parametrize("layer", ASM_LAYERS)
@pytest.mark.parametrize(
    ("operands", "present", "absent"),
    [
        ((4, U4), "vpmaddubsw", "vpdpbusd"),
        ((8, U8), "vpmaddwd", "vpmaddubsw"),
        ((8, S8), "vpmaddwd", "vpmaddubsw"),
    ],
    ids=["w4u4", "w8u8", "w8s8"],
)
def test_avx2_keeps_accumulators_in_registers(
    operands: tuple[int, IntRange], present: str, absent: str, layer: str
) -> None:
    code = _inner_code("haswell", layer, *operands, present)
    assert sum(present in line for line in code) >= 4
    assert not any(absent in line or "zmm" in line for line in code)
    assert _spills(code) == []


def test_plain_x86_gets_no_newer_vectors() -> None:
    code = _inner_code("x86-64", "3x3", 8, U8, "pmaddwd")
    assert not any(re.search(r"\tv|ymm|zmm", line) for line in code)
