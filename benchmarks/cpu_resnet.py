"""Time ResNets compiled by tvm-q4 against ONNX Runtime's int8 on this CPU, in one process, in turn.

    python benchmarks/cpu_resnet.py --models resnet18,resnet50 --configs uniform8,uniform4

Both sides run the same torchvision network with random weights. A time is one whole inference from
a float32 NCHW NumPy array to float32 logits in a NumPy array, both allocated before.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("tvm-q4", "apache-tvm", "onnxruntime", "onnx", "torch", "torchvision", "numpy")
INT8, FP32 = "onnxruntime int8", "onnxruntime fp32"


@dataclass
class Case:
    """One network at one batch: what was timed, and how it came out."""

    model: str
    batch: int
    threads: int
    ort_operators: dict[str, int]
    rounds: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    ratios: dict[str, dict[str, float]] = field(default_factory=dict)
    compile_seconds: dict[str, float] = field(default_factory=dict)
    library_bytes: dict[str, int] = field(default_factory=dict)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; see the module's docstring."""
    options = _parser().parse_args(arguments)
    # Both are read once, when their libraries load.
    os.environ["TVM_NUM_THREADS"] = str(options.threads)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    machine = describe_machine(options.threads)
    print("\n".join(f"{key}: {value}" for key, value in machine.items()), flush=True)
    print(f"\n{HEADER}\n{RULE}", flush=True)
    cases = []
    for case in run_cases(options):
        cases.append(asdict(case))
        print("\n".join(table_rows(case)), flush=True)
        if options.json:
            report = {"machine": machine, "arguments": _plain(options), "cases": cases}
            options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=_names, default=["resnet18", "resnet50"])
    parser.add_argument("--configs", type=_names, default=["uniform8", "uniform4"])
    parser.add_argument("--batches", type=_numbers, default=[1, 8])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.25, help="length of a side's turn")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--no-fp32", action="store_true", help="leave ONNX Runtime's float out")
    parser.add_argument("--json", type=Path, help="file for every round's times")
    return parser


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _numbers(text: str) -> list[int]:
    return [int(number) for number in _names(text)]


def _plain(options: argparse.Namespace) -> dict[str, Any]:
    return {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}


def describe_machine(threads: int) -> dict[str, Any]:
    """Versions, the CPU's name and what it can do; nothing that identifies the host."""
    info = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    fields = {}
    for line in info:
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = fields.get("flags", "").split()
    vector = [f for f in ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8") if f in flags]
    name = fields.get("model name", platform.processor())
    family = f"family {fields.get('cpu family', '?')} model {fields.get('model', '?')}"
    return {
        "cpu": f"{name} ({family}), {os.cpu_count()} CPUs",
        "vector": " ".join(vector),
        "threads": threads,
        "python": platform.python_version(),
        "versions": ", ".join(f"{name} {version(name)}" for name in PACKAGES),
    }


def run_cases(options: argparse.Namespace) -> Iterator[Case]:
    """Yield each model at each batch, timed."""
    from ort_peer import float_network

    for model in options.models:
        network = float_network(model, image_size=options.image_size)
        for batch in options.batches:
            with tempfile.TemporaryDirectory(prefix="cpu_resnet_") as folder:
                yield run_case(options, model, network, batch, Path(folder))


def run_case(
    options: argparse.Namespace, model: str, network: Any, batch: int, folder: Path
) -> Case:
    """Prepare ONNX Runtime and a library for each config, and time them in turn."""
    import numpy as np
    from paired_timing import ratio, time_in_turn

    shape = (batch, 3, options.image_size, options.image_size)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    peers, operators = _peers(options, network, x, folder)
    case = Case(model, batch, options.threads, operators)
    ours = {}
    for config in options.configs:
        path = folder / f"{config}.so"
        start = time.perf_counter()
        ours[config] = _ours(f"zoo:{model}@{config}", path, x)
        case.compile_seconds[config] = time.perf_counter() - start
        case.library_bytes[config] = path.stat().st_size
    rounds = time_in_turn({**ours, **peers}, options.rounds, options.seconds)
    case.rounds = {name: [asdict(r) for r in rs] for name, rs in rounds.items()}
    for config in options.configs:
        for peer in peers:
            case.ratios[f"{config} / {peer}"] = asdict(ratio(rounds[config], rounds[peer]))
    return case


def _peers(
    options: argparse.Namespace, network: Any, x: Any, folder: Path
) -> tuple[dict[str, Callable[[], object]], dict[str, int]]:
    """ONNX Runtime's calls, after a look at the graph that it executes."""
    import ort_peer
    from torch import nn

    size = x.shape[-1]
    float_path, int8_path = ort_peer.write_models(network, x.shape[0], folder, size)
    optimized = folder / "optimized.onnx"
    session = ort_peer.open_session(int8_path, options.threads, optimized)
    operators = ort_peer.executed_operators(optimized)
    layers = sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in network.modules())
    ort_peer.check_integer_kernels(operators, layers)
    calls = {INT8: ort_peer.bound_call(session, x)}
    if not options.no_fp32:
        float_session = ort_peer.open_session(float_path, options.threads)
        calls[FP32] = ort_peer.bound_call(float_session, x)
    return calls, dict(operators)


def _ours(spec: str, path: Path, x: Any) -> Callable[[], object]:
    """Compile to `path`; a function of no arguments that runs the library on `x`."""
    import numpy as np

    import tvm_q4

    size = x.shape[-2:]
    library = tvm_q4.compile(spec, target="llvm", batch=x.shape[0], image_size=size, output=path)
    logits = np.empty_like(library.run(x))
    return lambda: library.run(x, out=logits)


HEADER = (
    "| model | batch | config | tvm-q4 ms | ORT int8 ms | ORT fp32 ms | tvm-q4 / ORT int8 (range) "
    "| same, CPU time | compile s | library MB |"
)
RULE = "|---|---|---|---|---|---|---|---|---|---|"


def table_rows(case: Case) -> list[str]:
    """Markdown rows of one case, one a config."""
    from paired_timing import Round, median_ms, ratio

    rounds = {name: [Round(**r) for r in rs] for name, rs in case.rounds.items()}
    fp32 = f"{median_ms(rounds[FP32]):.1f}" if FP32 in rounds else "-"
    rows = []
    for config in case.compile_seconds:
        ours, peer = rounds[config], rounds[INT8]
        cells = [
            case.model,
            str(case.batch),
            config,
            f"{median_ms(ours):.1f}",
            f"{median_ms(peer):.1f}",
            fp32,
            str(ratio(ours, peer)),
            f"{ratio(ours, peer, 'cpu_ms').median:.2f}",
            f"{case.compile_seconds[config]:.0f}",
            f"{case.library_bytes[config] / 1e6:.1f}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


if __name__ == "__main__":
    sys.exit(main())
