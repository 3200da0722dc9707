"""Saving and loading `.pt2` programs with their metadata; lazy imports of the package."""

import re
import subprocess
import sys
import zipfile

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchao")

from torch import nn  # noqa: E402

from tvm_q4.errors import InputError  # noqa: E402
from tvm_q4.models.resnet_cifar import CifarResNet  # noqa: E402
from tvm_q4.quantize import load_program, quantize_ptq, save_program  # noqa: E402


@pytest.fixture(scope="module")
def program():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    return quantize_ptq(model, (x,), [x], "uniform8")


def test_round_trip_keeps_the_function_and_the_metadata(program, tmp_path):
    path = tmp_path / "net.pt2"
    metadata = {"name": "net", "transform": "cifar10", "classes": ["a", "b"]}
    save_program(program, path, metadata)
    assert [p.name for p in tmp_path.iterdir()] == ["net.pt2"]
    loaded, read = load_program(path)
    assert read == metadata
    x = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(loaded.module()(x), program.module()(x))


def test_saved_file_tells_no_folders_and_is_the_same_each_time(tmp_path):
    contents = []
    for name in ("a", "b"):
        torch.manual_seed(0)
        x = torch.randn(2, 3, 8, 8)
        model = CifarResNet(8).eval()
        folder = tmp_path / name
        folder.mkdir()
        save_program(
            quantize_ptq(model, (x,), [x], "uniform4"), folder / "net.pt2", {"name": "net"}
        )
        with zipfile.ZipFile(folder / "net.pt2") as file:
            contents.append({n: file.read(n) for n in file.namelist()})
    graph = contents[0]["net/models/model.json"].decode()
    assert "conv.py" in graph
    assert re.findall(r'File ..?(/[^"]*)', graph) == []
    assert contents[0] == contents[1]


def test_program_without_metadata(program, tmp_path):
    torch.export.save(program, tmp_path / "net.pt2")
    assert load_program(tmp_path / "net.pt2")[1] == {}


def test_bad_output_paths(program, tmp_path):
    with pytest.raises(InputError, match=r"must end in \.pt2"):
        save_program(program, tmp_path / "net.bin")
    with pytest.raises(InputError, match="cannot be written"):
        save_program(program, tmp_path / "missing" / "net.pt2")
    assert not list(tmp_path.iterdir())


def test_files_that_are_no_programs(program, tmp_path):
    path = tmp_path / "net.pt2"
    with pytest.raises(InputError, match="cannot be read"):
        load_program(path)
    path.write_text("hello")
    with pytest.raises(InputError, match=r"is not a \.pt2 file"):
        load_program(path)
    save_program(program, path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"torch\.export program"):
        load_program(path)


def test_importing_the_package_does_not_import_torch():
    code = (
        "import sys, tvm_q4.quantize as q; q.load_bit_config('w4a8'); print('torch' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"
