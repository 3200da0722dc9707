"""Compare our search with random search and with MetaSchedule, layer by layer, on this CPU.

    python benchmarks/tuning.py --report tuning.json --plot tuning.svg

For each layer: our search with a budget of trials, as it runs; MetaSchedule on TVM's own space for
the same computation, the same number of trials, in as many seconds and then longer; and our whole
space measured once, from which random search is computed. Our best and MetaSchedule's are then
timed in turn. A run that was ended goes on where it stopped, with the same --report; one that is
complete prints its table again. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

LAYERS = (
    "layer1.0.conv2",  # 3x3, 64 channels, 56x56
    "layer1.1.conv1",  # 1x1, 256 to 64, 56x56
    "layer2.0.conv2",  # 3x3, stride 2, 128 channels, 28x28
    "layer3.0.downsample.0",  # 1x1, stride 2, 512 to 1024, 14x14
    "layer3.1.conv2@uniform4",  # 3x3, 256 channels, 14x14
    "layer4.1.conv1",  # 1x1, 2048 to 512, 7x7
)
_PEER_SHARE = 0.5
"""Part of a layer's time after which MetaSchedule begins no further round of its search."""


def main(arguments: list[str] | None = None) -> int:
    """Run the script; see the module's docstring."""
    options = _parser().parse_args(arguments)
    os.environ["TVM_NUM_THREADS"] = str(options.threads)  # read once, when TVM loads
    from tuning_report import markdown

    report = _load(options)
    missing = [name for name in options.layers if not _complete(report, name)]
    if missing:
        _measure(report, missing, options)
    rows = {name: report["layers"][name] for name in options.layers}
    print("\n" + markdown(rows, report["trials"]))
    if options.plot is not None:
        from tuning_plot import plot

        plot(rows, options.plot)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=_names, default=list(LAYERS), help="NAME[@CONFIG],...")
    parser.add_argument("--model", default="zoo:resnet50", help="without its configuration")
    parser.add_argument("--trials", type=int, default=32, help="candidates a layer")
    parser.add_argument("--minutes", type=float, default=22.0, help="of all layers together")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=Path, required=True, help="file of results, continued")
    parser.add_argument("--plot", type=Path, help="picture of the curves: .svg, .png, .pdf")
    return parser


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _load(options: argparse.Namespace) -> dict[str, Any]:
    """The report that is there already, which must be of the same settings, or a new one."""
    names = ("model", "trials", "threads", "seed")
    settings = {name: getattr(options, name) for name in names}
    if not options.report.exists():
        return settings | {"layers": {}}
    report = json.loads(options.report.read_text())
    found = {name: report.get(name) for name in names}
    if found != settings:
        raise SystemExit(f"error: {options.report} has {found}, asked for {settings}")
    return report


def _complete(report: dict[str, Any], name: str) -> bool:
    row = report["layers"].get(name, {})
    return all(part in row for part in ("ours", "metaschedule", "final", "space"))


def _measure(report: dict[str, Any], names: list[str], options: argparse.Namespace) -> None:
    """Measure what is missing of layers, and write the report after each part."""
    import tuning_job
    import tuning_metaschedule as peer

    from tvm_q4.tune.builder import Builder
    from tvm_q4.tune.candidates import Candidates
    from tvm_q4.tune.measurer import LocalMeasurer
    from tvm_q4.tune.workers import Pool

    path = {"PYTHONPATH": str(Path(__file__).parent), "TVM_NUM_THREADS": str(options.threads)}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tuning_")))
        device = stack.enter_context(LocalMeasurer("cpu", options.threads))
        candidates = Candidates(stack.enter_context(Builder(folder)), device, folder, options.seed)
        builders = stack.enter_context(Pool(_cpus(), [tuning_job.__name__], path))
        mixed = stack.enter_context(Pool(1, [tuning_job.__name__], path))
        report |= {"device": device.facts["device"], "date": time.strftime("%Y-%m-%d")}
        tasks = _tasks(options.model, names)
        peer.prepare()
        end = time.monotonic() + 60 * options.minutes
        for number, name in enumerate(names):
            layer = _Layer(name, tasks[name], candidates, folder / f"layer{number}", options)
            seconds = (end - time.monotonic()) / (len(names) - number)
            row = report["layers"].setdefault(name, layer.facts())
            for part in layer.parts(row, seconds, builders, mixed):
                row |= part
                _write(options.report, report)
            print(_line(name, row), flush=True)


def _tasks(model: str, names: list[str]) -> dict[str, Any]:
    """The tasks of the layers; each configuration is loaded once."""
    from tuning_workload import check

    from tvm_q4.tune.workflow import load_tasks

    configs: dict[str, list[str]] = {}
    for name in names:
        layer, _, config = name.partition("@")
        configs.setdefault(config or "uniform8", []).append(layer)
    found = {}
    for config, layers in configs.items():
        tasks = load_tasks(f"{model}@{config}", "llvm", ",".join(layers), batch=1)
        for layer in layers:
            task = next(t for t in tasks if layer in t.layers)
            check(task.layer)
            found |= {f"{layer}@{config}": task, layer: task}
    return {name: found[name if "@" in name else f"{name}@uniform8"] for name in names}


class _Layer:
    """The parts of one layer's benchmark."""

    def __init__(
        self, name: str, task: Any, candidates: Any, folder: Path, options: argparse.Namespace
    ) -> None:
        folder.mkdir()
        self.name, self.task, self.candidates, self.folder = name, task, candidates, folder
        self.options = options

    def facts(self) -> dict[str, Any]:
        """What is known before anything is measured."""
        n, _, h, w = self.task.layer.shape
        weight = self.task.layer.ops[0].params["weight"]
        return {
            "signature": self.task.signature,
            "macs": n * h * w * weight.size,
            "settings": len(self.task.space),
        }

    def parts(self, row: dict[str, Any], seconds: float, builders: Any, mixed: Any) -> Any:
        """Measure what `row` lacks; yields the parts one after another."""
        from tuning_search import measure_space, run_ours

        begin, trials, seed = time.monotonic(), self.options.trials, self.options.seed
        if "ours" not in row:
            log = self.folder / "log.jsonl"
            yield {"ours": run_ours(self.task, self.candidates, log, trials, seed)}
        if "final" not in row:
            limit_s = max(row["ours"]["seconds"], _PEER_SHARE * seconds)
            yield self._peer(row["ours"], limit_s, builders, mixed)
        if "space" not in row:
            tried = [i for _, i, _ in row["ours"]["curve"]]
            left = seconds - (time.monotonic() - begin)
            yield {"space": measure_space(self.task, self.candidates, tried, left, seed)}

    def _peer(
        self, ours: dict[str, Any], limit_s: float, builders: Any, mixed: Any
    ) -> dict[str, Any]:
        """MetaSchedule's search, and its best against ours, in turn."""
        import tuning_metaschedule as peer
        from tuning_job import time_mixed
        from tuning_workload import workload, workload_case

        from tvm_q4.tune.case import make_case
        from tvm_q4.tune.session import Timings
        from tvm_q4.tune.time_job import Timing

        task, seed = self.task, self.options.seed
        our_case, peer_case = self.folder / "ours.npz", self.folder / "peer.npz"
        make_case(task.fused, task.layer, seed).save(our_case)
        workload_case(task.fused, task.layer, seed).save(peer_case)
        kernels = self.candidates.kernels(task, [task.start, ours["best"]])
        start, best = (str(kernels[i].folder) for i in (task.start, ours["best"]))
        measuring = peer.Measuring(
            builders, mixed, self.folder, peer_case, (start, str(our_case)), Timing()
        )
        found = peer.tune(
            workload(task.layer), _one_core(task.target), self.options.trials, ours["seconds"],
            limit_s, measuring, seed,
        )  # fmt: skip
        pairs = {"start": (start, str(our_case)), "best": (best, str(our_case))}
        pairs |= {name: (path, str(peer_case)) for name, (_, path) in found.best.items()}
        timing = Timings().confirm
        (samples,) = mixed.map(time_mixed, [(list(pairs.values()), timing)], timing.limit_s)
        if not isinstance(samples, list):
            raise SystemExit(f"error: {self.name}: the best cannot be timed: {samples.reason}")
        times = {name: s.times_us for name, s in zip(pairs, samples, strict=True)}
        return {
            "metaschedule": {
                "seconds": found.seconds, "curve": found.curve, "failures": found.failures,
            },
            "final": times,
        }  # fmt: skip


def _one_core(target: Any) -> Any:
    """A target for MetaSchedule: its space asks for the number of cores."""
    from tvm.target import Target

    return Target({"kind": "llvm", "mcpu": str(target.attrs["mcpu"]), "num-cores": 1})


def _cpus() -> int:
    """CPUs that this process may use: as many builds at a time as our own search has."""
    from tvm_q4.tune.builder import usable_cpus

    return usable_cpus()


def _line(name: str, row: dict[str, Any]) -> str:
    trials, seconds = len(row["metaschedule"]["curve"]), row["metaschedule"]["seconds"]
    return (
        f"{name}: ours {len(row['ours']['curve'])} trials in {row['ours']['seconds']:.0f} s, "
        f"MetaSchedule {trials} in {seconds:.0f} s, {len(row['space']['relative'])} of "
        f"{row['settings']} settings measured"
    )


def _write(path: Path, report: dict[str, Any]) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(report) + "\n")
    part.replace(path)


if __name__ == "__main__":
    sys.exit(main())
