"""CPU schedule rules and dot-product forms.

`RULES` is the order in which rules are asked.
"""

from tvm_q4.schedules.cpu.concat import Concat
from tvm_q4.schedules.cpu.conv2d import DirectConv2d
from tvm_q4.schedules.cpu.elementwise import Elementwise
from tvm_q4.schedules.cpu.gather import Gather
from tvm_q4.schedules.cpu.pool import Pool2d
from tvm_q4.schedules.cpu.quantize import Quantize

RULES = [DirectConv2d(), Pool2d(), Quantize(), Concat(), Gather(), Elementwise()]

__all__ = ["RULES"]
