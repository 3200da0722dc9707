"""The reference executor's q4 operators against loops over Python integers and exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.modules import full_range, module, naive_conv2d, taps, window_positions
from tvm_q4 import ops
from tvm_q4.errors import InputError, NumericsError, UnsupportedError
from tvm_q4.quant import INT32_MAX, INT32_MIN
from tvm_q4.reference import ReferenceExecutor
from tvm_q4.reference_ops.linear import exact_dtype

FULL = {"lo": INT32_MIN, "hi": INT32_MAX, "dtype": "int32"}


def run(x: NDArray, call) -> NDArray:
    """Result of one operator on x; `call` maps the variable to the call."""
    mod = module(x.shape, str(x.dtype), lambda _builder, var: call(var))
    result = ReferenceExecutor(mod).run(x)
    assert list(result.shape) == [int(d) for d in mod["main"].ret_ty.shape]
    assert str(result.dtype) == str(mod["main"].ret_ty.dtype)
    return result


def exact(value: Fraction, rounding: str) -> int:
    if rounding == "floor":
        return math.floor(value)
    if rounding == "half_up":
        return math.floor(value + Fraction(1, 2))
    if rounding == "half_away":
        return int(math.copysign(1, value)) * math.floor(abs(value) + Fraction(1, 2))
    return round(value)


CONVOLUTIONS = [
    # dtype, x shape, w shape, strides, padding, dilation, groups, zero point
    ("uint8", (2, 3, 7, 5), (4, 3, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, 0),
    ("int8", (1, 4, 9, 6), (6, 2, 3, 2), (2, 1), (0, 2, 1, 3), (1, 1), 2, -128),
    ("uint8", (1, 2, 8, 11), (2, 2, 3, 3), (1, 3), (2, 0, 4, 1), (2, 3), 1, 255),
    ("int8", (2, 3, 5, 5), (3, 1, 5, 1), (1, 2), (3, 0, 3, 0), (1, 1), 3, 127),
    ("uint8", (1, 5, 1, 1), (7, 5, 1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1, 7),
    ("int8", (1, 2, 4, 4), (2, 2, 4, 4), (3, 3), (0, 0, 0, 0), (1, 1), 1, 0),
]


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_conv2d(case) -> None:
    dtype, x_shape, w_shape, strides, padding, dilation, groups, zero_point = case
    rng = np.random.default_rng(7)
    x, w = full_range(rng, dtype, x_shape), full_range(rng, "int8", w_shape)
    bias = rng.integers(-(2**30), 2**30, w_shape[0], dtype=np.int32)
    got = run(
        x,
        lambda v: ops.conv2d(
            v, w, bias, name="c", strides=strides, padding=padding, dilation=dilation,
            groups=groups, zero_point=zero_point,
        ),
    )  # fmt: skip
    expected = naive_conv2d(x, w, bias, strides, padding, dilation, groups, zero_point)
    assert np.array_equal(got, expected)


def test_conv2d_beyond_float32_uses_exact_sums() -> None:
    """512 channels of 3x3 at both extremes: the sum passes 2**24 and is odd."""
    x, w = np.full((1, 512, 3, 3), 255, np.uint8), np.full((2, 512, 3, 3), -128, np.int8)
    w[1] = 127
    x[0, 0, 0, 0], w[:, 0, 0, 0] = 253, 1
    assert exact_dtype(x, w) is np.float64
    got = run(x, lambda v: ops.conv2d(v, w, [0, 0], name="c", strides=[1, 1], padding=[0] * 4))
    assert got.ravel().tolist() == [253 - 128 * 255 * 4607, 253 + 127 * 255 * 4607]


def test_exact_dtype_changes_at_the_bound() -> None:
    w = np.full((1, 1 << 14), 8, np.int8)
    assert exact_dtype(np.array([[127]], np.int8), w) is np.float32
    assert exact_dtype(np.array([[128]], np.uint8), w) is np.float64
    assert exact_dtype(np.array([[0]], np.uint8), w, fill=128) is np.float64


def test_large_convolution_is_cut_into_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    x, w = full_range(rng, "int8", (5, 4, 6, 6)), full_range(rng, "int8", (3, 4, 3, 3))

    def build(v):
        return ops.conv2d(v, w, [1, 2, 3], name="c", strides=[1, 1], padding=[1] * 4)

    whole = run(x, build)
    monkeypatch.setattr("tvm_q4.reference_ops.linear._CHUNK", 2000)
    assert np.array_equal(run(x, build), whole)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_dense(dtype: str) -> None:
    rng = np.random.default_rng(5)
    x, w = full_range(rng, dtype, (3, 37)), full_range(rng, "int8", (11, 37))
    bias = rng.integers(-(2**31) + 2**21, 2**31 - 2**21, 11, dtype=np.int32)
    expected = [
        [
            sum(int(a) * int(b) for a, b in zip(row, k, strict=True)) + int(c)
            for k, c in zip(w, bias, strict=True)
        ]
        for row in x
    ]
    assert run(x, lambda v: ops.dense(v, w, bias, name="fc")).tolist() == expected


@pytest.mark.parametrize(("sign", "edge"), [(1, INT32_MAX), (-1, INT32_MIN)])
def test_accumulator_overflow_is_an_error_with_the_layer(sign: int, edge: int) -> None:
    x, w = np.full((1, 2), 100, np.int8), np.full((1, 2), sign, np.int8)
    fits = run(x, lambda v: ops.dense(v, w, [edge - sign * 200], name="fc"))
    assert fits.tolist() == [[edge]]
    with pytest.raises(NumericsError, match=r"q4.dense 'fc': value -?\d+ overflows int32"):
        run(x, lambda v: ops.dense(v, w, [edge - sign * 199], name="fc"))


@pytest.mark.parametrize("rounding", ["half_up", "half_away", "half_even", "floor"])
@pytest.mark.parametrize(
    ("lo", "hi", "dtype"), [(-128, 127, "int8"), (0, 15, "uint8"), (-32768, 32767, "int16")]
)
def test_requantize(rounding: str, lo: int, hi: int, dtype: str) -> None:
    rng = np.random.default_rng(11)
    x = full_range(rng, "int32", (2, 5, 3, 4))
    x[0, :, 0, 0] = [1, -1, 3, -3, 2]
    m = np.array([2**30, 2**31 - 1, 0, 3, 65535], np.int32)
    e = np.array([62, 48, 1, 0, 31], np.int32)
    offset = np.array([0, 1, 7, -2, 0], np.int32)
    z, z_in = 3, -5
    if rounding == "half_even":
        m[0], e[0] = 1, 1
    got = run(
        x,
        lambda v: ops.requantize(
            v, m, e, name="r", lo=lo, hi=hi, dtype=dtype, zero_point=z, in_zero_point=z_in,
            rounding=rounding, offset=offset,
        ),
    )  # fmt: skip
    for index in np.ndindex(*x.shape):
        c = index[1]
        value = Fraction((int(x[index]) - z_in) * int(m[c]), 2 ** int(e[c]))
        expected = min(max(z + int(offset[c]) + exact(value, rounding), lo), hi)
        assert int(got[index]) == expected


def test_requantize_with_one_ratio_and_with_one_for_each_position() -> None:
    x = np.arange(-12, 12, dtype=np.int32).reshape(1, 2, 3, 4)
    one = run(x, lambda v: ops.requantize(v, 5, 1, name="r", lo=-128, hi=127, dtype="int8"))
    assert one.ravel().tolist() == [(5 * v + 1) >> 1 for v in range(-12, 12)]
    m = np.arange(1, 13, dtype=np.int32).reshape(1, 1, 3, 4)
    e = np.ones((1, 1, 1, 1), np.int32)
    each = run(x, lambda v: ops.requantize(v, m, e, name="r", lo=-128, hi=127, dtype="int8"))
    expected = [(v * (i % 12 + 1) + 1) >> 1 for i, v in enumerate(range(-12, 12))]
    assert each.ravel().tolist() == expected


def test_requantize_to_int32_never_wraps_nor_clamps() -> None:
    x = np.array([[INT32_MAX, INT32_MIN]], np.int32)
    assert np.array_equal(run(x, lambda v: ops.requantize(v, 1, 0, name="r", **FULL)), x)
    with pytest.raises(NumericsError, match=r"'r'.*overflows int32"):
        run(x, lambda v: ops.requantize(v, 2, 0, name="r", **FULL))


def test_shift_and_range_outside_their_types_are_errors() -> None:
    x = np.zeros((1, 2), np.int32)
    with pytest.raises(NumericsError, match="shift 63"):
        run(x, lambda v: ops.requantize(v, 1, 63, name="r", lo=0, hi=1, dtype="int8"))
    with pytest.raises(NumericsError, match=r"0\.\.255 does not fit its type int8"):
        run(x, lambda v: ops.requantize(v, 1, 0, name="r", lo=0, hi=255, dtype="int8"))


@pytest.mark.parametrize("form", ["fused", "two_sided", "accumulator"])
@pytest.mark.parametrize("rounding", ["half_up", "half_away", "half_even", "floor"])
def test_add(form: str, rounding: str) -> None:
    rng = np.random.default_rng(13)
    lhs = rng.integers(-(2**24), 2**24, (2, 3, 4, 5), dtype=np.int32)
    rhs = full_range(rng, "int8", lhs.shape)
    m1, e1 = np.array([2**30, 2**31 - 1, 9], np.int32), np.array([40, 41, 4], np.int32)
    m2, e2 = np.array([2**30, 0, 77], np.int32), np.array([30, 41, 4], np.int32)
    zl, zr, z, lo, hi, dtype = 17, -9, 2, -128, 127, "int8"
    if form == "fused":
        e2 = e1
    if form == "accumulator":
        m1, e1 = np.array([1], np.int32), np.array([0], np.int32)
        lo, hi, dtype = INT32_MIN, INT32_MAX, "int32"
    mod = module(
        rhs.shape, "int8",
        lambda b, v: ops.add(
            ops_const(lhs), v, m1, e1, m2, e2, name="a", form=form, lo=lo, hi=hi, dtype=dtype,
            lhs_zero_point=zl, rhs_zero_point=zr, zero_point=z, rounding=rounding,
        ),
    )  # fmt: skip
    got = ReferenceExecutor(mod).run(rhs)
    for index in np.ndindex(*lhs.shape):
        c1, c2 = (0 if m1.size == 1 else index[1]), index[1]
        left = Fraction((int(lhs[index]) - zl) * int(m1[c1]), 2 ** int(e1[c1]))
        right = Fraction((int(rhs[index]) - zr) * int(m2[c2]), 2 ** int(e2[c2]))
        if form == "fused":
            total = exact(left + right, rounding)
        else:
            total = exact(left, rounding) + exact(right, rounding)
        assert int(got[index]) == min(max(z + total, lo), hi)


def ops_const(value: NDArray):
    from tvm import relax

    return relax.const(value, str(value.dtype))


def test_add_refuses_what_would_overflow() -> None:
    x = np.array([[100, -100]], np.int32)

    def build(form: str, m1: int, e1: int, m2: int, e2: int):
        return lambda v: ops.add(v, v, m1, e1, m2, e2, name="a", form=form, **FULL)

    big = 2**31 - 1
    with pytest.raises(NumericsError, match=r"'a'.*overflows int32"):
        run(x, build("two_sided", big, 0, 1, 0))
    with pytest.raises(NumericsError, match="one shift for both sides"):
        run(x, build("fused", 1, 3, 1, 4))
    with pytest.raises(NumericsError, match="1 or more"):
        run(x, build("fused", 1, 0, 1, 0))
    with pytest.raises(NumericsError, match="takes its left side as it is"):
        run(x, build("accumulator", 2, 0, 1, 0))
    wide = np.array([[INT32_MIN, INT32_MAX]], np.int32)
    with pytest.raises(NumericsError, match="may overflow int64"):
        run(wide, build("fused", big, 62, big, 62))
    with pytest.raises(NumericsError, match=r"'a'.*overflows int32"):
        run(wide, build("accumulator", 1, 0, 1, 0))


POOLS = [
    # size, kernel, strides, padding, dilation
    ((7, 5), (3, 3), (2, 2), (1, 1, 1, 1), (1, 1)),
    ((8, 9), (2, 3), (2, 2), (0, 1, 1, 0), (1, 1)),
    ((6, 10), (2, 2), (3, 3), (1, 0, 1, 0), (2, 3)),
    ((5, 5), (5, 5), (1, 1), (0, 0, 0, 0), (1, 1)),
    ((6, 7), (2, 2), (2, 3), (0, 0, 0, 0), (1, 1)),
    ((3, 4), (1, 1), (2, 2), (0, 0, 0, 0), (1, 1)),
]


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32"])
@pytest.mark.parametrize("case", POOLS)
def test_max_pool2d(case, dtype: str, ceil: bool) -> None:
    size, kernel, strides, padding, dilation = case
    x = full_range(np.random.default_rng(17), dtype, (2, 3, *size))
    x[0, 0] = np.iinfo(dtype).min
    got = run(
        x,
        lambda v: ops.max_pool2d(
            v, name="p", pool_size=kernel, strides=strides, padding=padding, dilation=dilation,
            ceil_mode=ceil,
        ),
    )  # fmt: skip
    assert got.shape[2:] == window_positions(size, kernel, strides, padding, dilation, ceil)
    for n, c, r, k in np.ndindex(*got.shape):
        values = [
            int(x[n, c, i, j])
            for _, _, i, j in taps(size, kernel, strides, padding, dilation, at=(r, k))
            if 0 <= i < size[0] and 0 <= j < size[1]
        ]
        assert int(got[n, c, r, k]) == max(values)


def test_max_pool_of_padding_alone_is_an_error() -> None:
    x = np.zeros((1, 1, 4, 4), np.int8)
    with pytest.raises(UnsupportedError, match="'p': a window holds padding alone"):
        run(
            x,
            lambda v: ops.max_pool2d(
                v, name="p", pool_size=[1, 1], strides=[1, 1], padding=[1, 0, 0, 0]
            ),
        )


@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("rounding", ["sum", "truncate", "nearest"])
@pytest.mark.parametrize("case", [p for p in POOLS if p[4] == (1, 1)])
def test_avg_pool2d(case, rounding: str, ceil: bool, include: bool) -> None:
    size, kernel, strides, padding, _ = case
    for dtype, z in (("int8", -128), ("uint8", 0), ("int8", 5)):
        x = full_range(np.random.default_rng(19), dtype, (2, 2, *size))
        got = run(
            x,
            lambda v, z=z: ops.avg_pool2d(
                v, name="p", pool_size=kernel, strides=strides, padding=padding, rounding=rounding,
                zero_point=z, ceil_mode=ceil, count_include_pad=include,
            ),
        )  # fmt: skip
        assert got.shape[2:] == window_positions(size, kernel, strides, padding, (1, 1), ceil)
        for n, c, r, k in np.ndindex(*got.shape):
            expected = _mean(x[n, c], kernel, strides, padding, (r, k), rounding, z, include)
            assert int(got[n, c, r, k]) == expected


def _mean(plane, kernel, strides, padding, at, rounding: str, z: int, include: bool) -> int:
    total = count = 0
    h, w = plane.shape
    for _, _, i, j in taps((h, w), kernel, strides, padding, (1, 1), at):
        inside = 0 <= i < h and 0 <= j < w
        padded = -padding[0] <= i < h + padding[2] and -padding[1] <= j < w + padding[3]
        total += int(plane[i, j]) - z if inside else 0
        count += inside or (include and padded)
    if rounding == "sum":
        return total
    if rounding == "truncate":
        return z + math.trunc(Fraction(total, count))
    return z + exact(Fraction(total, count), "half_away")


def test_nearest_average_follows_its_formula_on_sums_that_are_not_negative() -> None:
    x = np.arange(36, dtype=np.uint8).reshape(1, 1, 6, 6)
    got = run(
        x,
        lambda v: ops.avg_pool2d(
            v, name="p", pool_size=[2, 3], strides=[1, 1], padding=[0] * 4, rounding="nearest"
        ),
    )
    sums = [[int(x[0, 0, r : r + 2, c : c + 3].sum()) for c in range(4)] for r in range(5)]
    assert got[0, 0].tolist() == [[(s + 3) // 6 for s in row] for row in sums]


def test_output_size_in_ceil_mode_is_torchs() -> None:
    torch = pytest.importorskip("torch")
    for size, kernel, stride, pad in product(range(3, 10), (2, 3), (1, 2, 3), (0, 1)):
        x = torch.zeros(1, 1, size, size)
        expected = torch.nn.functional.max_pool2d(x, kernel, stride, pad, ceil_mode=True).shape[2:]
        found = ops.pool_output(
            (size, size), (kernel,) * 2, (stride,) * 2, (pad,) * 4, (1, 1), True
        )
        assert list(found) == list(expected)


def test_concat() -> None:
    rng = np.random.default_rng(23)
    x, other = full_range(rng, "int8", (2, 3, 4, 5)), full_range(rng, "int8", (2, 2, 4, 5))
    got = run(x, lambda v: ops.concat([v, ops_const(other), v], name="j"))
    assert np.array_equal(got, np.concatenate([x, other, x], axis=1))


def test_shapes_that_do_not_fit_are_one_line_errors() -> None:
    x = np.zeros((1, 3, 5, 5), np.int8)
    w = np.zeros((4, 2, 3, 3), np.int8)
    with pytest.raises(InputError, match=r"q4.conv2d c: channels do not fit 1 group") as found:
        run(x, lambda v: ops.conv2d(v, w, [0] * 4, name="c", strides=[1, 1], padding=[0] * 4))
    assert "\n" not in str(found.value)
    with pytest.raises(InputError, match="does not fit the input of"):
        run(
            x,
            lambda v: ops.max_pool2d(
                v, name="p", pool_size=[7, 7], strides=[1, 1], padding=[0] * 4
            ),
        )
