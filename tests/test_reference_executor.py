"""Quantize and dequantize, float islands, fused functions, traces and overrides."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax

from tests.modules import full_range, module
from tvm_q4 import ops
from tvm_q4.errors import InputError, NumericsError, UnsupportedError
from tvm_q4.reference import ReferenceExecutor

F32 = np.float32


def run(x, build):
    return ReferenceExecutor(module(x.shape, str(x.dtype), build)).run(x)


def edge_values(scale: float) -> np.ndarray:
    """Ties of the step, their float32 neighbours, extremes and infinities."""
    ties = (np.arange(-20, 21) * F32(scale) / F32(2)).astype(F32)
    near = np.concatenate([np.nextafter(ties, F32(np.inf)), np.nextafter(ties, F32(-np.inf))])
    rest = np.array([0.0, -0.0, 1e-45, 3e38, -3e38, np.inf, -np.inf], F32)
    return np.concatenate([ties, near, rest]).astype(F32)[None, :]


@pytest.mark.parametrize("form", ["reciprocal", "divide", "mul_div"])
@pytest.mark.parametrize(
    ("lo", "hi", "dtype", "z"), [(0, 15, "uint8", 0), (-8, 7, "int8", -3), (0, 255, "uint8", 128)]
)
def test_quantize_rounds_half_even_in_float32(
    form: str, lo: int, hi: int, dtype: str, z: int
) -> None:
    scale, numerator, denominator = 0.1, 127.0, 2.64
    x = edge_values(scale)
    got = run(
        x,
        lambda _b, v: ops.quantize(
            v, scale, z, name="q", qmin=lo, qmax=hi, dtype=dtype, form=form, numerator=numerator,
            denominator=denominator,
        ),
    )  # fmt: skip
    assert str(got.dtype) == dtype
    for value, found in zip(x[0], got[0], strict=True):
        with np.errstate(over="ignore"):
            scaled = {
                "reciprocal": value * F32(1.0 / scale),
                "divide": value / F32(scale),
                "mul_div": (value * F32(numerator)) / F32(denominator),
            }[form]
        expected = hi if scaled > 1e6 else lo if scaled < -1e6 else round(float(scaled)) + z
        assert int(found) == min(max(expected, lo), hi)


def test_quantize_per_channel() -> None:
    x = np.array([[[[1.0]], [[1.0]]]], F32)
    got = run(
        x,
        lambda _b, v: ops.quantize(v, [0.5, 0.25], [0, 1], name="q", qmin=-8, qmax=7, dtype="int8"),
    )
    assert got.ravel().tolist() == [2, 5]


def test_quantize_refuses_nan_and_useless_scales() -> None:
    x = np.array([[0.0, np.nan]], F32)
    with pytest.raises(InputError, match=r"q4.quantize 'q': the float input holds NaN"):
        run(x, lambda _b, v: ops.quantize(v, 0.1, 0, name="q", qmin=0, qmax=15, dtype="uint8"))
    for scale, form in (
        (0.0, "reciprocal"),
        (1e-46, "divide"),
        (1e-46, "reciprocal"),
        (-1.0, "divide"),
    ):
        with pytest.raises(NumericsError, match="no positive float32 form"):
            run(
                np.zeros((1, 2), F32),
                lambda _b, v, s=scale, f=form: ops.quantize(
                    v, s, 0, name="q", qmin=0, qmax=15, dtype="uint8", form=f
                ),
            )


@pytest.mark.parametrize("form", ["multiply", "divide"])
def test_dequantize_rounds_the_integer_then_the_product(form: str) -> None:
    q = np.array([[2**24 + 1, -(2**31), 2**31 - 1, 77], [0, -1, 3, 5]], np.int32)
    scale, z = np.array([0.1, 3.3, 1e-3, 7.7]), np.array([0, 5, -5, 0])
    got = run(
        q,
        lambda _b, v: ops.dequantize(
            v, scale, z, name="d", qmin=-(2**31), qmax=2**31 - 1, axis=1, form=form
        ),
    )
    for (n, c), value in np.ndenumerate(q):
        steps, s = F32(int(value) - int(z[c])), F32(scale[c])
        assert got[n, c] == (steps * s if form == "multiply" else steps / s)
    assert got.dtype == np.float32


def test_data_movement_on_integers() -> None:
    x = full_range(np.random.default_rng(1), "int8", (2, 3, 5, 4))

    def build(b, v):
        cut = b.emit(relax.op.strided_slice(v, [2, 3], [0, -3], [5, 2**31], [2, 1]))
        grown = b.emit(relax.op.nn.pad(cut, [0, 0, 1, 2, 0, 0, 0, 0], "constant", -7.0))
        turned = b.emit(relax.op.permute_dims(grown, [0, 2, 3, 1]))
        return relax.op.reshape(turned, [2, 54])

    padded = np.pad(x[:, :, ::2, -3:], [(0, 0), (1, 2), (0, 0), (0, 0)], constant_values=-7)
    assert np.array_equal(run(x, build), padded.transpose(0, 2, 3, 1).reshape(2, 54))


def test_float_island_is_torchs() -> None:
    """Float operators in float32: equal up to the order of summation."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(2)
    x = rng.normal(size=(2, 4, 9, 7)).astype(F32)
    w = rng.normal(size=(6, 2, 3, 3)).astype(F32)
    stats = [rng.uniform(0.5, 2, 6).astype(F32) for _ in range(4)]

    def build(b, v):
        y = b.emit(
            relax.op.nn.conv2d(v, relax.const(w), strides=[2, 1], padding=[1, 0, 1, 0], groups=2)
        )
        bn = relax.op.nn.batch_norm(y, *[relax.const(s) for s in stats], axis=1, training=False)
        y = b.emit(relax.TupleGetItem(b.emit(bn), 0))
        y = b.emit(relax.op.nn.relu(y))
        y = b.emit(relax.op.nn.avg_pool2d(y, [2, 2], [2, 2], [1, 0, 0, 1], count_include_pad=True))
        y = b.emit(relax.op.clip(y, 0.1, 6))
        y = b.emit(relax.op.mean(y, [2, 3]))
        return relax.op.nn.softmax(y, axis=1)

    nn = torch.nn.functional
    t = nn.conv2d(torch.tensor(x), torch.tensor(w), stride=(2, 1), padding=(1, 0), groups=2)
    gamma, beta, mean, var = (torch.tensor(s) for s in stats)
    t = torch.relu(nn.batch_norm(t, mean, var, gamma, beta))
    t = nn.avg_pool2d(nn.pad(t, (0, 1, 1, 0)), 2, 2).clamp(0.1, 6).mean((2, 3)).softmax(1)
    np.testing.assert_allclose(run(x, build), t.numpy(), rtol=2e-6)


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (5, 7)])
def test_adaptive_and_max_pool_are_torchs(size: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(3).normal(size=(2, 3, 7, 8)).astype(F32)
    got = run(x, lambda _b, v: relax.op.nn.adaptive_avg_pool2d(v, size))
    expected = torch.nn.functional.adaptive_avg_pool2d(torch.tensor(x), size).numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)
    got = run(x, lambda _b, v: relax.op.nn.max_pool2d(v, [3, 3], [2, 2], [1, 1, 1, 1]))
    assert np.array_equal(got, torch.nn.functional.max_pool2d(torch.tensor(x), 3, 2, 1).numpy())


def test_stage_one_module_runs_in_float() -> None:
    """relu(conv(dq(q(x)), dq(w))) with scales that are powers of two is exact in float32."""
    rng = np.random.default_rng(4)
    w = full_range(rng, "int8", (3, 2, 3, 3))
    x = rng.normal(size=(1, 2, 6, 6)).astype(F32)

    def build(b, v):
        q = b.emit(ops.quantize(v, 0.25, 0, name="input", qmin=-128, qmax=127, dtype="int8"))
        d = b.emit(ops.dequantize(q, 0.25, 0, name="input.dq", qmin=-128, qmax=127))
        k = b.emit(
            ops.dequantize(
                relax.const(w), [0.5] * 3, [0] * 3, name="w.dq", qmin=-128, qmax=127, axis=0
            )
        )
        y = b.emit(relax.op.nn.relu(b.emit(relax.op.nn.conv2d(d, k))))
        return ops.quantize(y, 8.0, 0, name="out", qmin=0, qmax=255, dtype="uint8")

    trace = ReferenceExecutor(module(x.shape, "float32", build)).trace(x)
    assert list(trace) == ["input", "input.dq", "w.dq", "out"]
    integer = module(
        x.shape, "int8",
        lambda b, v: ops.requantize(
            b.emit(ops.conv2d(v, w, [0] * 3, name="c", strides=[1, 1], padding=[0] * 4)), 1, 6,
            name="out", lo=0, hi=255, dtype="uint8", rounding="half_even",
        ),
    )  # fmt: skip
    assert np.array_equal(ReferenceExecutor(integer).run(trace["input"]), trace["out"])


def chain(b, v):
    a = b.emit(ops.requantize(v, 3, 1, name="a", lo=-128, hi=127, dtype="int8"))
    c = b.emit(ops.requantize(a, 1, 0, name="b", lo=0, hi=127, dtype="int8"))
    return ops.add(c, a, 1, 1, 1, 1, name="sum", form="fused", lo=-128, hi=127, dtype="int8")


def test_override_is_read_downstream_and_the_computed_value_is_returned() -> None:
    x = np.array([[10, -10]], np.int8)
    executor = ReferenceExecutor(module(x.shape, "int8", chain))
    plain = executor.trace(x)
    assert {k: v.tolist() for k, v in plain.items()} == {
        "a": [[15, -15]], "b": [[15, 0]], "sum": [[15, -7]],
    }  # fmt: skip
    changed = executor.trace(x, {"b": np.array([[1, 1]], np.int8)})
    assert np.array_equal(changed["b"], plain["b"])
    assert changed["sum"].tolist() == [[8, -7]]
    assert executor.run(x).tolist() == [[15, -7]]
    with pytest.raises(InputError, match="does not make: nothing"):
        executor.trace(x, {"nothing": x})
    with pytest.raises(InputError, match=r"override of 'b' is int32 \[1, 2\], the tensor is int8"):
        executor.trace(x, {"b": np.zeros((1, 2), np.int32)})
    with pytest.raises(InputError, match=r"\[1, 3\]"):
        executor.trace(x, {"b": np.zeros((1, 3), np.int8)})


def fused_module() -> tvm.IRModule:
    """`chain` as a private function with two results, called twice from ``main``."""
    builder = relax.BlockBuilder()
    p, scale = (
        relax.Var("p", relax.TensorType([1, 2], "int8")),
        relax.Var("m", relax.TensorType([1], "int32")),
    )
    with builder.function("fused_chain", [p, scale], attrs={"q4.fused": 1}, private=True):
        with builder.dataflow():
            a = builder.emit(ops.requantize(p, scale, 1, name="a", lo=-128, hi=127, dtype="int8"))
            c = builder.emit(ops.requantize(a, 1, 0, name="b", lo=0, hi=127, dtype="int8"))
            results = [builder.emit_output(v) for v in (a, c)]
        callee = builder.emit_func_output(relax.Tuple(results))
    x = relax.Var("x", relax.TensorType([1, 2], "int8"))
    with builder.function("main", [x]):
        with builder.dataflow():
            both = builder.emit(relax.Call(callee, [x, relax.const(np.array([3], np.int32))]))
            first = builder.emit(relax.TupleGetItem(both, 0))
            second = builder.emit(relax.TupleGetItem(both, 1))
            total = builder.emit(
                ops.add(
                    second,
                    first,
                    1,
                    1,
                    1,
                    1,
                    name="sum",
                    form="fused",
                    lo=-128,
                    hi=127,
                    dtype="int8",
                )
            )
            result = builder.emit_output(total)
        builder.emit_func_output(result)
    return builder.get()


def test_private_functions_tuples_and_constant_arguments() -> None:
    x = np.array([[10, -10]], np.int8)
    executor = ReferenceExecutor(fused_module())
    expected = ReferenceExecutor(module(x.shape, "int8", chain)).trace(x)
    found = executor.trace(x)
    assert set(found) == set(expected)
    assert all(np.array_equal(found[k], expected[k]) for k in expected)
    assert executor.trace(x, {"b": np.array([[1, 1]], np.int8)})["sum"].tolist() == [[8, -7]]


@pytest.mark.parametrize("x", [np.zeros((1, 3), np.int8), np.zeros((1, 2), np.uint8), [[1, 2]]])
def test_input_of_another_shape_or_type_is_refused(x) -> None:
    with pytest.raises(InputError, match=r"input 'x' must be a NumPy array int8 \[1, 2\], found"):
        ReferenceExecutor(module((1, 2), "int8", chain)).run(x)


def test_unknown_operators_are_named() -> None:
    x = np.zeros((1, 2), F32)
    with pytest.raises(
        UnsupportedError, match=r"relax.erf on \(float32 \[1, 2\]\) has no definition"
    ):
        run(x, lambda _b, v: relax.op.erf(v))
    with pytest.raises(UnsupportedError, match=r"relax.nn.relu on int8"):
        run(x.astype(np.int8), lambda _b, v: relax.op.nn.relu(v))
    with pytest.raises(UnsupportedError, match="training-mode"):
        ones = [relax.const(np.ones(2, F32)) for _ in range(4)]
        run(x, lambda b, v: relax.TupleGetItem(b.emit(relax.op.nn.batch_norm(v, *ones, axis=1)), 0))
