"""IntegerOutput: accumulators and scales in place of float logits."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax

from tests.modules import full_range, module
from tvm_q4 import ops
from tvm_q4.errors import UnsupportedError
from tvm_q4.meta import model_meta, with_meta
from tvm_q4.quant import INT32_MAX, INT32_MIN
from tvm_q4.reference import ReferenceExecutor
from tvm_q4.relay_passes.integer_output import IntegerOutput

RNG = np.random.default_rng(6)
W, BIAS, SCALE = RNG.integers(-128, 128, (3, 5)), RNG.integers(-99, 99, 3), [0.5, 0.25, 2.0]


def _logits(form: str = "multiply", zero: int = 0) -> tvm.IRModule:
    def emit(b, x):
        acc = b.emit(ops.dense(x, W, BIAS, name="fc"))
        how = {"name": "logits", "qmin": INT32_MIN, "qmax": INT32_MAX, "form": form}
        return b.emit(ops.dequantize(acc, SCALE, zero, **how))

    return module((2, 5), "int8", emit)


def _accumulators() -> tvm.IRModule:
    return module((2, 5), "int8", lambda b, x: b.emit(ops.dense(x, W, BIAS, name="fc")))


@pytest.mark.parametrize(("form", "zero"), [("multiply", 0), ("divide", 7)])
def test_expected_module(form: str, zero: int) -> None:
    after = IntegerOutput(_logits(form, zero))
    tvm.ir.assert_structural_equal(
        after["main"].body, _accumulators()["main"].body, map_free_vars=True
    )
    assert model_meta(after) == {
        "output_scale": SCALE, "output_scale_form": form, "output_zero_point": [zero],
    }  # fmt: skip


def test_values_are_those_of_the_accumulators() -> None:
    x = full_range(RNG, "int8", (2, 5))
    logits = ReferenceExecutor(_logits()).run(x)
    integers = ReferenceExecutor(IntegerOutput(_logits())).run(x)
    assert integers.dtype == np.int32
    np.testing.assert_array_equal(integers.astype(np.float32) * np.float32(SCALE), logits)


def test_facts_are_kept() -> None:
    assert model_meta(IntegerOutput(with_meta(_logits(), name="net")))["name"] == "net"


def test_integer_results_are_unchanged() -> None:
    mod = _accumulators()
    assert IntegerOutput(mod).same_as(mod)


def test_aliases_in_the_middle_are_kept() -> None:
    x = relax.Var("x", relax.TensorType([2, 5], "int8"))
    acc = relax.DataflowVar("acc", relax.TensorType([2, 3], "int32"))
    alias = relax.DataflowVar("alias", acc.ty)
    out = relax.Var("out", relax.TensorType([2, 3], "float32"))
    how = {"name": "logits", "qmin": INT32_MIN, "qmax": INT32_MAX}
    bindings = [
        relax.VarBinding(acc, relax.BlockBuilder().normalize(ops.dense(x, W, BIAS, name="fc"))),
        relax.VarBinding(alias, acc),
        relax.VarBinding(
            out, relax.BlockBuilder().normalize(ops.dequantize(alias, SCALE, 0, **how))
        ),
    ]
    body = relax.SeqExpr([relax.DataflowBlock(bindings)], out)
    mod = tvm.IRModule({"main": relax.Function([x], body, out.ty)})
    data = full_range(RNG, "int8", (2, 5))
    expected = ReferenceExecutor(_accumulators()).run(data)
    np.testing.assert_array_equal(ReferenceExecutor(IntegerOutput(mod)).run(data), expected)


def test_float_last_operator_is_an_error() -> None:
    mod = module((2, 5), "float32", lambda b, x: b.emit(relax.op.nn.softmax(x)))
    with pytest.raises(UnsupportedError, match=r"last operator is the float relax\.nn\.softmax"):
        IntegerOutput(mod)


def test_several_results_are_an_error() -> None:
    x = relax.Var("x", relax.TensorType([2, 5], "float32"))
    b = relax.BlockBuilder()
    with b.function("main", [x]):
        with b.dataflow():
            outs = [b.emit_output(relax.op.nn.relu(x)), b.emit_output(relax.op.negative(x))]
        b.emit_func_output(relax.Tuple(outs))
    with pytest.raises(UnsupportedError, match="returns several tensors"):
        IntegerOutput(b.get())
