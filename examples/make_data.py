"""Write `examples/data`: the first 36 CIFAR-10 test images as PNG files, with their labels."""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image
from resnet20.data import CLASSES, load_cifar10

COUNT = 36


def main() -> None:
    """Parse the arguments and write images, labels and class names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", type=Path, required=True, help="unpacked npm package, or npz folder"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data")
    args = parser.parse_args()
    _, test = load_cifar10(args.data)
    (args.out / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for index in range(COUNT):
        name = f"test_{index:05d}.png"
        Image.fromarray(test.x[index].numpy()).save(args.out / "images" / name, optimize=True)
        label = int(test.y[index])
        lines.append(f"{name}\t{label}\t{CLASSES[label]}\n")
    (args.out / "labels.tsv").write_text("file\tclass_index\tname\n" + "".join(lines))
    (args.out / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))


if __name__ == "__main__":
    main()
