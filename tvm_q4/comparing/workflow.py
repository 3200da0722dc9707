"""``compare``: several quantizations of one network on one target, side by side."""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tvm.target import Target

from tvm_q4.comparing.build import Builder
from tvm_q4.comparing.configs import FLOAT, MODEL, Config, parse_configs
from tvm_q4.comparing.measure import measure
from tvm_q4.comparing.report import make_report
from tvm_q4.comparing.settings import Settings
from tvm_q4.comparing.store import Store
from tvm_q4.cuda_target import CudaTarget
from tvm_q4.errors import EnvironmentMismatch, InputError
from tvm_q4.json_file import write_text
from tvm_q4.layer_table import join, read_table
from tvm_q4.library import set_threads
from tvm_q4.targets import as_target
from tvm_q4.transforms import Transform

logger = logging.getLogger(__name__)


def compare(
    model: str | Path,
    *,
    configs: Sequence[str | Path],
    output: str | Path,
    target: str | Target | CudaTarget = "llvm",
    calibrate: str | Path | None = None,
    data: str | Path | None = None,
    log: Sequence[str | Path] = (),
    table: Sequence[str | Path] = (),
    batch: int | None = None,
    image_size: tuple[int, int] | None = None,
    samples: int = 512,
    transform: str | Mapping[str, Any] | Transform | None = None,
    classes: str | Path | None = None,
    rounds: int = 7,
    seconds: float = 0.25,
    threads: int | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Compare configs of a network: latency, accuracy, size and operations, whole and by layer.

    Each config is quantized (unless it is a quantized model), compiled, verified and evaluated.
    Then all libraries are timed in turn, round by round, so that ratios survive a machine whose
    speed drifts. What was made is kept in ``OUTPUT/work``, so that the same call goes on where it
    was interrupted; times are always measured anew.

    Parameters
    ----------
    model : str or Path
        The float model: a ``.pt2`` file or ``zoo:NAME``. It is read only where a config needs it.
    configs : sequence of str
        Each ``SPEC`` or ``NAME=SPEC``: a preset, a bit config's file, a quantized model, or
        ``float``.
    output : path
        Folder for ``report.json``, ``report.html`` and ``work``.
    target : str, tvm.target.Target or CudaTarget
        As for `tvm_q4.compile`. If this machine does not have it, latencies are predicted.
    calibrate : path, optional
        Images for presets and bit configs: a DATA argument. ``zoo:`` models do without, with random
        scales and no accuracy.
    data : path, optional
        Labelled images for accuracy.
    log : sequence of paths
        Tuning logs.
    table : sequence of paths
        Layer tables of `sensitivity` and `latency`, for the per-layer part.
    batch, image_size
        As for `tvm_q4.compile`.
    samples : int
        How many images calibrate.
    transform, classes
        As for `tvm_q4.quantize_model`.
    rounds : int
        Turns of each library.
    seconds : float
        Length of a turn.
    threads : int, optional
        See `tvm_q4.load`.
    seed : int
    progress : bool, optional
        See `tvm_q4.progress.ProgressBar`.

    Returns
    -------
    dict
        What ``report.json`` holds: ``ok`` (whether all libraries are bit-exact), ``model``,
        ``target``, ``batch``, ``date``, ``seed``, ``rounds``, ``command``, ``machine``,
        ``versions``, ``inputs``; ``baseline`` (the config of ratio 1); ``configs``, each with
        ``name``, ``spec``, ``kind``, ``how``, ``bit_exact`` (None where it was not checked),
        ``latency`` (``median_ms``, ``p10_ms``, ``p90_ms``, ``source``: "measured" or "predicted",
        ``device``, ``threads``, ...; or None), ``kernels`` (layers by what decided their kernel's
        parameters), ``accuracy`` (``top1``, ``top5``, ``n``,
        ``correct``, ``stderr``; or None), ``accuracy_change``, ``bits`` (layers by precision),
        ``params``, ``macs``, ``bops``, ``weight_bytes`` (as deployed), ``weight_bytes_ideal``
        (params times bits), ``library_bytes``, ``ratios`` (to the baseline), ``front`` (whether it
        is Pareto optimal, by cost) and ``notes``; ``layers``, see `layer_rows`; ``report`` and
        ``page``, the paths written.

    Raises
    ------
    InputError
        If an argument is wrong or a config cannot be made; nothing is reported then.
    EnvironmentMismatch
        If matplotlib is not installed.
    """
    _check_matplotlib()
    parsed, folder = parse_configs(list(configs)), _checked_folder(Path(output))
    tables = [read_table(path) for path in table]
    joined = join(tables, [str(path) for path in table]) if tables else None
    settings = Settings(
        str(model), str(target), as_target(target), tuple(map(str, log)), tuple(map(str, table)),
        _text(calibrate), _text(data), batch, image_size, samples, transform, _text(classes),
        rounds, seconds, threads, seed, progress,
    )  # fmt: skip
    source = _float_model(settings, parsed)
    if threads is not None:
        set_threads(threads)
    builder = Builder(settings, Store(folder / "work"))
    built = []
    for number, config in enumerate(parsed, 1):
        logger.info("config %s (%d of %d)", config.name, number, len(parsed))
        if config.kind != FLOAT:
            built.append(builder.build(config))
    times = measure(
        {one.config.name: one.library for one in built if one.runs_here},
        rounds=rounds,
        seconds=seconds,
        seed=seed,
        progress=progress,
    )
    report = make_report(settings, parsed, built, builder, source, times, joined, folder)
    _write(report, folder)
    return report


def _text(value: str | Path | None) -> str | None:
    return None if value is None else str(value)


def _check_matplotlib() -> None:
    if importlib.util.find_spec("matplotlib") is None:
        msg = "compare draws with matplotlib; install it with: pip install 'tvm-q4[compare]'"
        raise EnvironmentMismatch(msg)


def _checked_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise InputError(f"output '{folder}' is a file; give a folder") from None
    except OSError as error:
        raise InputError(f"output '{folder}' cannot be made: {error.strerror}") from None
    return folder


def _float_model(settings: Settings, configs: Sequence[Config]) -> Any:
    """The float model where a config needs it, after a look at the data; else None."""
    if all(config.kind == MODEL for config in configs):
        if not settings.is_zoo and not Path(settings.model).exists():
            raise InputError(f"model '{settings.model}' does not exist; give a file or zoo:NAME")
        return None
    if settings.calibrate is None and not settings.is_zoo:
        made = [c.name for c in configs if c.kind not in (MODEL, FLOAT)]
        if made:
            msg = f"config '{made[0]}' is to be quantized; give images with --calibrate DATA"
            raise InputError(msg)
    from tvm_q4.comparing.float_model import labelled
    from tvm_q4.quantize.float_model import load_float_model

    source = load_float_model(settings.model, settings.seed)
    if settings.data is not None:
        shape = (*source.input.shape[:2], *(settings.image_size or source.input.shape[2:]))
        sized = replace(source, input=replace(source.input, shape=shape))
        labelled(sized, settings.data, settings.transform, settings.classes)
    return source


def _write(report: dict[str, Any], folder: Path) -> None:
    from tvm_q4.comparing.html import page

    text = page(report)
    try:
        write_text(folder / "report.json", json.dumps(report, indent=1, allow_nan=False) + "\n")
        write_text(folder / "report.html", text)
    except OSError as error:
        raise InputError(f"report in '{folder}' cannot be written: {error.strerror}") from None
