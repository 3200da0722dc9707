"""Squared error of a layer's output when that layer alone is quantized (numerics.md, last section).

The error of an image is summed over the output's elements, not averaged, and the layer's input is
that of the float network. It needs neither labels nor gradients, and sees nothing of what the rest
of the network makes of the error. It is the layer-wise objective of Hubara et al., "Accurate Post
Training Quantization With Small Calibration Sets", ICML 2021 (arXiv 2006.10518).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from tvm_q4.sensitivities.metric import WEIGHTS_ONLY, per_image, stacked
from tvm_q4.sensitivities.network import BITS, FloatNetwork, LayerCall

_PAIRS = {"4": (4, 4), "8": (8, 8), "w4a8": (4, 8)}


class OutputMseMetric:
    """See the module; columns are ``w4``, ``w8`` and, with activations, ``w4a4``, ...

    Parameters
    ----------
    network : FloatNetwork
        Calibrated.
    activations : bool
        Whether the layer's input is quantized too.
    """

    per_image = True

    def __init__(self, network: FloatNetwork, activations: bool) -> None:
        self.network = network
        self.pairs: list[tuple[int, int | None]] = [(bits, None) for bits in BITS]
        self.pairs += _PAIRS.values() if activations else ()
        both = {name: (f"w{w}a{a}",) for name, (w, a) in _PAIRS.items()}
        self.sums = both if activations else WEIGHTS_ONLY
        self.weights = {
            bits: [network.quantized_weight(i, bits) for i in range(len(network.layers))]
            for bits in BITS
        }

    def measure(self, x: Tensor, y: Tensor, generator: Generator) -> Tensor:
        """Return each image's squared errors: float64 [n, layers, columns]."""
        zeros = [torch.zeros(len(x), dtype=torch.float64) for _ in self.pairs]
        errors = [list(zeros) for _ in self.network.layers]

        def hook(call: LayerCall) -> Tensor:
            out = call.compute(call.x, call.layer.weight)
            errors[call.index] = [
                before + per_image((self._quantized(call, *pair) - out).square())
                for before, pair in zip(errors[call.index], self.pairs, strict=True)
            ]
            return out

        with torch.no_grad():
            self.network.run(x, hook)
        return stacked(errors)

    def enough(self, samples: Tensor) -> bool:
        """Return True: every image is looked at once."""
        return True

    def parts(self, samples: Tensor) -> dict[str, Tensor]:
        """Return the columns by name."""
        names = [f"w{w}" if a is None else f"w{w}a{a}" for w, a in self.pairs]
        return dict(zip(names, samples.unbind(-1), strict=True))

    def details(self, samples: Tensor) -> list[dict[str, Any]]:
        """Return nothing further."""
        return [{} for _ in self.network.layers]

    def _quantized(self, call: LayerCall, weight: int, activation: int | None) -> Tensor:
        x = call.x
        if activation is not None:
            x = self.network.quantized_input(call.index, activation, x)
        return call.compute(x, self.weights[weight][call.index])
