"""Quantize and dequantize nodes of exported programs: which are kept, what integers they give."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.frontend.graphs import (
    Lambda,
    Q,
    constant_of,
    export,
    fake_quantized,
    q4_calls,
    torch_tensors,
)
from tvm_q4.frontend.torch_export import import_exported
from tvm_q4.reference import ReferenceExecutor

torch.set_num_threads(1)


def test_equal_quantizers_of_one_tensor_become_one() -> None:
    def twice(_: nn.Module, x: torch.Tensor) -> torch.Tensor:
        a, b = fake_quantized(x, 0.1, 0, 15), fake_quantized(x, 0.1, 0, 15)
        return a + b + fake_quantized(x, 0.2, 0, 15)

    calls = q4_calls(import_exported(export(Lambda(twice), 1, 2, 3, 3)))
    assert list(calls) == ["input", "input.dq", "input.q2", "input.q2.dq"]


def test_float_weight_behind_a_quantizer_stays_a_quantize_of_a_constant() -> None:
    def conv(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        scales, zeros = torch.tensor([0.5, 0.25]), torch.tensor([0, 0])
        q = Q.quantize_per_channel(m.conv.weight, scales, zeros, 0, -8, 7, torch.int8)
        return F.conv2d(x, Q.dequantize_per_channel(q, scales, zeros, 0, -8, 7, torch.int8))

    mod = import_exported(export(Lambda(conv, conv=nn.Conv2d(3, 2, 3)), 1, 3, 5, 5))
    calls = q4_calls(mod)
    assert list(calls) == ["conv.weight", "conv.weight.dq"]
    assert (
        calls["conv.weight"]["qmin"],
        calls["conv.weight"]["axis"],
        calls["conv.weight"]["dtype"],
    ) == (-8, 0, "int8")
    np.testing.assert_array_equal(constant_of(mod, "conv.weight", 1), [0.5, 0.25])


def test_tensor_overloads_read_their_scales_from_constants() -> None:
    def net(_: nn.Module, x: torch.Tensor) -> torch.Tensor:
        scale, zero = torch.tensor(0.125), torch.tensor(-3)
        q = Q.quantize_per_tensor.tensor(x, scale, zero, -128, 127, torch.int8)
        return Q.dequantize_per_tensor.tensor(q, scale, zero, -128, 127, torch.int8)

    mod = import_exported(export(Lambda(net), 1, 2, 3, 3))
    assert constant_of(mod, "input", 1) == 0.125 and constant_of(mod, "input", 2) == -3


@pytest.mark.parametrize(
    ("lo", "hi", "zero"), [(0, 15, 0), (-8, 7, -8), (-7, 7, 2), (0, 255, 255), (-128, 127, 5)]
)
def test_quantized_integers_equal_torchs_over_the_whole_range(lo: int, hi: int, zero: int) -> None:
    program = export(Lambda(lambda m, x: fake_quantized(x, 0.0371, lo, hi, zero)), 1, 1, 64, 64)
    x = torch.linspace(-15, 15, 64 * 64).reshape(1, 1, 64, 64)
    want, tensors = torch_tensors(program, x)
    mod = import_exported(program)
    np.testing.assert_array_equal(ReferenceExecutor(mod).trace(x.numpy())["input"], tensors[0])
    np.testing.assert_array_equal(ReferenceExecutor(mod).run(x.numpy()), want)
