"""A network with every q4 operator and attribute, for the tests of the recipe format."""

from __future__ import annotations

import numpy as np
from tvm import relax

from tests.modules import full_range
from tvm_q4 import ops
from tvm_q4.quant import INT32_MAX, INT32_MIN

RNG = np.random.default_rng(29)


def whole_network(b: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
    """Every operator, each attribute away from its default somewhere."""
    w1, w2 = full_range(RNG, "int8", (4, 3, 3, 2)), RNG.integers(-8, 8, (6, 2, 3, 3), dtype=np.int8)
    x = b.emit(
        ops.quantize(
            x, [0.5, 0.25, 0.125], [3, -1, 0], name="input", qmin=-100, qmax=127, dtype="int8",
            axis=1, form="mul_div", numerator=127.0, denominator=2.64,
        )
    )  # fmt: skip
    c1 = b.emit(
        ops.conv2d(
            x, w1, RNG.integers(-9, 9, 4), name="stem", strides=[2, 1], padding=[1, 0, 2, 1],
            dilation=[1, 2], zero_point=-3,
        )
    )  # fmt: skip
    r1 = b.emit(
        ops.requantize(
            c1, [2**30, 2**31 - 1, 0, 9], [40, 41, 1, 0], name="stem.out", lo=0, hi=15,
            dtype="uint8", zero_point=1, rounding="half_even", offset=[0, 0, 5, 0],
        )
    )  # fmt: skip
    p = b.emit(
        ops.max_pool2d(
            r1, name="pool", pool_size=[3, 2], strides=[2, 2], padding=[1, 0, 1, 1],
            dilation=[1, 2], ceil_mode=True,
        )
    )  # fmt: skip
    cut = b.emit(relax.op.strided_slice(p, [2, 3], [0, 0], [3, 4], [1, 1]))
    wide = b.emit(relax.op.nn.pad(cut, [0, 0, 0, 0, 0, 1, 1, 0], "constant", 1.0))
    c2 = b.emit(
        ops.conv2d(
            wide, w2, np.zeros(6), name="branch", strides=[1, 1], padding=[1, 1, 1, 1], groups=2,
            weight_bits=4,
        )
    )  # fmt: skip
    skip = b.emit(
        ops.requantize(
            wide, 77, 3, name="skip", lo=INT32_MIN, hi=INT32_MAX, dtype="int32", in_zero_point=1,
            rounding="half_away",
        )
    )  # fmt: skip
    skip = b.emit(
        ops.concat([skip, b.emit(relax.op.strided_slice(skip, [1], [0], [2], [1]))], name="join")
    )
    a = b.emit(
        ops.add(
            c2,
            skip,
            1,
            0,
            5,
            2,
            name="sum",
            form="accumulator",
            lo=INT32_MIN,
            hi=INT32_MAX,
            dtype="int32",
        )
    )
    q = b.emit(
        ops.add(
            a, skip, [90] * 6, [9] * 6, [77] * 6, [9] * 6, name="fused", form="fused", lo=-128,
            hi=127, dtype="int8", lhs_zero_point=4, rhs_zero_point=-7, zero_point=2,
            rounding="floor",
        )
    )  # fmt: skip
    q = b.emit(
        ops.add(q, q, 9, 3, 1, 1, name="both", form="two_sided", lo=-32768, hi=32767, dtype="int16")
    )
    q = b.emit(
        ops.requantize(q, 1, 0, name="narrow", lo=-128, hi=127, dtype="int8", rounding="floor")
    )
    m = b.emit(
        ops.avg_pool2d(
            q, name="mean", pool_size=[2, 2], strides=[1, 1], padding=[0, 1, 1, 0],
            rounding="truncate", zero_point=2, count_include_pad=False, ceil_mode=True,
        )
    )  # fmt: skip
    s = b.emit(
        ops.avg_pool2d(
            m, name="total", pool_size=[2, 2], strides=[2, 2], padding=[0] * 4, zero_point=2
        )
    )
    grid = RNG.integers(1, 9, (1, 1, *[int(d) for d in s.ty.shape][2:])).astype(np.int32)
    s = b.emit(ops.requantize(s, grid, grid * 0 + 4, name="places", lo=-128, hi=127, dtype="int8"))
    n = b.emit(
        ops.avg_pool2d(
            s, name="near", pool_size=[1, 2], strides=[1, 2], padding=[0] * 4, rounding="nearest"
        )
    )
    n = b.emit(relax.op.permute_dims(n, [0, 2, 3, 1]))
    size = int(np.prod([int(d) for d in n.ty.shape][1:]))
    flat = b.emit(relax.op.reshape(n, [int(n.ty.shape[0]), size]))
    w3 = RNG.integers(-2, 2, (5, size), dtype=np.int8)
    fc = b.emit(
        ops.dense(flat, w3, RNG.integers(-99, 99, 5), name="fc", zero_point=2, weight_bits=2)
    )
    return b.emit(
        ops.dequantize(
            fc,
            [0.1, 0.2, 0.3, 0.4, 0.5],
            0,
            name="logits",
            qmin=INT32_MIN,
            qmax=INT32_MAX,
            form="divide",
        )
    )
