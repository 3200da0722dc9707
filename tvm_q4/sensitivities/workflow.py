"""From a float model and images to a layer table with sensitivities (`sensitivity`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from tvm_q4.data import Dataset, open_data
from tvm_q4.errors import InputError
from tvm_q4.layer_table import LayerTable
from tvm_q4.quantize.float_model import load_float_model
from tvm_q4.quantize.samples import batch_size_of, checked_count, in_batches, spread
from tvm_q4.quantize.training.checkpoint import checkpoint_path, digest
from tvm_q4.quantize.training.recipe import check_labels
from tvm_q4.sensitivities.fisher import FisherMetric
from tvm_q4.sensitivities.hessian import HessianMetric
from tvm_q4.sensitivities.metric import Metric
from tvm_q4.sensitivities.network import FloatNetwork
from tvm_q4.sensitivities.output_mse import OutputMseMetric
from tvm_q4.sensitivities.sampling import Batch, draw_samples
from tvm_q4.sensitivities.table import effect_of_activations, rows
from tvm_q4.sensitivities.traces import ESTIMATORS
from tvm_q4.transforms import Transform

METRICS = ("hessian", "output-mse", "fisher")
LABELS = ("data", "model")


def sensitivity(
    model: str | Path,
    data: str | Path,
    *,
    metric: Literal["hessian", "output-mse", "fisher"] = "hessian",
    activations: bool = False,
    labels: Literal["data", "model"] = "data",
    images: int = 512,
    batch_size: int = 32,
    estimator: Literal["gauss-newton", "hessian-vector"] = "gauss-newton",
    probes: int = 100,
    tolerance: float = 0.1,
    transform: str | Mapping[str, Any] | Transform | None = None,
    classes: str | Path | None = None,
    seed: int = 0,
    workdir: str | Path | None = None,
    output: str | Path | None = None,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Tell how much the layers of a float network suffer from 4 and from 8 bits, as a layer table.

    Weights are quantized to the nearest as `tvm_q4.quantize_model` does it, per output channel,
    batch normalisation folded; inputs likewise, per tensor. The values of one metric compare with
    each other and not with those of another metric.

    Parameters
    ----------
    model : str or Path
        A float ``.pt2`` file or ``zoo:NAME``.
    data : str or Path
        Images, a DATA argument (see `tvm_q4.data.open_data`); with labels for "fisher" and for
        "hessian" by Hessian-vector products.
    metric : {"hessian", "output-mse", "fisher"}
        "hessian": mean Hessian trace of the loss times squared quantization error (HAWQ-V2, arXiv
        1911.03852, and HAWQ-V3, arXiv 2011.10680; `tvm_q4.sensitivities.hessian`). "fisher": the
        same with the diagonal of the empirical Fisher information, element by element
        (`tvm_q4.sensitivities.fisher`). "output-mse": the squared error of the layer's output
        (`tvm_q4.sensitivities.output_mse`).
    activations : bool
        Whether the error of a layer's quantized input counts too; else that of its weights alone.
    labels : {"data", "model"}
        Whose classes the loss is taken for: the data's, or those that the float model predicts.
    images : int
        How many, spread evenly over the data.
    batch_size : int
        Images a step.
    estimator : {"gauss-newton", "hessian-vector"}
        "hessian": how traces are estimated. "hessian-vector" differentiates twice; "gauss-newton"
        gives the same trace wherever the logits are piecewise linear in one layer's weights, as
        they are with ReLUs, some fifty times faster (`tvm_q4.sensitivities.traces`).
    probes : int
        "hessian": the most random vectors for each batch.
    tolerance : float
        "hessian": no further vectors are drawn when, over at least five, every trace's standard
        error is within this share of the trace.
    transform, classes
        As for `tvm_q4.data.open_data`; the transform is the one that the model names where None.
    seed : int
        Seed of the random vectors, and of the weights of ``zoo:`` models.
    workdir : str or Path, optional
        Folder of the checkpoint, which stays there. Without it, the checkpoint stands beside
        `output` until that is written. Either way the same call goes on where it stopped, and
        gives bit for bit what an uninterrupted one does.
    output : str or Path, optional
        File for the table, ending in ``.json``.
    progress : bool, optional
        See `tvm_q4.progress.ProgressBar`.

    Returns
    -------
    dict
        A layer table. Its rows have ``name``, ``params``, ``macs`` (of one image), ``fixed`` where
        the layer stays at 8 bit, ``sensitivity`` by precision, ``standard_error`` of it
        ("hessian": over random vectors, else over images), and with "hessian" ``hessian``: mean
        trace, its standard error and squared errors, of the weight and of the input. ``tied``
        are layers that read one tensor; ``details`` tell what was done; ``activations`` tells how
        the order of layers changes through them.

    Raises
    ------
    InputError
        If the model is quantized, the data does not fit or has too few images or no labels, an
        argument is out of range, or a checkpoint is of other settings.
    UnsupportedError
        If the model cannot be quantized.
    """
    _check(metric, labels, estimator, images, probes, tolerance)
    output = None if output is None else _checked_output(output)
    source = load_float_model(model, seed)
    batch_size = batch_size_of(source, batch_size)
    chosen = transform if transform is not None else source.metadata.get("transform")
    found = open_data(data, source.input, transform=chosen, classes=classes)
    images = checked_count(images, found, source, data, "images")
    labelled = metric == "fisher" or (metric, estimator) == ("hessian", "hessian-vector")
    if labelled and labels == "data" and found.labels is None:
        msg = f"data '{data}' has no labels, which {metric} needs; add y"
        raise InputError(f"{msg}, let the model give them (labels model), or use output-mse")
    network = FloatNetwork(source.program, source.example)
    if metric != "output-mse":
        used = found.labels if labelled and labels == "data" else None
        check_labels(network.run, source.example, used, f"data '{data}'")
    batches = _batches(found, images, batch_size)
    network.calibrate([x for x, _ in batches])
    if labelled and labels == "model":
        batches = [(x, network.run(x).argmax(1)) for x, _ in batches]
    judge = _metric(metric, network, batches, activations, estimator, tolerance)
    details: dict[str, Any] = {
        "activations": activations, "images": images, "batch_size": batch_size, "seed": seed,
    }  # fmt: skip
    details |= {"labels": labels} if labelled else {}
    details |= {} if judge.per_image else {"estimator": estimator, "tolerance": tolerance}
    checkpoint = None
    if output is not None or workdir is not None:
        checkpoint = checkpoint_path(output or Path(), workdir)
    samples = draw_samples(
        judge, batches, passes=1 if judge.per_image else probes, seed=seed, checkpoint=checkpoint,
        settings=_settings(network, batches, {"metric": metric, "probes": probes, **details}),
        progress=progress,
    )  # fmt: skip
    if not judge.per_image:
        details |= {"probes": len(samples), "within_tolerance": judge.enough(samples)}
    effect = effect_of_activations(network, judge, samples)
    table = LayerTable(
        rows(network, judge, samples),
        tuple(tuple(names) for names in network.ties()),
        network=source.metadata["name"],
        extra={"metric": metric, "details": details, **({"activations": effect} if effect else {})},
    )
    if output is not None:
        table.write(output)
        if checkpoint is not None and workdir is None:
            checkpoint.unlink(missing_ok=True)
    return table.to_dict()


def _check(
    metric: str, labels: str, estimator: str, images: int, probes: int, tolerance: float
) -> None:
    choices = (
        ("metric", metric, METRICS),
        ("labels", labels, LABELS),
        ("estimator", estimator, ESTIMATORS),
    )
    for name, value, known in choices:
        if value not in known:
            raise InputError(f"{name} is {value!r}; use one of {', '.join(known)}")
    for name, count in (("images", images), ("probes", probes)):
        if count < 2:
            raise InputError(f"{name} is {count}; a standard error needs at least 2")
    if not 0 <= tolerance < 1:
        raise InputError(f"tolerance is {tolerance}; it is a share, from 0 to below 1")


def _checked_output(output: str | Path) -> Path:
    """Find out now, and not after minutes, that the table could not be written."""
    path = Path(output)
    if path.suffix != ".json":
        raise InputError(f"output path '{path}' must end in .json")
    if not path.parent.is_dir():
        raise InputError(f"output path '{path}': folder '{path.parent}' does not exist; make it")
    return path


def _batches(found: Dataset, images: int, batch_size: int) -> list[Batch]:
    """Return images spread evenly over the data, and their labels where there are any."""
    batches = []
    for index in in_batches(spread(images, found.count), batch_size):
        labels = np.zeros(0, np.int64) if found.labels is None else found.labels[index]
        batches.append((torch.from_numpy(found.take(index)), torch.from_numpy(labels)))
    return batches


def _settings(
    network: FloatNetwork, batches: list[Batch], options: dict[str, Any]
) -> dict[str, Any]:
    """Return all that samples depend on."""
    weights = {layer.name: layer.weight for layer in network.layers}
    data = {f"{k}{i}": part for i, batch in enumerate(batches) for k, part in enumerate(batch)}
    model, images = digest(weights), digest(data)
    return {"work": "sensitivity", **options, "model": model, "data": images}


def _metric(
    name: str,
    network: FloatNetwork,
    batches: list[Batch],
    activations: bool,
    estimator: str,
    tolerance: float,
) -> Metric:
    if name == "hessian":
        images = (x for x, _ in batches)
        return HessianMetric(network, images, activations, estimator, tolerance)
    if name == "fisher":
        return FisherMetric(network, activations)
    return OutputMseMetric(network, activations)
