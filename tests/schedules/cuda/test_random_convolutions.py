"""Random small convolutions in the emulator, with tiles drawn from their search space."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tvm.target import Target

from tests.schedules.builders import S4, S8, U4, U8
from tests.schedules.cuda.builders import check
from tests.schedules.cuda.convolutions import Conv
from tvm_q4.quant import IntRange
from tvm_q4.schedules.cuda.conv2d import TensorCoreConv2d
from tvm_q4.schedules.cuda.rules import RULES
from tvm_q4.schedules.layer import Layer
from tvm_q4.schedules.rule import Params

_RESULTS = [U4, S4, U8, S8, IntRange(0, 100), IntRange(-32768, 32767), None]


class Drawn(TensorCoreConv2d):
    """The rule with one of its small tiles, by position in the search space."""

    def __init__(self, position: int) -> None:
        self._position = position

    def space(self, layer: Layer, target: Target) -> list[Params]:
        every = super().space(layer, target)
        small = [p for p in every if int(p["bm"]) * int(p["bn"]) <= 64 * 64] or every
        return [small[self._position % len(small)]]


@st.composite
def convolutions(draw: st.DrawFn) -> Conv:
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    dilation = draw(st.sampled_from([(1, 1), (1, 1), (2, 1)]))
    padding = draw(st.tuples(*[st.integers(0, 2)] * 4))
    least = [
        max(1, d * (k - 1) + 1 - padding[i] - padding[i + 2])
        for i, (k, d) in enumerate(zip(kernel, dilation, strict=True))
    ]
    groups = draw(st.sampled_from([1, 1, 1, 2, 4]))
    per_group = st.integers(1, 70 // groups)
    channels, out = draw(per_group) * groups, draw(per_group) * groups
    height, width = (draw(st.integers(n, n + 5)) for n in least)
    data, result = draw(st.sampled_from([U4, S4, U8, S8])), draw(st.sampled_from(_RESULTS))
    return Conv(
        (draw(st.integers(1, 3)), channels, height, width), out, kernel,
        draw(st.tuples(st.integers(1, 3), st.integers(1, 2))), padding, dilation, groups,
        draw(st.sampled_from([4, 8])), data, draw(st.integers(data.lo, data.hi)), result,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("arch", [75, 80, 90])
@given(convolutions(), st.integers(0, 10**6))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_convolution(arch: int, conv: Conv, position: int) -> None:
    check(conv.module(), conv.input(), arch=arch, rules=[Drawn(position), *RULES])
