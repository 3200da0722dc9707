"""Machine code of the kernels that ResNets get, with the tiles that are predicted to be best.

nvcc compiles a family's kernels at once; nvdisasm reads them. What is required is what the rules
promise and the tile model assumes: the instruction that multiplies, copies and stores of whole
vectors, nothing in local memory, room for as many blocks on an SM, and the length of the epilogue.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache

import pytest

from tests.cuda_emulator.prim_func import Kernel
from tests.schedules.builders import S4, S8, U4
from tests.schedules.cuda.builders import cuda, lower
from tests.schedules.cuda.convolutions import Conv
from tests.schedules.cuda.resources import occupancy_loss
from tests.schedules.cuda.sass import MachineCode, machine_code, needs_sass, opcode
from tvm_q4.schedules.cuda import tile_space
from tvm_q4.schedules.cuda.conv_shape import ConvShape
from tvm_q4.schedules.cuda.cost import EPILOGUE_OPS, SKIP_OPS, Resources, Tile
from tvm_q4.schedules.cuda.device import device_of, family_of
from tvm_q4.schedules.cuda.main_loop import group
from tvm_q4.schedules.cuda.tensor_core import MmaForm, mma_form
from tvm_q4.schedules.cuda.tile import CHUNK_BYTES
from tvm_q4.schedules.layer import Layer

pytestmark = needs_sass

PADDED = (1, 1, 1, 1)
CONV3 = Conv((8, 64, 56, 56), 64, (3, 3), padding=PADDED)
EXPAND = Conv((8, 64, 56, 56), 256, residual="fused")
W4A4 = {"data": U4, "bits": 4, "result": U4}
LAYERS = {
    "3x3 u8s8": CONV3,
    "3x3 u4s4": replace(CONV3, **W4A4),
    "expansion u8s8": EXPAND,
    "expansion u4s4": replace(EXPAND, **W4A4),
    "stem s8s8": Conv((8, 3, 224, 224), 64, (7, 7), (2, 2), (3, 3, 3, 3), data=S8),
    "split k s4s4": Conv((1, 512, 7, 7), 512, (3, 3), padding=PADDED, data=S4, bits=4, result=S4),
    "classifier u8s8": Conv((8, 2048, 1, 1), 1000, result=None),
}
MORE = {
    "3x3 s8s8": replace(CONV3, data=S8, result=S8),
    "3x3 s4s4": replace(CONV3, data=S4, bits=4, result=S4),
    "3x3 u8s4": replace(CONV3, bits=4),
    "3x3 u4s8": replace(CONV3, data=U4),
    "3x3 s4s8": replace(CONV3, data=S4, result=S8),
    "reduction u4s4": Conv((8, 256, 56, 56), 64, **W4A4),
    "downsampling u4s4": Conv((8, 256, 56, 56), 512, (1, 1), (2, 2), **W4A4),
    "strided 3x3 u8s8": Conv((8, 128, 56, 56), 128, (3, 3), (2, 2), PADDED),
    "large batch u4s4": Conv((128, 256, 14, 14), 256, (3, 3), padding=PADDED, **W4A4),
    "large batch u8s8": Conv((128, 256, 14, 14), 256, (3, 3), padding=PADDED),
    "batch 1 u4s4": Conv((1, 128, 28, 28), 128, (3, 3), padding=PADDED, **W4A4),
    "grouped u8s8": Conv((8, 128, 56, 56), 128, (3, 3), padding=PADDED, groups=32),
    "cifar stem": Conv((32, 3, 32, 32), 16, (3, 3), padding=PADDED, data=S8, result=U4),
    "cifar u4s4": Conv((32, 16, 32, 32), 16, (3, 3), padding=PADDED, **W4A4),
}
OPCODES = {
    (75, 8): r"IMMA\.8816\.{}8\.S8",
    (75, 4): r"IMMA\.8832\.{}4\.S4",
    (80, 8): r"IMMA\.16832\.{}8\.S8",
    (80, 4): r"IMMA\.16864\.{}4\.S4",
    (90, 8): r"IMMA\.16832\.{}8\.S8",
}
_NO_ALU = "IMMA|LDSM|LDG|LDS|STS|STG|BAR|DEPBAR|BRA|EXIT|S2R|LDC"
_SETUP, _COPY, _SLAB = 120, 16, 20
"""Instructions of a thread for addresses: once, for each of its copies of a slab, for each slab in
the text (nvcc unrolls the loop)."""

FAST = [(arch, name) for arch in (75, 80, 90) for name in LAYERS]
FAST += [(89, name) for name in ("3x3 u4s4", "expansion u4s4")]
EVERYTHING = [(arch, name) for arch in (75, 80, 86, 89, 90) for name in LAYERS | MORE]
SLOW = [pytest.param(*p, marks=pytest.mark.slow) for p in EVERYTHING if p not in FAST]


@dataclass(frozen=True)
class Compiled:
    """A layer's kernels: the products, then the addition of the parts of a split k."""

    arch: int
    layer: Layer
    form: MmaForm
    tile: Tile
    kernels: tuple[Kernel, ...]
    codes: tuple[MachineCode, ...]

    @property
    def main(self) -> MachineCode:
        return self.codes[0]


@cache
def _compiled(arch: int, names: tuple[str, ...]) -> dict[str, Compiled]:
    """Layers that one run of nvcc compiles."""
    calls, funcs = {}, {}
    for position, name in enumerate(names):
        lowered = lower((LAYERS | MORE)[name].module(), arch)
        (calls[name],) = [c for c in lowered.calls if c.layer.ops[0].name == "c"]
        func = lowered.mod[calls[name].kernel]
        funcs[name] = func.with_attr("global_symbol", f"layer{position}")
    kernels, codes = machine_code(list(funcs.values()), arch)
    found = {}
    for position, (name, call) in enumerate(calls.items()):
        own = tuple(k for k in kernels if re.match(rf"layer{position}_kernel", k.name))
        form = mma_form(call.layer, family_of(cuda(arch)))
        assert form is not None
        tile = Tile(*(int(call.choice.params[p]) for p in tile_space.NAMES))
        own_codes = tuple(codes[k.name] for k in own)
        found[name] = Compiled(arch, call.layer, form, tile, own, own_codes)
    return found


@pytest.fixture
def code(arch: int, name: str) -> Compiled:
    """A layer's machine code; a family's fast layers are compiled together."""
    together = tuple(n for a, n in FAST if a == arch)
    return _compiled(arch, together if name in together else (name,))[name]


layers = pytest.mark.parametrize(("arch", "name"), [*FAST, *SLOW])


@layers
def test_products(code: Compiled) -> None:
    form = code.form
    wanted = OPCODES[form.family, form.bits].format("S" if form.signed else "U")
    products = code.main.named("I?H?B?D?MMA")
    assert products
    assert all(re.match(wanted, opcode(i)) for i in products), products[0]
    assert not code.main.named(r"CALL|RET"), "products are emulated by a function"


@layers
def test_nothing_in_local_memory(code: Compiled) -> None:
    for kernel in code.codes:
        assert not kernel.named("LDL|STL")
        assert (kernel.usage.stack, kernel.usage.local) == (0, 0)


@layers
def test_copies_of_whole_vectors(code: Compiled) -> None:
    main = code.main
    assert main.named(r"LDSM\.16\.M(T)?88\.4")
    assert not main.named(r"LDS\b(?!M)"), "fragments come by ldmatrix"
    if code.form.family == 75:
        assert not main.named("LDGSTS")
        assert main.named(r"STS\.128") and main.named(r"LDG\.E\.128")
        return
    assert not main.named(r"STS\b")
    narrow = ConvShape(code.layer, code.tile.bn, code.form.channels).narrow
    others = main.named(r"LDGSTS\.(?!E\.BYPASS\.128)")
    assert bool(others) == narrow, "only an image is copied in less than 16 bytes"
    assert main.named(r"LDGSTS\.E\.BYPASS\.128")


@layers
def test_epilogue_moves_whole_vectors(code: Compiled) -> None:
    last = code.codes[-1]
    run = group(code.tile) if len(code.codes) == 1 else 8
    (_, result), *_ = code.layer.outputs
    words = min(4, run * result.layout.bits // 32)
    width = "" if words == 1 else f".{32 * words}"
    stores = {opcode(i).removesuffix(".SYS") for i in last.named("STG")}
    assert stores == {f"STG.E{width}"}
    loads = [
        opcode(i) for i in last.named(r"LDG\b") if code.form.family > 75 or len(code.codes) > 1
    ]
    assert all(".128" in i or ".64" in i for i in loads), "constants come four at a time"
    if result.layout.bits in (4, 8):
        assert last.named(rf"I2IP\.[SU]{result.layout.bits}\.S32\.SAT")
        assert len(last.named(r"IMNMX|VIMNMX\b")) < 32, "packing limits values, not clamps"


@layers
def test_occupancy_is_what_the_tile_model_assumed(code: Compiled) -> None:
    device = device_of(cuda(code.arch))
    kernel, usage = code.kernels[0], code.main.usage
    shared = usage.shared + kernel.shared_bytes
    used = Resources(kernel.block[0], shared, usage.registers)
    residual = len(code.layer.inputs) > 1
    loss = occupancy_loss(used, code.tile, device, float(code.form.products), residual)
    assert loss is None, loss


@layers
def test_instructions_an_output_are_those_that_the_tile_model_assumed(code: Compiled) -> None:
    outputs = code.tile.wm * code.tile.wn // 32
    if code.tile.split_k > 1 or code.layer.ops[-1].kind == "conv2d" or outputs < 32:
        pytest.skip("sums are stored as they are, or too few to tell")
    others = [i for i in code.main.instructions if not re.match(_NO_ALU, opcode(i))]
    wide = [i for i in others if re.match(r"IMAD\.(WIDE|HI)", opcode(i))]
    assumed = EPILOGUE_OPS + (SKIP_OPS if len(code.layer.inputs) > 1 else 0)
    tile = code.tile
    widening = 120 * tile.wm // 16 if code.form.widen else 0
    rows = tile.bm + tile.bn * code.form.products
    copies = rows * tile.bk_bytes // (CHUNK_BYTES * code.kernels[0].block[0])
    addresses = _SETUP + _COPY * copies + _SLAB * len(code.main.named("BAR"))
    assert len(others) + len(wide) < addresses + widening + 1.15 * assumed * outputs
