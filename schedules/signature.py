"""Layer signatures: the readable string that decides a kernel and keys the tuning log."""

from __future__ import annotations

import hashlib

import numpy as np

from tvm_q4.schedules.layer import Layer, Op


def _hw(values: list[int]) -> str:
    return "x".join(map(str, values))


def _anchor(layer: Layer) -> str:
    op, x = layer.ops[0], layer.data
    n, c, h, w = x.shape
    head = f"{layer.kind} n{n} c{c} {h}x{w}"
    a = op.attrs
    if op.kind == "conv2d":
        o, _, kh, kw = op.params["weight"].shape
        head += f" o{o} k{kh}x{kw} s{_hw(a['strides'])} p{','.join(map(str, a['padding']))}"
        head += f" d{_hw(a['dilation'])} g{a['groups']} w{a['weight_bits']}"
    elif op.kind == "dense":
        head += f" o{op.params['weight'].shape[0]} w{a['weight_bits']}"
    elif op.kind in ("max_pool2d", "avg_pool2d"):
        head += f" k{_hw(a['pool_size'])} s{_hw(a['strides'])} p{','.join(map(str, a['padding']))}"
        head += f" d{_hw(a['dilation'])}{' ceil' if a['ceil_mode'] else ''}"
        if op.kind == "avg_pool2d":
            head += f" {a['rounding']}{'' if a['count_include_pad'] else ' nopad'} z{a['zero_point']}"
    elif op.kind == "quantize":
        head += f" {a['form']} z{int(op.params['zero_point'])}"
    return head


def _positional(op: Op) -> str:
    return " pos" if any(np.ndim(p) == 4 for p in op.params.values()) else ""


def _epilogue(index: int, op: Op) -> str:
    a = op.attrs
    refs = ",".join(f"{'x' if kind == 'in' else '%'}{i}" for kind, i in op.refs)
    text = f"%{index}={op.kind}({refs})"
    if op.kind == "dequantize":
        return f"{text} {a['form']} z{int(op.params['zero_point'])}"
    zeros = f"z{a['in_zero_point']}" if op.kind == "requantize" else f"z{a['lhs_zero_point']},{a['rhs_zero_point']}"
    form = ""
    if op.kind == "add":
        units = "".join(side[0] for side in ("lhs", "rhs") if op.unit(side))
        form = f" {a['form']}{' unit-' + units if units else ''}"
    extra = " offset" if "offset" in op.params else ""
    width = "m32" if op.narrow else "m64"
    return f"{text}{form} {zeros}>z{a['zero_point']} {a['rounding']} {width}{extra}{_positional(op)} [{a['lo']},{a['hi']}]"


def signature(layer: Layer) -> str:
    """Everything that decides a layer's kernel, as one line.

    Operator and shape, weight and activation bits and signedness, zero points, the epilogue program
    (multiplier width, rounding, residual form, clamps) and the layouts on both sides.
    """
    parts = [_anchor(layer)]
    parts += [_epilogue(i, op) for i, op in layer.epilogue]
    ins = " ".join(f"{t.tag}:{t.layout.tag()}" for t in layer.inputs)
    outs = " ".join(f"%{i}:{t.tag}:{t.layout.tag()}" for i, t in layer.outputs)
    halo = "".join(f" fill{t.fill}" for _, t in layer.outputs if any(t.layout.halo))
    return " | ".join([*parts, f"{ins} -> {outs}{halo}"])


def kernel_name(layer: Layer, text: str) -> str:
    """Symbol of a layer's kernel: readable, unique by the signature's digest."""
    n, c, h, w = layer.data.shape
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"q4_{layer.kind}_n{n}c{c}h{h}w{w}_{digest}"
