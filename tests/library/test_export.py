"""Writing libraries: output checks, atomicity, the compiler, the size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tvm
from tvm import relax

from tests.library import tiny
from tvm_q4.errors import EnvironmentMismatch, InputError, LibraryError
from tvm_q4.library import check_writable, export_library, load, read_metadata


def test_output_names_that_cannot_be_written(tmp_path):
    (tmp_path / "folder.so").mkdir()
    (tmp_path / "file").write_text("x")
    for path, words in [
        (tmp_path / "a.txt", "must end in .so"),
        (tmp_path / "none" / "a.so", "is not a folder"),
        (tmp_path / "file" / "a.so", "is not a folder"),
        (tmp_path / "folder.so", "not a regular file"),
    ]:
        with pytest.raises(InputError, match=words) as caught:
            check_writable(path)
        assert "\n" not in str(caught.value)


@pytest.mark.skipif(
    not Path("/proc/self").is_dir(), reason="needs a file system nobody can write to"
)
def test_folder_without_write_access():
    with pytest.raises(InputError, match="cannot be written"):
        check_writable("/proc/a.so")


def test_check_leaves_nothing_behind(tmp_path):
    assert check_writable(str(tmp_path / "a.so")) == tmp_path / "a.so"
    assert list(tmp_path.iterdir()) == []


def test_odd_folder_names_and_replacing(tmp_path):
    folder = tmp_path / 'with space, "quote" and ünïcode'
    folder.mkdir()
    path = folder / "a.so"
    path.write_text("older file")
    tiny.write(path)
    assert list(folder.iterdir()) == [path]
    assert load(path).metadata["model"]["name"] == "tiny"


def test_work_dir_keeps_the_objects(tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    export_library(tiny.build(), tiny.metadata(), tmp_path / "a.so", work_dir=work)
    assert {"metadata.json", "metadata.s"} < {p.name for p in work.iterdir()}


def test_no_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(EnvironmentMismatch, match="install g") as caught:
        tiny.write(tmp_path / "a.so")
    assert "no-such-compiler" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_failing_compiler_leaves_the_old_file(tmp_path, monkeypatch):
    compiler = tmp_path / "bad-compiler"
    compiler.write_text("#!/bin/sh\necho 'ld: error: no memory left' >&2\nexit 1\n")
    compiler.chmod(0o755)
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.so").write_text("older file")
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(EnvironmentMismatch, match="error: no memory left") as caught:
        tiny.write(out / "a.so")
    assert "\n" not in str(caught.value)
    assert [p.read_text() for p in out.iterdir()] == ["older file"]


def test_metadata_of_another_version_is_refused(tmp_path):
    with pytest.raises(LibraryError, match="version 7"):
        tiny.write(tmp_path / "a.so", version=7)
    assert list(tmp_path.iterdir()) == []


def test_constants_are_stored_once(tmp_path):
    table = np.random.default_rng(0).integers(-8, 8, (1024, 1024), dtype=np.int8)
    x = relax.Var("x", relax.TensorType([1, 3, 1, 1], "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            rows = builder.emit(relax.const(table, "int8"))
            result = builder.emit_output(rows)
        builder.emit_func_output(result)
    executable = tvm.compile(builder.get(), target="llvm")
    path = export_library(executable, tiny.metadata(), tmp_path / "a.so")
    assert table.nbytes <= path.stat().st_size < table.nbytes + 40_000
    assert read_metadata(path)["batch"] == 2
