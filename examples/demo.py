"""The main job on a real model: from QAT exports of ResNet-20 to verified integer-only libraries.

``python examples/demo.py`` compiles the two quantized models in ``examples/models`` for this CPU,
verifies each against the reference executor (bit for bit) and against PyTorch on the 36 CIFAR-10
test images in ``examples/data``, times them, and prints one table.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

# One thread a library call: the network is small, and the demo should print the same anywhere.
os.environ.setdefault("TVM_NUM_THREADS", "1")

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import tvm_q4
from tvm_q4.data import open_data

HERE = Path(__file__).resolve().parent
IMAGES = HERE / "data"
FLOAT = HERE / "models" / "resnet20_float.pt2"
QUANTIZED = {
    "W8A8": HERE / "models" / "resnet20_w8a8.pt2",
    "W4A4": HERE / "models" / "resnet20_w4a4.pt2",
}

console = Console(highlight=False, width=None if sys.stdout.isatty() else 100)


def torch_top1(model: Path, images: NDArray[np.float32]) -> NDArray[np.int64]:
    """Classes that PyTorch gives, image by image.

    Parameters
    ----------
    model : Path
        A ``.pt2`` file.
    images : float32 ndarray [N, 3, 32, 32]
    """
    import torch

    from tvm_q4.quantize import load_program

    program, _ = load_program(model)
    network = program.module()
    with torch.no_grad():
        logits = [network(torch.from_numpy(images[i : i + 1])) for i in range(len(images))]
    return torch.cat(logits).argmax(dim=1).numpy()


def process(bits: str, model: Path, out: Path) -> dict[str, Any]:
    """Compile, verify, evaluate and time one model; the numbers of its row in the table."""
    start = time.perf_counter()
    library = tvm_q4.compile(model, target="llvm", output=out / f"{model.stem}.so")
    seconds = time.perf_counter() - start
    where = os.path.relpath(library.path)
    console.print(f"{bits}: compiled {model.name} to {where} in {seconds:.1f} s")

    data = open_data(IMAGES, library.input, transform=library.metadata["input"]["transform"])
    images, labels = data.read(0, data.count), data.labels
    report = tvm_q4.verify(library, model, images)
    checked = [layer for layer in report["layers"] if layer["checked"]]
    verdict = "bit-exact" if report["bit_exact"] else "NOT bit-exact"
    console.print(f"{bits}: {len(checked)} tensors of {report['n']} images are {verdict}")

    found, expected = library.logits(library.run(images)).argmax(axis=1), torch_top1(model, images)
    totals = tvm_q4.inspect(library.path)["totals"]
    return {
        "bits": bits,
        "bit_exact": report["bit_exact"],
        "file_bytes": library.path.stat().st_size,
        "weight_bytes": totals["weight_bytes"],
        "bops": totals["bops"],
        "median_ms": tvm_q4.bench(library)["median_ms"],
        "correct": int((found == labels).sum()),
        "torch_correct": int((expected == labels).sum()),
        "agreement": int((found == expected).sum()),
        "n": len(images),
        "images": images,
        "labels": labels,
    }


def show(rows: list[dict[str, Any]], float_correct: int) -> None:
    """Print the table."""
    table = Table(title="ResNet-20 on CIFAR-10, batch 1, one thread")
    table.add_column("model")
    for name in ("library", "weights", "GBOPs", "latency", "accuracy", "PyTorch", "same class"):
        table.add_column(name, justify="right")
    table.add_column("integers")
    for r in rows:
        table.add_row(
            r["bits"],
            f"{r['file_bytes'] / 1e3:.0f} kB",
            f"{r['weight_bytes'] / 1e3:.0f} kB",
            f"{r['bops'] / 1e9:.2f}",
            f"{r['median_ms']:.3f} ms",
            f"{r['correct']}/{r['n']}",
            f"{r['torch_correct']}/{r['n']}",
            f"{r['agreement']}/{r['n']}",
            "bit-exact" if r["bit_exact"] else "DIFFER",
        )
    table.add_row("float", "", "", "", "", "", f"{float_correct}/{rows[0]['n']}", "", "")
    console.print(table)


def main() -> int:
    """Run the demo; 1 where a library is not bit-exact."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=HERE.parent / "out" / "demo", help="folder for the libraries"
    )
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    rows = [process(bits, model, out) for bits, model in QUANTIZED.items()]
    float_top1 = torch_top1(FLOAT, rows[0]["images"])
    show(rows, int((float_top1 == rows[0]["labels"]).sum()))
    return 0 if all(r["bit_exact"] for r in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
