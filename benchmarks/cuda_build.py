"""Compile ResNets for `cuda_resnet.py`, which times them where a GPU is; none is needed here.

    python benchmarks/cuda_build.py --models resnet50 --target cuda:sm_90 -o r50.tar.xz

The expected results come from the same models compiled for this CPU, whose libraries the tests hold
bit-exact with the reference executor.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cuda_bundle import Case, digest, make_input, pack, write_index

TRACED_BATCH = 8
"""Largest batch whose tensors are kept one by one, to name the first layer that differs."""


def main(arguments: list[str] | None = None) -> int:
    """Build the bundle; see the module's docstring."""
    options = _parser().parse_args(arguments)
    if not options.output.name.endswith(".tar.xz"):
        options.output.mkdir(parents=True, exist_ok=True)
        _build(options, options.output)
        return 0
    with TemporaryDirectory(prefix="cuda_build_") as folder:
        _build(options, Path(folder))
        pack(Path(folder), options.output)
    print(f"{options.output}: {options.output.stat().st_size / 1e6:.1f} MB")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=_names, default=["resnet18", "resnet50"])
    parser.add_argument("--configs", type=_names, default=["uniform8", "uniform4"])
    parser.add_argument("--batches", type=_numbers, default=[1, 8, 32, 128])
    parser.add_argument("--target", default="cuda:sm_90")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder, or .tar.xz")
    return parser


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _numbers(text: str) -> list[int]:
    return [int(number) for number in _names(text)]


def _build(options: argparse.Namespace, folder: Path) -> None:
    cases = []
    for model in options.models:
        for config in options.configs:
            for batch in options.batches:
                start = time.perf_counter()
                cases.append(build_case(options, model, config, batch, folder))
                seconds = time.perf_counter() - start
                print(f"{cases[-1].name}: {seconds:.0f} s", flush=True)
                write_index(folder, options.target, cases)


def build_case(
    options: argparse.Namespace, model: str, config: str, batch: int, folder: Path
) -> Case:
    """Compile one library into `folder`, with what it must compute."""
    import numpy as np

    import tvm_q4

    size = (options.image_size, options.image_size)
    arguments: dict[str, Any] = {"batch": batch, "image_size": size}
    spec, name = f"zoo:{model}@{config}", f"{model}-{config}-b{batch}"
    reference = tvm_q4.compile(spec, target="llvm", **arguments)
    x = make_input(reference.metadata)
    logits = reference.run(x)
    tensors = reference.trace(x) if batch <= TRACED_BATCH else {}
    tvm_q4.compile(spec, target=options.target, output=folder / f"{name}.so", **arguments)
    np.save(folder / f"{name}.npy", logits)
    reference.path.unlink()
    hashes = {key: digest(tensor) for key, tensor in tensors.items()}
    return Case(model, config, batch, f"{name}.so", f"{name}.npy", digest(x), hashes)


if __name__ == "__main__":
    sys.exit(main())
