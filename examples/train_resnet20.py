"""Train ResNet-20 on CIFAR-10 from scratch: ``python examples/train_resnet20.py float --data DIR``."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from resnet20.data import load_cifar10, load_npz
from resnet20.training import Recipe, Trainer, count_correct

from tvm_q4.models.resnet_cifar import resnet20

FLOAT = Recipe(epochs=24, peak_lr=0.3)


def train_float(args: argparse.Namespace) -> None:
    """Train the float parent and print its accuracy."""
    torch.manual_seed(args.seed)
    train, test = load_cifar10(args.data)
    if args.test:
        test = load_npz(args.test)
    model = resnet20().train().to(memory_format=torch.channels_last)
    args.out.mkdir(parents=True, exist_ok=True)
    Trainer(model, train, FLOAT, args.out / "float.pt", args.seed).run()
    correct = count_correct(model.eval(), test)
    print(f"float: {correct} of {len(test)} test images ({correct / len(test):.4f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=["float"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--test", type=Path)
    parser.add_argument("--out", type=Path, default=Path("out/resnet20"))
    parser.add_argument("--seed", type=int, default=0)
    train_float(parser.parse_args())


if __name__ == "__main__":
    main()
