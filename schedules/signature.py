"""Layer signatures: the readable string that decides a kernel and keys the tuning log."""

from __future__ import annotations

import hashlib
from typing import Any

from tvm_q4.schedules.layer import Layer, Op


def _hw(values: list[int]) -> str:
    return "x".join(map(str, values))


def _anchor(layer: Layer) -> str:
    op, x = layer.ops[0], layer.data
    n, c, h, w = x.shape
    head = f"{layer.kind} n{n} c{c} {h}x{w}{_reduced_range(layer)}"
    a = op.attrs
    if op.kind == "conv2d":
        o, _, kh, kw = op.params["weight"].shape
        head += f" o{o} k{kh}x{kw} s{_hw(a['strides'])} p{','.join(map(str, a['padding']))}"
        head += f" d{_hw(a['dilation'])} g{a['groups']} w{a['weight_bits']}"
    elif op.kind == "dense":
        head += f" o{op.params['weight'].shape[0]} w{a['weight_bits']}"
    elif op.kind in ("max_pool2d", "avg_pool2d"):
        head += f" {_pool(a)}"
        if op.kind == "avg_pool2d":
            head += (
                f" {a['rounding']}{'' if a['count_include_pad'] else ' nopad'} z{a['zero_point']}"
            )
    elif op.kind == "quantize":
        head += f" {a['form']} z{op.params['zero_point'].item()} [{a['qmin']},{a['qmax']}]"
        if a["form"] == "mul_div":
            head += f" {a['numerator']!r}/{a['denominator']!r}"
    elif op.kind == "concat":
        head += " of " + "+".join(f"x{i}:c{layer.inputs[i].shape[1]}" for _, i in op.refs)
    elif op.kind == "gather":
        facts = [f"{key}{a[key]}" for key in sorted(a) if key != "mode"]
        head += f" {a['mode']} to {_hw(list(layer.shape))} {' '.join(facts)}".rstrip()
    return head


def _pool(a: dict[str, Any]) -> str:
    window = f"k{_hw(a['pool_size'])} s{_hw(a['strides'])} p{','.join(map(str, a['padding']))}"
    return f"{window} d{_hw(a['dilation'])}{' ceil' if a['ceil_mode'] else ''}"


def _reduced_range(layer: Layer) -> str:
    """Largest value of unsigned data that leave their bits unused: it decides the dot product."""
    data = layer.data.range
    if layer.kind not in ("conv2d", "dense") or data is None or data.signed:
        return ""
    return "" if data.hi == (1 << data.bits) - 1 else f" max{data.hi}"


def _positional(op: Op) -> str:
    """Parameters that differ by position, and those that differ by channel too."""
    names = [f"{n}{'*c' if p.shape[1] > 1 else ''}" for n, p in op.params.items() if p.ndim == 4]
    return f" pos-{','.join(names)}" if names else ""


def _epilogue(index: int, op: Op) -> str:
    a = op.attrs
    refs = ",".join(f"{'x' if kind == 'in' else '%'}{i}" for kind, i in op.refs)
    text = f"%{index}={op.kind}({refs})"
    if op.kind == "max_pool2d":
        return f"{text} {_pool(a)}"
    if op.kind == "dequantize":
        return f"{text} {a['form']} z{op.params['zero_point'].item()}"
    form, zeros = "", f"z{a.get('in_zero_point')}"
    if op.kind == "add":
        units = "".join(side[0] for side in ("lhs", "rhs") if op.unit(side))
        form = f" {a['form']}{' unit-' + units if units else ''}"
        zeros = f"z{a['lhs_zero_point']},{a['rhs_zero_point']}"
    extra = " offset" if "offset" in op.params else ""
    width = "m32" if op.narrow else "m64"
    if op.high is not None:
        width = f"high{','.join(map(str, op.high))}"
    how = f"{a['rounding']} {width}{extra}{_positional(op)}"
    return f"{text}{form} {zeros}>z{a['zero_point']} {how} [{a['lo']},{a['hi']}]"


def signature(layer: Layer) -> str:
    """Everything that decides a layer's kernel, as one line.

    Operator and shape, weight and activation bits and signedness, zero points, the epilogue program
    (multiplier width, rounding, residual form, clamps) and the layouts on both sides.
    """
    parts = [_anchor(layer)]
    parts += [_epilogue(i, op) for i, op in layer.epilogue]
    ins = " ".join(f"{t.tag}:{t.layout_tag}" for t in layer.inputs)
    outs = " ".join(f"%{i}:{t.tag}:{t.layout_tag}" for i, t in layer.outputs)
    halo = "".join(f" fill{t.fill}" for _, t in layer.outputs if any(t.layout.halo))
    return " | ".join([*parts, f"{ins} -> {outs}{halo}"])


def kernel_name(layer: Layer, text: str) -> str:
    """Symbol of a layer's kernel: readable, unique by the signature's digest."""
    n, c, h, w = layer.data.shape
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"q4_{layer.kind}_n{n}c{c}h{h}w{w}_{digest}"
