"""Write a float ResNet-20 for CIFAR-10 as a ``.pt2`` file, from published weights.

    pip install safetensors
    python examples/quantize/make_resnet20.py --weights resnet20.safetensors -o resnet20.pt2

The weights are those of akamaster/pytorch_resnet_cifar10 (``resnet20-12fca82f.th``, 91.73 % on the
10,000 test images) as a safetensors file with ``module.`` stripped from the names. The input
transform (ImageNet's mean and standard deviation, as the authors trained) and the class names go
into the file.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from tvm_q4.models.resnet_cifar import CifarResNet, resnet20
from tvm_q4.quantize import save_program
from tvm_q4.transforms import TRANSFORMS

sys.path.append(str(Path(__file__).resolve().parents[1]))

from resnet20.data import CLASSES

TRANSFORM = {
    "name": "resnet20-cifar10",
    "mean": list(TRANSFORMS["imagenet"].mean),
    "std": list(TRANSFORMS["imagenet"].std),
}


def load_network(weights: Path) -> CifarResNet:
    """Return the network in evaluation mode: "option A" shortcuts, the last layer named ``fc``."""
    state = {key.replace("linear.", "fc."): value for key, value in load_file(weights).items()}
    network = resnet20("A")
    missing, unexpected = network.load_state_dict(state, strict=False)
    if unexpected or any(not key.endswith("num_batches_tracked") for key in missing):
        msg = f"{weights} is not that ResNet-20: missing {missing}, unexpected {unexpected}"
        raise SystemExit(msg)
    return network.eval()


def main() -> None:
    """Parse the arguments and write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, required=True, help="resnet20.safetensors")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the .pt2 file")
    args = parser.parse_args()
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(
        load_network(args.weights), (torch.zeros(2, 3, 32, 32),), dynamic_shapes=({0: batch},)
    )
    facts = {"name": "resnet20-cifar10", "transform": TRANSFORM, "classes": list(CLASSES)}
    save_program(program, args.output, facts)


if __name__ == "__main__":
    main()
