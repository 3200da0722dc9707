"""Reading a library's metadata: every bad file is a LibraryError of one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.library import tiny
from tvm_q4.errors import LibraryError
from tvm_q4.library import read_metadata


def _error(path: Path) -> str:
    with pytest.raises(LibraryError) as caught:
        read_metadata(path)
    text = str(caught.value)
    assert "\n" not in text and str(path) in text
    return text


def test_metadata_comes_back_unchanged(tiny_path):
    assert read_metadata(tiny_path) == json.loads(json.dumps(tiny.metadata()))


def test_text_beyond_ascii_survives(tmp_path):
    path = tiny.write(tmp_path / "a.so", classes=["naïve", "猫", 'quote " and \\'])
    assert read_metadata(path)["classes"] == ["naïve", "猫", 'quote " and \\']


def test_reading_needs_no_tvm(tiny_path):
    code = (
        "import sys; from tvm_q4.library import read_metadata; "
        f"read_metadata({str(tiny_path)!r}); "
        "sys.exit('tvm' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_missing_file_and_folder(tmp_path):
    assert "No such file" in _error(tmp_path / "none.so")
    assert "directory" in _error(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x7fEL", b"hello world", b"PK\x03\x04" + bytes(500)])
def test_what_is_no_elf_file(tmp_path, content):
    path = tmp_path / "a.so"
    path.write_bytes(content)
    assert "not an ELF" in _error(path)


def test_elf_header_alone_is_damaged(tmp_path):
    path = tmp_path / "a.so"
    path.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(3))
    assert "damaged" in _error(path)


def test_every_truncation_is_noticed(tmp_path, tiny_path):
    data = tiny_path.read_bytes()
    path = tmp_path / "a.so"
    for size in [*range(4, len(data), 977), len(data) - 1]:
        path.write_bytes(data[:size])
        text = _error(path)
        assert "truncated" in text or "damaged" in text


def test_noise_in_the_headers_never_escapes_as_another_error(tmp_path, tiny_path):
    rng = np.random.default_rng(0)
    data = np.frombuffer(tiny_path.read_bytes(), np.uint8)
    path = tmp_path / "a.so"
    read = 0
    for trial in range(60):
        noisy = data.copy()
        # The ELF header, or the section headers at the end of the file.
        first, last = (4, 64) if trial % 2 else (data.size - 1800, data.size)
        noisy[rng.integers(first, last, 6)] = rng.integers(0, 256, 6)
        path.write_bytes(noisy.tobytes())
        try:
            read_metadata(path)
            read += 1
        except LibraryError as error:
            assert "\n" not in str(error)
    assert read < 60


def test_shared_object_of_somebody_else(tmp_path):
    import numpy._core._multiarray_umath as other

    assert "no section .tvm_q4" in _error(Path(other.__file__))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 2}, ("version 2", "reads version 1", "compile the model again")),
        ({"version": None}, ("version None",)),
        ({"format": "tvm-q4/recipe"}, ("'tvm-q4/recipe'", "'tvm-q4/library'")),
    ],
)
def test_other_format_versions(tmp_path, tiny_path, changes, words):
    path = _with_metadata(tmp_path, tiny_path, json.dumps(tiny.metadata() | changes).encode())
    text = _error(path)
    assert all(word in text for word in words)


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff\xfe", b""])
def test_damaged_json(tmp_path, tiny_path, content):
    assert "damaged metadata" in _error(_with_metadata(tmp_path, tiny_path, content))


def _with_metadata(tmp_path: Path, library: Path, content: bytes) -> Path:
    """Copy of a library whose section holds `content`."""
    section, out = tmp_path / "section", tmp_path / "changed.so"
    section.write_bytes(content)
    command = ["objcopy", "--update-section", f".tvm_q4={section}", str(library), str(out)]
    subprocess.run(command, check=True)
    return out
