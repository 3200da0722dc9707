"""Bad input: one line that begins with ``error: ``, exit code 2, and nothing half-written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import Tool
from tvm_q4.library import SECTION

pytestmark = pytest.mark.usefixtures("tool")


def assert_nothing_in(folder: Path) -> None:
    assert list(folder.iterdir()) == []


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An empty folder for outputs."""
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def test_a_missing_model(tool: Tool, out: Path) -> None:
    line = tool("compile", "missing.pt2", "-o", out / "x.so").refused()
    assert "'missing.pt2' does not exist" in line
    assert_nothing_in(out)


def test_a_file_that_is_no_pt2(tool: Tool, out: Path, tmp_path: Path) -> None:
    model = tmp_path / "notes.pt2"
    model.write_text("This is not an archive.\n" * 100)
    assert "notes.pt2" in tool("compile", model, "-o", out / "x.so").refused()
    assert_nothing_in(out)


@pytest.mark.parametrize("keep", [0, 100, 0.5, -1])
def test_a_truncated_pt2(tool: Tool, out: Path, tmp_path: Path, pt2: Path, keep: float) -> None:
    data = pt2.read_bytes()
    model = tmp_path / "half.pt2"
    model.write_bytes(data[: int(len(data) * keep) if 0 < keep < 1 else int(keep)])
    assert "half.pt2" in tool("compile", model, "-o", out / "x.so").refused()
    assert_nothing_in(out)


def test_a_pt2_without_quantization(tool: Tool, out: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from tests.frontend.graphs import export

    model = tmp_path / "float.pt2"
    torch.export.save(export(torch.nn.Conv2d(3, 4, 3), 1, 3, 8, 8), model)
    assert "quantiz" in tool("compile", model, "-o", out / "x.so").refused()
    assert_nothing_in(out)


def test_an_unsupported_operator(tool: Tool, out: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from tests.frontend.graphs import Lambda, export, fake_quantized

    net = Lambda(lambda _, x: torch.erf(fake_quantized(x, 0.1, -8, 7)))
    model = tmp_path / "erf.pt2"
    torch.export.save(export(net, 1, 3, 8, 8), model)
    line = tool("compile", model, "-o", out / "x.so").refused()
    assert "aten.erf.default" in line
    assert_nothing_in(out)


@pytest.mark.parametrize(
    "target",
    [
        "nvidia/nvidia-t1000000",
        "nonsense",
        "{",
        '{"kind": "nonsense"}',
        '{"mcpu": "znver4"}',
        "",
        "[1]",
    ],
)
def test_a_target_that_does_not_exist(tool: Tool, out: Path, pt2: Path, target: str) -> None:
    line = tool("compile", pt2, "--target", target, "-o", out / "x.so").refused()
    assert "target" in line
    assert_nothing_in(out)


def test_a_cpu_that_does_not_exist(tool: Tool, out: Path, pt2: Path) -> None:
    target = '{"kind": "llvm", "mcpu": "abacus"}'
    assert "'abacus'" in tool("compile", pt2, "--target", target, "-o", out / "x.so").refused()
    assert_nothing_in(out)


def test_an_output_in_a_folder_that_does_not_exist(tool: Tool, out: Path, pt2: Path) -> None:
    line = tool("compile", pt2, "-o", out / "deep" / "x.so").refused()
    assert "cannot be written" in line
    assert_nothing_in(out)


def test_an_output_that_is_a_folder(tool: Tool, out: Path, pt2: Path) -> None:
    (out / "x.so").mkdir()
    assert "not a regular file" in tool("compile", pt2, "-o", out / "x.so").refused()
    assert_nothing_in(out / "x.so")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs Linux's /proc")
def test_an_output_folder_that_takes_no_files(tool: Tool, pt2: Path) -> None:
    assert "cannot be written" in tool("compile", pt2, "-o", "/proc/self/x.so").refused()


def test_a_failed_compile_keeps_the_old_library(tool: Tool, out: Path) -> None:
    old = out / "x.so"
    old.write_bytes(b"old")
    tool("compile", "missing.pt2", "-o", old).refused()
    assert old.read_bytes() == b"old"
    assert [p.name for p in out.iterdir()] == ["x.so"]


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((1, 3, 9, 8), np.float32), "float32 [1, 3, 9, 8]"),
        (np.zeros((3, 8, 9), np.float32), "float32 [3, 8, 9]"),
        (np.zeros((0, 3, 8, 9), np.float32), "no images"),
        (np.zeros((1, 3, 8, 9), np.float64), "float64"),
        (np.zeros((1, 3, 8, 9), np.uint8), "uint8"),
        (np.full((1, 3, 8, 9), np.nan, np.float32), "NaN"),
        (np.array(["a"]), "<U1"),
    ],
)
def test_an_input_of_wrong_shape_or_dtype(
    tool: Tool, library: Path, out: Path, array: np.ndarray, said: str
) -> None:
    np.save(out.parent / "x.npy", array)
    arguments = ("run", library, "--input", out.parent / "x.npy", "--output", out / "y.npy")
    assert said in tool(*arguments).refused()
    assert_nothing_in(out)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00", b"text"])
def test_an_input_that_is_no_array(tool: Tool, library: Path, out: Path, content: bytes) -> None:
    path = out.parent / "x.npy"
    path.write_bytes(content)
    assert "x.npy" in tool("run", library, "--input", path).refused()


def test_an_input_with_objects_is_not_unpickled(tool: Tool, library: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{}]), allow_pickle=True)
    assert "x.npy" in tool("run", library, "--input", tmp_path / "x.npy").refused()


def test_an_image_that_is_none(tool: Tool, library: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(b"text")
    assert "x.png" in tool("run", library, "--image", path).refused()


def test_a_result_that_cannot_be_written(tool: Tool, library: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 8, 9), np.float32))
    arguments = (
        "run",
        library,
        "--input",
        tmp_path / "x.npy",
        "--output",
        tmp_path / "no" / "y.npy",
    )
    assert "y.npy" in tool(*arguments).refused()


def of_version(library: Path, version: int, folder: Path) -> Path:
    """A copy of a library whose metadata states another format version."""
    data = library.read_bytes()
    old = b'"format":"tvm-q4/library","version":1'
    assert data.count(old) == 1, f"the metadata in {SECTION} changed its form"
    copy = folder / "other.so"
    copy.write_bytes(data.replace(old, old[:-1] + str(version).encode()))
    return copy


VERBS = [
    ("run", "--input", "x.npy"),
    ("verify", "m.pt2"),
    ("evaluate", "--data", "d"),
    ("bench",),
    ("inspect",),
]


@pytest.mark.parametrize("verb", VERBS, ids=[v[0] for v in VERBS])
def test_a_library_of_another_format_version(
    tool: Tool, library: Path, pt2: Path, tmp_path: Path, verb: tuple[str, ...]
) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 8, 9), np.float32))
    np.savez(tmp_path / "d.npz", x=np.zeros((1, 3, 8, 9), np.float32), y=np.zeros(1, np.int64))
    files = {"x.npy": tmp_path / "x.npy", "m.pt2": pt2, "d": tmp_path / "d.npz"}
    other = of_version(library, 7, tmp_path)
    name, *rest = verb
    line = tool(name, other, *(files.get(a, a) for a in rest)).refused()
    assert "version 7" in line and "version 1" in line


@pytest.mark.parametrize("verb", ["bench", "inspect"])
def test_a_library_that_is_none(tool: Tool, library: Path, tmp_path: Path, verb: str) -> None:
    text, cut = tmp_path / "text.so", tmp_path / "cut.so"
    text.write_text("not a library")
    cut.write_bytes(library.read_bytes()[:5000])
    assert "text.so" in tool(verb, text).refused()
    assert "cut.so" in tool(verb, cut).refused()
    assert "missing.so" in tool(verb, tmp_path / "missing.so").refused()


def test_a_shared_object_of_others(tool: Tool, tmp_path: Path) -> None:
    import importlib.util

    spec = importlib.util.find_spec("numpy._core._multiarray_umath")
    assert spec is not None and spec.origin is not None
    copy = tmp_path / "other.so"
    copy.write_bytes(Path(spec.origin).read_bytes())
    assert SECTION in tool("inspect", copy).refused()


def test_strict_log_without_records_is_a_failed_check(tool: Tool, pt2: Path, out: Path) -> None:
    ran = tool("compile", pt2, "--strict-log", "-o", out / "x.so")
    assert ran.code == 1
    assert "--strict-log" in ran.err and ran.err.startswith("error: ")
    assert_nothing_in(out)


def test_a_tuning_log_of_another_schema(tool: Tool, pt2: Path, out: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"schema": 99}\n')
    line = tool("compile", pt2, "--tuning-log", log, "-o", out / "x.so").refused()
    assert "schema 99" in line and "log.jsonl:1" in line
    assert_nothing_in(out)
