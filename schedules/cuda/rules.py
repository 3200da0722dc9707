"""The order in which CUDA rules are asked; the last ones apply to what the first leave."""

from __future__ import annotations

from tvm_q4.schedules.cuda.concat import Concat
from tvm_q4.schedules.cuda.conv2d import TensorCoreConv2d
from tvm_q4.schedules.cuda.elementwise import Elementwise
from tvm_q4.schedules.cuda.gather import Gather
from tvm_q4.schedules.cuda.pool import Pool2d
from tvm_q4.schedules.cuda.quantize import Quantize
from tvm_q4.schedules.cuda.stem import StemPool
from tvm_q4.schedules.rule import ScheduleRule

RULES: list[ScheduleRule] = [
    StemPool(), TensorCoreConv2d(), Pool2d(), Quantize(), Concat(), Gather(), Elementwise(),
]  # fmt: skip
