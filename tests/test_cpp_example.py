"""The C++ example builds with the wheels' headers and runs a library without Python."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.library import tiny

_SOURCE = Path(__file__).resolve().parents[1] / "examples" / "cpp"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not _SOURCE.is_dir(), reason="examples/ is not beside the tests"),
    pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed"),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    build = tmp_path_factory.mktemp("cpp")
    configure = ["cmake", "-S", _SOURCE, "-B", build, f"-DPython3_EXECUTABLE={sys.executable}"]
    subprocess.run(configure, check=True)
    subprocess.run(["cmake", "--build", build], check=True)
    return build / "run_library"


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("library") / "tiny.so")


def _run(program: Path, folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run without any environment variable, in the library's folder."""
    command = [str(program), *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True, env={}, cwd=folder)


def test_classes_are_those_of_python(program, library):
    for seed in range(5):
        x = np.random.default_rng(seed).normal(0, 3, (2, 3, 4, 5)).astype("<f4")
        x.tofile(library.parent / "x.f32")
        done = _run(program, library.parent, library.name, "x.f32", 2, 3, 4, 5)
        assert done.returncode == 0, done.stderr
        expected = tiny.expected(tiny.quantize(x)).argmax(1)
        assert [int(line) for line in done.stdout.split()] == expected.tolist()


def test_bad_arguments(program, library):
    np.zeros((2, 3, 4, 5), "<f4").tofile(library.parent / "x.f32")
    for arguments, words in [
        ((library.name, "x.f32", 2, 3, 4, 6), "480 bytes, the shape needs 576"),
        ((library.name, "none.f32", 2, 3, 4, 5), "cannot read 'none.f32'"),
        ((library.name, "x.f32", 2, 3, 0, 5), "'0' is no extent"),
        (("none.so", "x.f32", 2, 3, 4, 5), "none.so"),
        ((library.name,), "usage:"),
        ((library.name, "x.f32", 1, 6, 4, 5), "shape"),
    ]:
        done = _run(program, library.parent, *arguments)
        assert done.returncode == 2 and words in done.stderr and done.stdout == ""
