"""Tensor-core convolutions in the emulator, bit-exact with the reference executor.

Every family meets every operand width and sign, the three residual forms, strides, dilation,
groups, padding with a zero point, partial tiles in every direction, split k, the image's narrow
layout, and each shape of tile.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.schedules.builders import S4, S8, U4, U8
from tests.schedules.cuda.builders import check, cuda, lower
from tests.schedules.cuda.convolutions import Conv, forced
from tvm_q4.errors import UnsupportedError
from tvm_q4.quant import IntRange

FAMILIES = (75, 80, 90)
SMALL = forced(32, 32, 64, 32, 32)

PLAIN = Conv((1, 40, 5, 6), 24, (3, 3), padding=(1, 1, 1, 1))
OPERANDS = {
    "u8 x s8": replace(PLAIN, data=U8),
    "s8 x s8": replace(PLAIN, data=S8, result=S8),
    "u4 x s4": replace(PLAIN, data=U4, bits=4, result=U4),
    "s4 x s4": replace(PLAIN, data=S4, bits=4, result=S4),
    "u8 x s4": replace(PLAIN, data=U8, bits=4, result=U4),
    "u4 x s8": replace(PLAIN, data=U4, bits=8),
    "s4 x s8": replace(PLAIN, data=S4, bits=8, result=S8),
    "u7 x s8": replace(PLAIN, data=IntRange(0, 127), result=IntRange(0, 100)),
}
INSTRUCTIONS = {
    75: {8: "mma.m8n8k16", 4: "mma.m8n8k32"},
    80: {8: "mma.m16n8k32", 4: "mma.m16n8k64"},
    90: {8: "mma.m16n8k32", 4: "mma.m16n8k32"},
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("operands", OPERANDS)
def test_operands(operands: str, family: int) -> None:
    conv = OPERANDS[operands]
    _, counts = check(conv.module(), conv.input(), arch=family, rules=SMALL)
    width = 4 if conv.bits == 4 and conv.data.bits == 4 else 8
    used = {name.rsplit(".", 2)[0] for name in counts if name.startswith("mma")}
    assert used == {INSTRUCTIONS[family][width]}
    assert "ldmatrix bank conflicts" not in counts
    assert any(name.startswith("cp.async") for name in counts) == (family >= 80)


GEOMETRY = {
    "1x1": Conv((2, 33, 3, 5), 17),
    "stride 2": Conv((1, 32, 7, 6), 32, (3, 3), (2, 2), (1, 1, 1, 1)),
    "1x7": Conv((1, 32, 3, 9), 16, (1, 7), padding=(0, 3, 0, 3)),
    "padding of one side": Conv((1, 32, 5, 4), 16, (3, 3), (2, 2), (0, 0, 1, 1)),
    "dilation": Conv((1, 32, 7, 7), 16, (3, 3), padding=(2, 2, 2, 2), dilation=(2, 2)),
    "zero point": Conv((1, 32, 4, 4), 16, (3, 3), padding=(1, 1, 1, 1), zero=77),
    "groups along blocks": Conv((1, 64, 3, 3), 64, (3, 3), padding=(1, 1, 1, 1), groups=2),
    "groups across blocks": Conv((1, 24, 3, 3), 36, (3, 3), padding=(1, 1, 1, 1), groups=4),
    "depthwise": Conv((1, 32, 3, 3), 32, (3, 3), padding=(1, 1, 1, 1), groups=32),
    "many channels": Conv((1, 130, 2, 3), 70, (1, 1)),
    "batch": Conv((3, 16, 4, 4), 16, (3, 3), padding=(1, 1, 1, 1)),
    "one pixel": Conv((1, 48, 1, 1), 20),
}


@pytest.mark.parametrize("geometry", GEOMETRY)
def test_geometry(geometry: str) -> None:
    conv = GEOMETRY[geometry]
    family = FAMILIES[list(GEOMETRY).index(geometry) % 3]
    check(conv.module(), conv.input(), arch=family, rules=SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("geometry", GEOMETRY)
@pytest.mark.parametrize("bits", [4, 8])
def test_geometry_everywhere(geometry: str, bits: int, family: int) -> None:
    conv = GEOMETRY[geometry]
    if bits == 4:
        conv = replace(conv, data=U4, bits=4, zero=min(conv.zero, 5), result=U4)
    check(conv.module(), conv.input(), arch=family, rules=SMALL)


IMAGES = {
    "stem": Conv((1, 3, 13, 14), 24, (7, 7), (2, 2), (3, 3, 3, 3), data=S8, zero=-7, result=U4),
    "cifar": Conv((2, 3, 6, 7), 16, (3, 3), padding=(1, 1, 1, 1)),
    "gray": Conv((1, 1, 9, 9), 16, (5, 5), (2, 2), (2, 2, 2, 2)),
    "8 channels": Conv((1, 6, 5, 5), 16, (3, 3), padding=(1, 1, 1, 1), data=S8),
}


@pytest.mark.parametrize("family", [75, 80])
@pytest.mark.parametrize("image", IMAGES)
def test_image(image: str, family: int) -> None:
    conv = IMAGES[image]
    lowered, _ = check(conv.module(), conv.input(), arch=family, rules=SMALL)
    (layer,) = [c.layer for c in lowered.calls if c.layer.kind == "conv2d"]
    assert layer.data.layout.channels in (4, 8)


EPILOGUES = [
    (residual, result)
    for residual in ("fused", "accumulator", "two_sided")
    for result in (U4, S8, IntRange(-32768, 32767))
]


@pytest.mark.parametrize(("residual", "result"), EPILOGUES[::4])
@pytest.mark.parametrize("family", FAMILIES)
def test_residual(family: int, residual: str, result: IntRange) -> None:
    conv = replace(PLAIN, out=40, residual=residual, result=result)
    check(conv.module(), conv.input(), arch=family, rules=SMALL)


@pytest.mark.slow
@pytest.mark.parametrize(("residual", "result"), EPILOGUES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bits", [4, 8])
def test_residual_everywhere(bits: int, family: int, residual: str, result: IntRange) -> None:
    data = U4 if bits == 4 else U8
    conv = replace(PLAIN, out=40, residual=residual, result=result, bits=bits, data=data)
    check(conv.module(), conv.input(), arch=family, rules=SMALL)


def test_accumulators_are_exact() -> None:
    conv = replace(PLAIN, result=None, data=S8)
    check(conv.module(), conv.input(), arch=80, rules=SMALL)


def test_tensors_beyond_int32_are_refused() -> None:
    conv = Conv((6000, 64, 300, 300), 64, result=S4, data=S4, bits=4)
    with pytest.raises(UnsupportedError, match=r"of shape \[6000, 64, 300, 300\]"):
        lower(conv.module(), 80)


TILES = {
    "narrow slab": forced(32, 32, 32, 32, 32),
    "wide slab": forced(32, 32, 128, 32, 32),
    "many warps": forced(64, 64, 32, 32, 32, 3),
    "wide warp": forced(32, 64, 64, 32, 64, 2),
    "tall warp": forced(64, 32, 64, 64, 32, 2),
    "two channel groups": forced(32, 128, 32, 32, 128, 2),
    "few rows": forced(16, 64, 64, 16, 32, 4),
    "deep": forced(32, 32, 32, 16, 32, 5),
}


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("family", [75, 80])
def test_tile(tile: str, family: int) -> None:
    rules = TILES[tile]
    wm, stages = rules[0].space(None, None)[0]["wm"], rules[0].space(None, None)[0]["stages"]  # type: ignore[arg-type]
    if family == 75 and (wm == 16 or stages > 2):
        pytest.skip("sm_75 multiplies at least 32 rows a warp, in two stages")
    conv = Conv((1, 64, 5, 7), 72, (3, 3), padding=(1, 1, 1, 1), data=U4, bits=4, result=U4)
    check(conv.module(), conv.input(), arch=family, rules=rules)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("split", [2, 5])
def test_split_k(split: int, family: int) -> None:
    conv = replace(PLAIN, shape=(1, 64, 3, 3), out=64, data=S4, bits=4, residual="fused", result=S4)
    rules = forced(32, 32, 32, 32, 32, 2, split)
    lowered, counts = check(conv.module(), conv.input(), arch=family, rules=rules)
    assert counts["barrier"] > 0
    (call,) = [c for c in lowered.calls if c.layer.kind == "conv2d"]
    assert call.choice.params["split_k"] == split


def test_partial_sums_are_counted_by_int32() -> None:
    conv = Conv((128, 512, 112, 112), 512)
    (call,) = [c for c in lower(conv.module(), 80).calls if c.layer.kind == "conv2d"]
    splits = {params["split_k"] for params in call.choice.rule.space(call.layer, cuda(80))}
    assert splits == {1, 2}
