"""The quantizer of post-training quantization: it observes, lets floats pass, or quantizes."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from tvm_q4.quantize.fake_quantize import LearnedStepFakeQuantize


class SwitchableQuantizer(LearnedStepFakeQuantize):
    """`LearnedStepFakeQuantize` that can be switched off and whose rounding can be replaced.

    Attributes
    ----------
    enabled : bool
        Where False, tensors pass unchanged and unobserved.
    rounding : callable or None
        Takes the place of rounding to nearest: from the weight to its quantized value.
    """

    def __init__(self, observer: Callable[..., Any], **kwargs: Any) -> None:
        super().__init__(observer, **kwargs)
        self._make_observer = functools.partial(observer, **kwargs)
        self.enabled = True
        self.rounding: Callable[[Tensor], Tensor] | None = None

    def restart(self) -> None:
        """Forget what was observed and observe again."""
        self.observer = self._make_observer()
        self.learning = False
        if hasattr(self, "scale"):
            del self.scale

    def forward(self, x: Tensor) -> Tensor:
        """Return `x`, observed, or its quantized value."""
        if not self.enabled:
            return x
        return super().forward(x) if self.rounding is None else self.rounding(x)


def quantizers_in(module: nn.Module) -> list[SwitchableQuantizer]:
    """Return the switchable quantizers of a module, each once."""
    return [m for m in module.modules() if isinstance(m, SwitchableQuantizer)]


def quantizer_of(module: GraphModule, node: Node) -> SwitchableQuantizer:
    """Return the quantizer that `node` of the module's graph calls."""
    assert node.op == "call_module" and isinstance(node.target, str)
    quantizer = module.get_submodule(node.target)
    assert isinstance(quantizer, SwitchableQuantizer)
    return quantizer


def start_quantizing(module: nn.Module) -> None:
    """Fix the observed scales; from now on the module's quantizers quantize."""
    for quantizer in quantizers_in(module):
        quantizer.start_learning()


@contextlib.contextmanager
def floating(module: nn.Module) -> Iterator[None]:
    """Let `module` compute in float: a context in which its quantizers are switched off."""
    quantizers = quantizers_in(module)
    for quantizer in quantizers:
        quantizer.enabled = False
    try:
        yield
    finally:
        for quantizer in quantizers:
            quantizer.enabled = True
