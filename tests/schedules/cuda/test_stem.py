"""The image's convolution with its max-pools in one kernel: dispatch, and bits in the emulator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

from tests.cuda_emulator.prim_func import lower as lower_func
from tests.schedules.builders import S4, S8, U4, U8, full_range, module, ratios, weights
from tests.schedules.cuda.builders import check, cuda
from tvm_q4 import ops
from tvm_q4.quant import IntRange
from tvm_q4.relay_passes.fuse_epilogue import FuseEpilogue
from tvm_q4.relay_passes.fuse_stem_pool import FuseStemPool
from tvm_q4.relay_passes.lower_to_tir import lower_to_tir
from tvm_q4.schedules.cuda.pipeline import tir_pipeline
from tvm_q4.schedules.cuda.rules import RULES
from tvm_q4.schedules.cuda.stem import StemPool, stem_pays
from tvm_q4.schedules.layer import Layer
from tvm_q4.schedules.rule import Params


def stem(
    size: tuple[int, int, int],
    data: IntRange,
    results: list[IntRange],
    out: int = 24,
    kernel: int = 7,
    pool: tuple[int, int, int] = (3, 2, 1),
) -> tvm.IRModule:
    """A convolution of stride 2, one requantize and one max-pool (size, stride, pad) a result."""
    rng = np.random.default_rng(5)
    n, h, w = size

    def emit(b: relax.BlockBuilder, x: relax.Expr) -> relax.Expr:
        bias = rng.integers(-9000, 9000, out).astype(np.int32)
        acc = b.emit(
            ops.conv2d(
                x,
                weights(rng, 8, (out, 3, kernel, kernel)),
                bias,
                name="c",
                strides=[2, 2],
                padding=[kernel // 2] * 4,
                zero_point=max(data.lo, -3),
            )
        )
        pooled = []
        for k, r in enumerate(results):
            how: dict[str, Any] = {"lo": r.lo, "hi": r.hi, "dtype": r.dtype}
            y = b.emit(ops.requantize(acc, *ratios(rng, out), name=f"y{k}", **how))
            geometry: dict[str, Any] = {"pool_size": [pool[0]] * 2, "strides": [pool[1]] * 2}
            geometry["padding"] = [pool[2]] * 4
            pooled.append(b.emit(ops.max_pool2d(y, name=f"p{k}", **geometry)))
        if len(pooled) == 1:
            return pooled[0]
        same = [_pointwise(b, rng, p, k) for k, p in enumerate(pooled)]
        return b.emit(ops.concat(same, name="joined"))

    return module((n, 3, h, w), data, emit)


def _pointwise(b: relax.BlockBuilder, rng: np.random.Generator, x: relax.Expr, k: int) -> relax.Var:
    w = weights(rng, 8, (16, int(x.ty.shape[1]), 1, 1))
    acc = b.emit(ops.conv2d(x, w, [0], name=f"d{k}", strides=[1, 1], padding=[0] * 4))
    how: dict[str, Any] = {"lo": 0, "hi": 255, "dtype": "uint8"}
    return b.emit(ops.requantize(acc, *ratios(rng, 16), name=f"s{k}", **how))


class Forced(StemPool):
    """The rule with one parameter setting."""

    def __init__(self, **params: int) -> None:
        self._params = params

    def space(self, layer: Layer, target: Any) -> list[Params]:
        return [dict(self._params)]


def small(ph: int, pw: int, bn: int = 32, stages: int = 2) -> list[Any]:
    """All rules, stems with these parameters."""
    return [Forced(ph=ph, pw=pw, bn=bn, bk=64, stages=stages), *RULES]


CASES = {
    "u8": (stem((1, 17, 22), S8, [U8]), small(1, 4)),
    "u4, two images": (stem((2, 13, 13), U8, [U4]), small(2, 4)),
    "u8 and u4": (stem((1, 12, 15), S8, [U8, U4], out=40), small(2, 2)),
    "s8": (stem((1, 11, 9), S8, [S8], kernel=5), small(2, 3)),
    "s4, pool 2": (stem((1, 14, 14), U8, [S4], kernel=3, pool=(2, 2, 0)), small(2, 2)),
    "pool of stride 1": (stem((1, 9, 9), S8, [U8], pool=(3, 1, 1)), small(2, 4)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", [75, 80])
def test_bits(case: str, family: int) -> None:
    mod, rules = CASES[case]
    param = mod["main"].params[0]
    values = S8 if str(param.ty.dtype) == "int8" else U8
    x = full_range(np.random.default_rng(2), values, [int(d) for d in param.ty.shape])
    kinds = ("conv2d",)
    lowered, counts = check(mod, x, arch=family, rules=rules, prepare=FuseStemPool, kinds=kinds)
    assert [c.choice.rule.name for c in lowered.calls].count("cuda.stem_pool") == 1
    assert not any(c.layer.kind == "max_pool2d" for c in lowered.calls)
    assert "ldmatrix bank conflicts" not in counts


def test_unchanged_where_something_else_reads() -> None:
    rng = np.random.default_rng(0)

    def emit(b: relax.BlockBuilder, x: relax.Expr) -> relax.Expr:
        w = weights(rng, 8, (16, 3, 3, 3))
        acc = b.emit(ops.conv2d(x, w, [0], name="c", strides=[1, 1], padding=[1] * 4))
        y = b.emit(ops.requantize(acc, *ratios(rng, 16), name="y", lo=0, hi=255, dtype="uint8"))
        how = {"pool_size": [3, 3], "strides": [1, 1], "padding": [1] * 4}
        return b.emit(ops.concat([b.emit(ops.max_pool2d(y, name="p", **how)), y], name="j"))

    fused = FuseEpilogue(module((1, 3, 8, 8), U8, emit))
    tvm.ir.assert_structural_equal(FuseStemPool(fused), fused)


def test_unchanged_where_windows_are_wide() -> None:
    fused = FuseEpilogue(stem((1, 32, 32), S8, [U8], pool=(5, 2, 1)))
    tvm.ir.assert_structural_equal(FuseStemPool(fused), fused)


@pytest.mark.parametrize("arch", [75, 80])
@pytest.mark.parametrize("pool", [(4, 4, 0), (4, 1, 2), (1, 4, 0)])
def test_the_largest_region_fits_a_block(pool: tuple[int, int, int], arch: int) -> None:
    fused = FuseStemPool(FuseEpilogue(stem((1, 64, 64), S8, [U8, S8, U4], out=64, pool=pool)))
    lowered = lower_to_tir(fused, cuda(arch), RULES, lambda _: None)
    (call,) = [c for c in lowered.calls if c.choice.rule.name == "cuda.stem_pool"]
    largest, *_ = call.choice.rule.space(call.layer, cuda(arch))
    func = call.choice.rule.schedule(call.layer, cuda(arch), largest, "stem")
    (kernel,) = lower_func(func, f"sm_{arch}", tir_pipeline())
    assert kernel.shared_bytes <= int(cuda(arch).attrs["max_shared_memory_per_block"])
    assert kernel.block[0] <= 512


def test_unchanged_behind_other_layers() -> None:
    fused = FuseEpilogue(module((1, 64, 8, 8), U8, _convolution_of_64_channels))
    tvm.ir.assert_structural_equal(FuseStemPool(fused), fused)


def _convolution_of_64_channels(b: relax.BlockBuilder, x: relax.Expr) -> relax.Expr:
    rng = np.random.default_rng(0)
    w = weights(rng, 8, (16, 64, 1, 1))
    acc = b.emit(ops.conv2d(x, w, [0], name="c", strides=[1, 1], padding=[0] * 4))
    y = b.emit(ops.requantize(acc, *ratios(rng, 16), name="y", lo=0, hi=255, dtype="uint8"))
    return b.emit(ops.max_pool2d(y, name="p", pool_size=[3, 3], strides=[2, 2], padding=[1] * 4))


@pytest.mark.parametrize("arch", [75, 80, 89, 90])
@pytest.mark.parametrize("batch", [1, 8, 128])
def test_pays_in_a_resnet(arch: int, batch: int) -> None:
    fused = FuseStemPool(FuseEpilogue(stem((batch, 224, 224), S8, [U8], out=64)))
    lowered = lower_to_tir(fused, cuda(arch), RULES, lambda _: None)
    (call,) = [c for c in lowered.calls if c.layer.kind == "conv2d"]
    assert call.choice.rule.name == "cuda.stem_pool"
    assert stem_pays(call.layer, cuda(arch), call.choice)
