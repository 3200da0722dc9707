"""From a float model and images to a quantized model file (`quantize_model`)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from tvm_q4.data import open_data
from tvm_q4.errors import InputError
from tvm_q4.inspection import inspect
from tvm_q4.quantize.config import BitConfig, load_bit_config
from tvm_q4.quantize.float_model import load_float_model
from tvm_q4.quantize.program import save_program
from tvm_q4.quantize.ptq import quantize_ptq
from tvm_q4.quantize.qat import Method
from tvm_q4.quantize.samples import batch_size_of, checked_count, in_batches, spread
from tvm_q4.quantize.training import EpochResult, TrainingOptions, train_qat
from tvm_q4.quantize.training.checkpoint import checkpoint_path
from tvm_q4.quantize.training.distributed import is_main_process
from tvm_q4.transforms import Transform


def quantize_model(
    model: str | Path,
    output: str | Path,
    *,
    config: str | Path | Mapping[str, Any] | BitConfig,
    calibrate: str | Path,
    samples: int = 512,
    batch_size: int = 64,
    transform: str | Mapping[str, Any] | Transform | None = None,
    classes: str | Path | None = None,
    residual_bits: int = 8,
    post_training: Mapping[str, Any] | None = None,
    train: str | Path | None = None,
    method: Method = "lsq",
    training: TrainingOptions | None = None,
    workdir: str | Path | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> dict[str, Any] | None:
    """Quantize a float model, after training or by training it on, and write a ``.pt2`` file.

    The file keeps the float model's input transform and class names. Started by ``torchrun``,
    training is data parallel and the first process writes the file.

    Parameters
    ----------
    model : str or Path
        A float ``.pt2`` file or ``zoo:NAME``.
    output : str or Path
        The ``.pt2`` file to write.
    config : str, Path, mapping or BitConfig
        Bits by layer: a preset's name, a JSON file, or the config itself.
    calibrate : str or Path
        Images from which the first scales come: a DATA argument (see `tvm_q4.data.open_data`).
    samples : int
        How many of them, spread evenly over the data.
    batch_size : int
        Images a step, in calibration and in training.
    transform, classes
        As for `tvm_q4.data.open_data`; the transform is the one that the model names where None.
    residual_bits : int
        Bits of the residual stream: 4, 8 or 16.
    post_training : mapping, optional
        Further arguments of `quantize_ptq`: ``rounding``, ``equalize``, ``bias_correction``, ...
    train : str or Path, optional
        Labelled images, a DATA argument: quantization-aware training instead of post-training.
    method : {"lsq", "fake-quantize"}
        How scales are found in training; see `prepare_qat`.
    training : TrainingOptions, optional
        Its ``batch_size`` and ``seed`` are replaced by those given here.
    workdir : str or Path, optional
        Folder of the training's checkpoint, which stays there. Without it, the checkpoint stands
        beside `output` until that is written. Either way the same call goes on where it stopped.
    seed : int
        Seed of everything random.
    progress : bool, optional
        See `tvm_q4.progress.ProgressBar`.

    Returns
    -------
    dict or None
        ``path``; ``method`` ("post-training", "lsq" or "fake-quantize"); ``layers`` and
        ``float_ops`` as `tvm_q4.inspect` gives them; ``bits`` (weight and activation bits by
        layer); ``calibration`` (``n`` images); ``training`` (results by epoch, None after
        post-training); ``seconds``. None in processes of ``torchrun`` other than the first.

    Raises
    ------
    InputError
        If the model is quantized already, the data does not fit or has too few images, the config
        names a layer that is not there, or an argument is for the other way of quantizing.
    UnsupportedError
        If the model cannot be quantized or its quantized form not be compiled.
    """
    start = time.perf_counter()
    output = _checked_output(output)
    bits = load_bit_config(config)
    _check_way(train, post_training, training)
    source = load_float_model(model, seed)
    batch_size = batch_size_of(source, batch_size)
    chosen = transform if transform is not None else source.metadata.get("transform")
    images = open_data(calibrate, source.input, transform=chosen, classes=classes)
    samples = checked_count(samples, images, source, calibrate, "samples")
    index = spread(samples, images.count)
    batches = [torch.from_numpy(images.take(part)) for part in in_batches(index, batch_size)]
    history: list[EpochResult] | None = None
    checkpoint: Path | None = None
    if train is None:
        program = quantize_ptq(
            source.program, source.example, batches, bits,
            residual_bits=residual_bits, seed=seed, progress=progress, **(post_training or {}),
        )  # fmt: skip
    else:
        labelled = open_data(train, source.input, transform=chosen, classes=classes)
        options = replace(training or TrainingOptions(), batch_size=batch_size, seed=seed)
        checkpoint = checkpoint_path(output, workdir)
        program, history = train_qat(
            source.program, source.example, batches, labelled, bits, options, method=method,
            residual_bits=residual_bits, checkpoint=checkpoint, progress=progress,
        )  # fmt: skip
    if not is_main_process():
        return None
    save_program(program, output, source.metadata)
    if checkpoint is not None and workdir is None:
        checkpoint.unlink(missing_ok=True)
    return {
        "path": str(output),
        "method": "post-training" if train is None else method,
        **_layers(output),
        "calibration": {"n": samples},
        "training": None if history is None else [asdict(result) for result in history],
        "seconds": time.perf_counter() - start,
    }


def _layers(path: Path) -> dict[str, Any]:
    """Return what the written file holds, as the compiler sees it."""
    metadata = inspect(path)["metadata"]
    bits = {
        x["name"]: {"weight": x["weight_bits"], "activation": x["activation_bits"]}
        for x in metadata["layers"]
    }
    return {"layers": metadata["layers"], "float_ops": metadata["float_ops"], "bits": bits}


def _checked_output(output: str | Path) -> Path:
    """Find out now, and not after an hour, that the result could not be written."""
    path = Path(output)
    if path.suffix != ".pt2":
        raise InputError(f"output path '{path}' must end in .pt2")
    if not path.parent.is_dir():
        raise InputError(f"output path '{path}': folder '{path.parent}' does not exist; make it")
    return path


def _check_way(
    train: str | Path | None,
    post_training: Mapping[str, Any] | None,
    training: TrainingOptions | None,
) -> None:
    if train is not None and post_training:
        names = ", ".join(post_training)
        raise InputError(f"{names}: for post-training quantization only; leave out with train data")
    if train is None and training is not None:
        raise InputError("training options are given, but no train data; give labelled images")
