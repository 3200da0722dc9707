"""What the tests of the HAWQ frontend share: small architectures, images, published configs."""

from __future__ import annotations

import json

import numpy as np
from numpy.typing import NDArray

from tests.conftest import find_data
from tests.frontend import hawq_checkpoint as made
from tvm_q4.frontend.hawq.architecture import Architecture

ARCHITECTURE_OF = {
    net: Architecture(name, net.units, net.bottleneck, net.v1_5, net.widths, net.stem)
    for name, net in {
        "one-unit": made.ONE_UNIT,
        "tiny": made.TINY,
        "tiny-bottleneck": made.TINY_BOTTLENECK,
        "tiny-bottleneck-b": made.TINY_BOTTLENECK_V1_5,
    }.items()
}


def images(n: int, height: int, width: int) -> NDArray[np.float32]:
    """Normalised images; some values are beyond what the input's quantizer holds."""
    rng = np.random.default_rng(17)
    return (1.3 * rng.standard_normal((n, 3, height, width))).astype(np.float32)


def published(arch: str, config: str) -> set[str] | None:
    """Layers at 4 bits as the reference data has them; None is all inner ones."""
    if config == "uniform4":
        return None
    if config == "uniform8":
        return set()
    path = find_data("hawq-v3", "bit_configs.json")
    if path is None:
        import pytest

        pytest.skip("data hawq-v3/bit_configs.json is missing; set TVM_Q4_DATA to the data folder")
    return set(json.loads(path.read_text())["configs"][f"{arch}_{config}"]["int4_layers"])
