"""Quantization of float32 NCHW tensors into packed NHWC on CUDA.

Consecutive threads take consecutive pixels of a row, because that is how the floats lie in memory:
an image of three channels is read and written in whole lines, a word a pixel.
"""

from __future__ import annotations

from typing import Any

from tvm_q4._compat import T, tirx
from tvm_q4.schedules.cuda.kernel import GROUP, CudaKernel, Row, plain_index
from tvm_q4.schedules.cuda.single_setting import SingleSetting, launch


class Quantize(SingleSetting):
    """Float32 NCHW to packed NHWC: scale, round half to even, add the zero point, clamp."""

    name = "cuda.quantize"
    kinds = ("quantize",)

    def emit(self, kernel: CudaKernel) -> None:
        n, channels, h, w = kernel.layer.shape
        width = min(GROUP, kernel.layer.outputs[0][1].layout.channels)
        groups = -(-channels // width)

        def work(thread: Any) -> None:
            place = (thread // (groups * h * w), thread // w % h, thread % w)
            c0 = T.Bind(thread // (h * w) % groups * width)
            values = _values(kernel, place, c0, min(width, channels))
            kernel.finish([Row(place, values + values[-1:] * (width - len(values)))], c0, width)

        launch(kernel, n * groups * h * w, work)


def _values(kernel: CudaKernel, place: tuple[Any, Any, Any], c0: Any, count: int) -> list[Any]:
    """`count` quantized channels as int32; a padded channel repeats the last one."""
    flat, data = kernel.input(0), kernel.layer.data
    last = data.shape[1] - 1
    scales = [s for q in range(0, count, 4) for s in kernel.quad(0, "scale", c0 + q)]
    channels = [tirx.min(c0 + e, last) for e in range(count)]
    elements = [T.Bind(flat[plain_index(data, place, channel)]) for channel in channels]
    return [_quantized(kernel, x, s) for x, s in zip(elements, scales, strict=False)]


def _quantized(kernel: CudaKernel, x: Any, scale: Any) -> Any:
    """``clamp(rint(x / s) + z, qmin, qmax)`` as int32, in the form that the operator states.

    The clamp comes before the conversion, so that infinities and large values are limited too.
    """
    op = kernel.layer.ops[0]
    a, zero = op.attrs, int(op.params["zero_point"].ravel()[0])
    if a["form"] == "mul_div":
        numerator, denominator = (tirx.const(a[n], "float32") for n in ("numerator", "denominator"))
        scaled = tirx.div(x * numerator, denominator)
    else:
        scaled = tirx.div(x, scale) if a["form"] == "divide" else x * scale
    low, high = (tirx.const(float(a[n] - zero), "float32") for n in ("qmin", "qmax"))
    limited = tirx.min(tirx.max(tirx.nearbyint(scaled), low), high)
    return T.Bind(tirx.Cast("int32", limited) + tirx.const(zero, "int32"))
