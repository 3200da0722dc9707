"""Compile a network, run it on the emulated GPU, compare with the reference executor.

    python -m tests.fake_gpu.run_network ARCH TARGET [MODEL [IMAGE_SIZE]]

MODEL is what `tvm_q4.compile` takes, for one image; without it, a small network. What is required
is what the tests on real GPUs require. Prints one JSON object.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests import small_network
from tests.fake_gpu.gpu import EmulatedGpu
from tests.gpu.bodies import check_library
from tvm_q4.compiler import compile_module
from tvm_q4.cuda_target import CudaTarget
from tvm_q4.library import export_library
from tvm_q4.library.packing import cuda_sources
from tvm_q4.targets import parse_target


def main(
    arch: int, target: str, model: str | None = None, size: str | None = None
) -> dict[str, object]:
    """What ran, after all of it was found to be bit-exact."""
    parsed = parse_target(target)
    assert isinstance(parsed, CudaTarget)
    module = small_network.quantized() if model is None else _load(model, size)
    compiled = compile_module(module, parsed)
    gpu = EmulatedGpu(arch, cuda_sources(compiled.executable.mod))
    with tempfile.TemporaryDirectory() as folder:
        path = export_library(compiled.executable, compiled.metadata, Path(folder) / "a.so")
        library = check_library(path, module)
        return {
            "family": library.metadata["family"],
            "device": library.device,
            "kernels": [call["kernel"] for call in library.metadata["calls"]],
            "launched": len(gpu.launches),
            "replayed": gpu.replayed,
            "error": str(gpu.error) if gpu.error else None,
        }


def _load(model: str, size: str | None) -> Any:
    from tvm_q4.frontend import load_model

    image_size = None if size is None else (int(size), int(size))
    return load_model(model, batch=1, image_size=image_size)


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), *sys.argv[2:])))
