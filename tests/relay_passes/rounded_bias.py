"""A stage-1 module with float biases on their accumulators' grids, as numerics.md rounds them."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax

from tvm_q4 import ops
from tvm_q4.relay_passes._rewrite import MainRewriter, op_name

_UNARY = ("relax.nn.relu", "relax.nn.max_pool2d", "relax.reshape")


class _Rounder(MainRewriter):
    def visit(self, binding: relax.VarBinding) -> relax.Expr:
        call = binding.value
        layer = self.definitions.get(call.args[0]) if op_name(call) == "relax.add" else None
        if op_name(layer) not in ("relax.nn.conv2d", "relax.matmul"):
            return self.keep(binding)
        bias = call.args[1]
        while not isinstance(bias, tvm.ir.GenericConst):
            made = self.definitions.get(bias)
            if op_name(made) != "relax.reshape":
                return self.keep(binding)  # a residual add
            bias = made.args[0]
        unit = self._unit(layer.args[0]) * self._unit(layer.args[1])
        rounded = (np.rint(ops.const_array(bias) / unit) * unit).astype(np.float32)
        shape = [1, -1, 1, 1] if op_name(layer) == "relax.nn.conv2d" else [-1]
        value = relax.op.add(self.remap(call.args[0]), relax.const(rounded.reshape(shape)))
        return self.emit(value, binding.var.name)

    def _unit(self, expr: relax.Expr) -> np.ndarray:
        """Scale of a tensor that derives from dequantized integers."""
        made = self.definitions[expr]
        if ops.is_q4(made, "dequantize"):
            return ops.const_array(made.args[1])
        assert op_name(made) in (*_UNARY, "relax.permute_dims"), op_name(made)
        return self._unit(made.args[0])


def with_rounded_biases(mod: tvm.IRModule) -> tvm.IRModule:
    """`mod` with each layer's bias rounded, half to even, to a multiple of ``s_a * s_w[o]``."""
    return _Rounder(mod).run()
