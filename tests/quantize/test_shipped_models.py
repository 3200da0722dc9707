"""The ResNet-20 programs that the repository ships: size, structure, and accuracy with torch."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchao")

from PIL import Image  # noqa: E402

from tvm_q4.quantize import load_program  # noqa: E402

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
INNER = {"resnet20_w8a8.pt2": ((0, 255), (-127, 127)), "resnet20_w4a4.pt2": ((0, 15), (-7, 7))}
aten, Q = torch.ops.aten, torch.ops.quantized_decomposed


def normalised(images):
    x = torch.from_numpy(images).float() / 255.0
    return ((x - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2)


def correct(program, images, labels, batch=250):
    module, count = program.module(), 0
    with torch.no_grad():
        for start in range(0, len(labels), batch):
            logits = module(normalised(images[start : start + batch]))
            count += int((logits.argmax(1).numpy() == labels[start : start + batch]).sum())
    return count


@pytest.fixture(scope="module", params=sorted(INNER))
def shipped(request):
    return request.param, *load_program(EXAMPLES / "models" / request.param)


def test_all_programs_together_are_under_three_megabytes():
    sizes = [path.stat().st_size for path in (EXAMPLES / "models").glob("*.pt2")]
    assert len(sizes) >= 2
    assert sum(sizes) < 3_000_000


def test_metadata_names_transform_and_classes(shipped):
    _, _, metadata = shipped
    assert metadata["name"] == "resnet20"
    assert metadata["transform"] == "cifar10"
    assert metadata["classes"] == (EXAMPLES / "data" / "classes.txt").read_text().split()


def test_every_convolution_and_linear_layer_is_quantized(shipped):
    name, program, _ = shipped
    nodes = [n for n in program.graph.nodes if n.op == "call_function"]
    layers = [n for n in nodes if n.target in (aten.conv2d.default, aten.linear.default)]
    assert len(layers) == 22
    for node in layers[1:-1]:
        source, weight = node.args[:2]
        assert source.target is Q.dequantize_per_tensor.default
        assert weight.target is Q.dequantize_per_channel.default
        assert (tuple(source.args[3:5]), tuple(weight.args[4:6])) == INNER[name]
    for node, expected in ((layers[0], (-128, 127)), (layers[-1], (0, 255))):
        assert tuple(node.args[0].args[3:5]) == expected
        assert tuple(node.args[1].args[4:6]) == (-127, 127)


def test_shipped_images_are_classified(shipped):
    _, program, _ = shipped
    rows = [
        line.split("\t") for line in (EXAMPLES / "data/labels.tsv").read_text().splitlines()[1:]
    ]
    images = np.stack([np.asarray(Image.open(EXAMPLES / "data/images" / row[0])) for row in rows])
    labels = np.array([int(row[1]) for row in rows])
    assert images.shape == (36, 32, 32, 3)
    assert correct(program, images, labels) >= 30


@pytest.mark.slow
def test_loss_of_accuracy_against_the_float_parent(data_dir):
    with np.load(data_dir("cifar10", "test_a.npz")) as file:
        images, labels = file["x"], file["y"]
    counts = {
        path.stem: correct(load_program(path)[0], images, labels)
        for path in (EXAMPLES / "models").glob("*.pt2")
    }
    parent = counts["resnet20_float"]
    assert parent >= 0.88 * len(labels)
    assert counts["resnet20_w8a8"] >= parent - 0.005 * len(labels)
    assert counts["resnet20_w4a4"] >= parent - 0.020 * len(labels)
