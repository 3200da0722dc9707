"""Time ResNets compiled by tvm-q4 on this GPU against PyTorch fp16, after a check of their results.

    python benchmarks/cuda_resnet.py r50.tar.xz --json r50.json

Takes what `cuda_build.py` wrote; a compiler is not needed, nor is TVM's. A time is that between two
events in the GPU's stream around one inference which finds the GPU idle, its input in the GPU's
memory: float32 NCHW for tvm-q4, which quantizes it, fp16 channels-last for PyTorch. PyTorch runs
``torch.compile(mode="reduce-overhead")``, whose result is replayed as a CUDA graph.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuda_bundle import Case, digest, make_input, opened, read_index

if TYPE_CHECKING:
    from tvm_q4.library import Library

PACKAGES = ("tvm-q4", "apache-tvm", "torch", "torchvision", "numpy")
HEADER = "| case | exact | tvm-q4 ms (p10..p90) | images/s | PyTorch fp16 ms | ratio |"
RULE = "|---|---|---|---|---|---|"


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; see the module's docstring. Exits with 1 if a result is wrong."""
    options = _parser().parse_args(arguments)
    deadline = time.monotonic() + 60 * options.minutes
    report: dict[str, Any] = {"machine": describe_machine(), "cases": []}
    print(f"{json.dumps(report['machine'])}\n\n{HEADER}\n{RULE}", flush=True)
    peers: dict[tuple[str, int], dict[str, Any]] = {}
    with opened(options.bundle) as folder:
        for case in read_index(folder):
            row = run_case(case, folder, options)
            report["device"] = row.pop("device")
            if not options.no_torch:
                key = (case.model, case.batch)
                if key not in peers:
                    peers[key] = run_peer(case, options, deadline)
                row["torch"] = peers[key]
            report["cases"].append(row)
            print(table_row(row), flush=True)
            if options.json:
                options.json.write_text(json.dumps(report, indent=1) + "\n")
    print("\n".join(["", *layer_table(report["cases"])]))
    return 0 if all(row["exact"] for row in report["cases"]) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path, help="folder or .tar.xz that cuda_build.py wrote")
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--no-torch", action="store_true", help="leave PyTorch out")
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="start no PyTorch network after so long"
    )
    parser.add_argument("--json", type=Path, help="file for all numbers")
    return parser


def describe_machine() -> dict[str, Any]:
    """Versions; nothing that identifies the host."""

    def installed(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    return {"python": platform.python_version()} | {name: installed(name) for name in PACKAGES}


def run_case(case: Case, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Check one library, and time it if its result is right."""
    import numpy as np

    import tvm_q4

    library = tvm_q4.load(folder / case.library)
    x = make_input(library.metadata)
    assert digest(x) == case.input_sha256, "this NumPy draws other numbers; build the bundle here"
    exact = np.array_equal(library.run(x), np.load(folder / case.logits))
    row: dict[str, Any] = {"case": case.name, "batch": case.batch, "exact": exact}
    row |= {"device": library.device, "cuda_graph": library.cuda_graph}
    if not exact:
        return row | {"first_mismatch": first_mismatch(case, library)}
    result = tvm_q4.bench(library, repeats=options.repeats, layers=True)
    predicted = {layer["name"]: layer.get("predicted_us") for layer in library.metadata["layers"]}
    for layer in result["layers"]:
        layer["predicted_us"] = predicted.get(layer["layer"])
    return row | {"tvm_q4": result}


def first_mismatch(case: Case, library: Library) -> str | None:
    """Name of the first tensor that differs from the reference's; None where none is known."""
    if not case.tensors:
        return None
    tensors = library.trace(make_input(library.metadata))
    known = {name: tensor for name, tensor in tensors.items() if name in case.tensors}
    return next((name for name, t in known.items() if digest(t) != case.tensors[name]), None)


def run_peer(case: Case, options: argparse.Namespace, deadline: float) -> dict[str, Any]:
    """PyTorch's times for the case's network, or why there are none."""
    if time.monotonic() > deadline:
        return {"skipped": f"--minutes {options.minutes} were over"}
    try:
        import torch
    except ImportError as error:
        return {"skipped": str(error)}
    from torch_peer import time_network

    try:
        return time_network(case.model, case.batch, options.repeats)
    except (RuntimeError, ImportError, torch._dynamo.exc.TorchDynamoException) as error:
        return {"skipped": f"{type(error).__name__}: {str(error).splitlines()[0]}"}


def table_row(row: dict[str, Any]) -> str:
    """Markdown of one case."""
    ours, peer = row.get("tvm_q4"), row.get("torch", {})
    fp16 = peer.get("median_ms")
    cells = [row["case"], "yes" if row["exact"] else f"NO, first {row['first_mismatch']}"]
    if ours is None:
        cells += ["-", "-"]
    else:
        cells += [f"{ours['median_ms']:.3f} ({ours['p10_ms']:.3f}..{ours['p90_ms']:.3f})"]
        cells += [f"{ours['images_per_second']:.0f}"]
    cells += [f"{fp16:.3f}" if fp16 else "-"]
    cells += [f"{fp16 / ours['median_ms']:.2f}" if fp16 and ours else "-"]
    return f"| {' | '.join(cells)} |"


def layer_table(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown of each case's layers: measured against predicted, in microseconds."""
    lines = []
    for row in rows:
        layers = [e for e in row.get("tvm_q4", {}).get("layers", []) if e["predicted_us"]]
        if not layers:
            continue
        lines += [f"{row['case']}", "| layer | measured us | predicted us | ratio |"]
        lines += ["|---|---|---|---|"]
        for layer in layers:
            measured, predicted = 1e3 * layer["ms"], layer["predicted_us"]
            cells = f"{measured:.1f} | {predicted:.1f} | {measured / predicted:.2f}"
            lines.append(f"| {layer['layer']} | {cells} |")
        lines.append("")
    return lines


if __name__ == "__main__":
    from tvm_q4.errors import Q4Error

    try:
        sys.exit(main())
    except Q4Error as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
