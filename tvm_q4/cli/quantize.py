"""``tvm-q4 quantize``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tvm_q4.cli.params import COUNT, PATH
from tvm_q4.cli.verb import Options, verb

if TYPE_CHECKING:
    from rich.console import Console

_POST_TRAINING = (
    "weight_observer", "activation_observer", "rounding", "equalize", "bias_correction",
)  # fmt: skip
_TRAINING = (
    "epochs", "learning_rate", "schedule", "weight_decay", "augment", "distill", "temperature",
    "device", "workers",
)  # fmt: skip
_EQUALIZE: dict[str, Any] = {"auto": "auto", "on": True, "off": False}


@verb(
    "quantize",
    example="""
    tvm-q4 quantize model.pt2 --config uniform8 --calibrate images.npz -o model_w8a8.pt2
    tvm-q4 quantize model.pt2 --config uniform4 --calibrate train.npz --train train.npz -o q4.pt2
    torchrun --nproc-per-node 2 -m tvm_q4 quantize model.pt2 --config uniform4 ...
    """,
)
@click.argument("model")
@click.option(
    "--config", required=True, metavar="CONFIG", help="uniform8, uniform4, w4a8 or a JSON file."
)
@click.option("--calibrate", type=PATH, required=True, metavar="DATA", help="Typical images.")
@click.option("--samples", type=COUNT, default=512, show_default=True, help="How many of them.")
@click.option("--batch-size", type=COUNT, default=64, show_default=True, help="Images a step.")
@click.option(
    "--transform",
    metavar="NAME",
    help="For images: imagenet, cifar10 or JSON; else the one that the model states.",
)
@click.option("--classes", type=PATH, metavar="FILE", help="Class names in order, one a line.")
@click.option(
    "--residual-bits",
    type=click.Choice(["4", "8", "16"]),
    default="8",
    show_default=True,
    help="Bits of the residual stream.",
)
@click.option(
    "--weight-observer",
    type=click.Choice(["mse", "minmax"]),
    help="Post-training: how weights' scales are chosen.  [default: mse]",
)
@click.option(
    "--activation-observer",
    type=click.Choice(["mse", "percentile", "minmax"]),
    help="Post-training: how activations' scales are chosen.  [default: mse]",
)
@click.option(
    "--rounding",
    type=click.Choice(["nearest", "adaround"]),
    help="Post-training: how 4-bit weights are rounded; adaround takes minutes and is better."
    "  [default: nearest]",
)
@click.option(
    "--equalize",
    type=click.Choice(list(_EQUALIZE)),
    help="Post-training: equalize channels across layers.  [default: off]",
)
@click.option(
    "--bias-correction/--no-bias-correction",
    default=None,
    help="Post-training: correct the mean of each channel.  [default: yes]",
)
@click.option(
    "--train", type=PATH, metavar="DATA", help="Labelled images: quantization-aware training."
)
@click.option(
    "--method",
    type=click.Choice(["lsq", "fake-quantize"]),
    help="Training: learned scales, or observed ranges.  [default: lsq]",
)
@click.option("--epochs", type=COUNT, help="Training: passes over the images.  [default: 2]")
@click.option("--learning-rate", type=float, help="Training: the highest.  [default: 3e-4]")
@click.option(
    "--schedule",
    type=click.Choice(["one-cycle", "cosine"]),
    help="Training: of the learning rate.  [default: one-cycle]",
)
@click.option("--weight-decay", type=float, help="Training: on weights only.  [default: 5e-5]")
@click.option(
    "--augment",
    type=click.Choice(["crop-flip", "flip", "none"]),
    help="Training: random changes of images.  [default: crop-flip]",
)
@click.option(
    "--distill",
    type=click.FloatRange(0, 1),
    metavar="SHARE",
    help="Training: share of the loss that comes from the float model.  [default: 0]",
)
@click.option("--temperature", type=float, help="Training: of that part.  [default: 4]")
@click.option("--device", help="Training: auto, cpu, cuda or cuda:INDEX.  [default: auto]")
@click.option("--workers", type=click.IntRange(0), help="Training: processes that read images.")
@click.option(
    "--workdir",
    type=PATH,
    metavar="DIR",
    help="Training: folder of the checkpoint, from which the same command goes on.",
)
@click.option("-o", "--output", type=PATH, required=True, metavar="OUT.pt2", help="File to write.")
def command(
    options: Options,
    *,
    model: str,
    output: Path,
    residual_bits: str,
    train: Path | None,
    method: str | None,
    workdir: Path | None,
    **arguments: Any,
) -> None:
    """Quantize MODEL, a float .pt2 file or zoo:NAME, to the bits of CONFIG.

    After training from a few images, or with --train by training it on.
    """
    import tvm_q4

    post_training = _given(arguments, _POST_TRAINING)
    if "equalize" in post_training:
        post_training["equalize"] = _EQUALIZE[post_training["equalize"]]
    hyper = _given(arguments, _TRAINING)
    if train is None:
        for name in (*hyper, *(n for n, v in (("method", method), ("workdir", workdir)) if v)):
            flag = name.replace("_", "-")
            raise click.UsageError(f"--{flag} is for training; give --train DATA")
    report = tvm_q4.quantize_model(
        model,
        output,
        residual_bits=int(residual_bits),
        post_training=post_training or None,
        train=train,
        method=method or "lsq",
        training=_training_options(hyper) if train is not None else None,
        workdir=workdir,
        seed=options.seed,
        **arguments,
    )
    if report is not None:
        options.emit(report, lambda console: _show(console, report))


def _training_options(hyper: dict[str, Any]) -> Any:
    from tvm_q4.quantize import TrainingOptions

    return TrainingOptions(**hyper)


def _given(arguments: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Take the options `names` out of `arguments`; return those that the user gave."""
    values = {name: arguments.pop(name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _show(console: Console, report: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("layer", "kind", "bits"):
        table.add_column(name)
    table.add_column("params", justify="right")
    for layer in report["layers"]:
        pair = f"W{layer['weight_bits']}A{layer['activation_bits']}"
        table.add_row(layer["name"], layer["op"], pair, f"{layer['params']:,}")
    console.print(table)
    for epoch in report["training"] or ():
        text = f"epoch {epoch['epoch']}: loss {epoch['loss']:.4f}, {epoch['accuracy']:.2%} right"
        console.print(f"{text} of augmented images, {epoch['seconds']:.0f} s")
    if report["float_ops"]:
        console.print(f"{len(report['float_ops'])} operators stay float; see tvm-q4 inspect")
    how = f"{report['method']}, {report['calibration']['n']} calibration images"
    console.print(f"{report['path']}: {how}, {report['seconds']:.0f} s", soft_wrap=True)
