"""Names and source lines of exported nodes: what a user wrote, not what torch calls its nodes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tvm_q4.frontend.common.writer import TensorNames

LAYER_OPS = {
    "aten.conv2d.default": (1, 2),
    "aten.conv2d.padding": (1, 2),
    "aten.convolution.default": (1, 2),
    "aten.linear.default": (1, 2),
    "aten.addmm.default": (2, 0),
    "aten.mm.default": (1, None),
    "aten.matmul.default": (1, None),
}
"""Operators of a layer with a name of its own: positions of the weight and of the bias."""

_PREPARES = re.compile(
    r"(quantize_per_|dequantize_per_|aten\.(permute|t|transpose|detach|alias|clone)\.)"
)
_FRAME = re.compile(r'File "([^"]+)", line (\d+), in [^\n]*\n?[ \t]*([^\n]*)')
_TORCH = re.compile(r"[\\/]torch[\\/]")


def span_name(expr: Any) -> str | None:
    """Name that the frontend gave to a float operator's call, or None."""
    return None if expr.span is None else str(expr.span.source_name.name)


def op_name(node: Any) -> str:
    """Overload name of a call (``aten.conv2d.default``), or the kind of another node."""
    if node.op != "call_function":
        return str(node.op)
    name = str(node.target)
    return name if "." in name else getattr(node.target, "__name__", name)


def source_line(node: Any) -> str:
    """``file:line `code` `` of the innermost recorded frame outside torch, or an empty string."""
    frames = _FRAME.findall(str(node.meta.get("stack_trace") or ""))
    if not frames:
        return ""
    own = [f for f in frames if not _TORCH.search(f[0])]
    path, line, code = (own or frames)[-1]
    return f"{path}:{line} `{code.strip()}`"


def describe(node: Any) -> str:
    """One line that finds the node: its name, its operator and the source line."""
    where = source_line(node)
    return f"node '{node.name}' ({op_name(node)})" + (f" at {where}" if where else "")


def _clean(path: str) -> str:
    """Dotted module path of torch's forms ``L['self'].layer1[0]`` and ``layer1.0``."""
    path = re.sub(r"\[['\"]?([\w.]+)['\"]?\]", r".\1", path)
    parts = [p for p in path.split(".") if p and p not in ("L", "self", "L__self__")]
    return ".".join(parts)


def module_path(node: Any) -> tuple[str, bool]:
    """Path of the innermost module that made `node`, and whether it is one of torch's layers."""
    stack = node.meta.get("nn_module_stack") or {}
    entries = [e for e in stack.values() if isinstance(e, tuple) and len(e) == 2]
    if not entries:
        return "", False
    path, kind = entries[-1]
    name = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    leaf = name.startswith(("torch.nn.modules.", "torch.ao.nn.")) and ".container." not in name
    path = _clean(str(path))
    return path, leaf and bool(path)


def _origin(arg: Any, roles: dict[Any, str], role: str) -> Any:
    """Walk from a layer's weight or bias back to the placeholder, marking what lies between."""
    while hasattr(arg, "op"):
        if arg.op != "call_function" or not _PREPARES.search(op_name(arg)):
            return arg
        roles.setdefault(arg, role)
        arg = arg.args[0]
    return None


def _layer_name(node: Any, parameters: Mapping[str, str]) -> str:
    path, leaf = module_path(node)
    if leaf:
        return path
    for at in LAYER_OPS[op_name(node)]:
        if at is None or at >= len(node.args):
            continue
        origin = _origin(node.args[at], {}, "")
        owner = parameters.get(getattr(origin, "name", ""), "").rpartition(".")[0]
        if owner:
            return owner
    return path or str(node.name)


class NameScope(TensorNames):
    """Hands out unique names: layers first, so that nothing else takes a layer's name.

    Parameters
    ----------
    graph : torch.fx.Graph
    parameters : mapping of str to str
        Qualified name of the parameter or buffer behind each placeholder.
    """

    def __init__(self, graph: Any, parameters: Mapping[str, str]) -> None:
        super().__init__()
        self._layers: dict[Any, str] = {}
        self.roles: dict[Any, str] = {}
        for node in graph.nodes:
            if op_name(node) in LAYER_OPS:
                self._add_layer(node, parameters)

    def _add_layer(self, node: Any, parameters: Mapping[str, str]) -> None:
        name = self._layers[node] = self.layer(_layer_name(node, parameters))
        for at, part in zip(LAYER_OPS[op_name(node)], ("weight", "bias"), strict=True):
            if at is not None and at < len(node.args):
                _origin(node.args[at], self.roles, f"{name}.{part}")

    def label(self, node: Any) -> str:
        """Unique name of the tensor that `node` makes."""
        if node in self._layers:
            return self._layers[node]
        path, leaf = module_path(node)
        short = op_name(node).split(".")[1].rstrip("_") if "." in op_name(node) else str(node.name)
        stem = path if leaf else f"{path}.{short}".lstrip(".")
        return self.unique(stem)
