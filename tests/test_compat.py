"""The check of the TVM / tvm-ffi pair happens before TVM's C++ code is loaded."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tvm_q4 import _compat
from tvm_q4.errors import EnvironmentMismatch

PACKAGES = ("tvm_q4", "tvm_q4.relay_passes", "tvm_q4.schedules")
GOOD = ("0.27.0.post1", "0.1.14.post1")


def test_the_tested_pair_has_no_problem() -> None:
    assert _compat.pair_problem(*GOOD) is None


@pytest.mark.parametrize(
    ("tvm", "ffi", "found"),
    [
        (GOOD[0], "0.1.15.post1", "apache-tvm-ffi 0.1.15.post1"),
        ("0.26.0", GOOD[1], "apache-tvm 0.26.0"),
        (None, GOOD[1], "apache-tvm (missing)"),
        (GOOD[0], None, "apache-tvm-ffi (missing)"),
    ],
)
def test_every_other_pair_is_named_with_its_remedy(
    tvm: str | None, ffi: str | None, found: str
) -> None:
    problem = _compat.pair_problem(tvm, ffi)
    assert problem is not None
    assert found in problem
    assert "pip install apache-tvm==0.27.0.post1 apache-tvm-ffi==0.1.14.post1" in problem
    assert "\n" not in problem


def test_a_bad_pair_is_an_error_at_once_where_tvm_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "tvm_ffi", sys)
    monkeypatch.setattr(_compat, "installed_version", lambda package: "0.1")
    with pytest.raises(EnvironmentMismatch, match="not a pair"):
        _compat.require_pair()


@pytest.fixture
def wrong_ffi(tmp_path: Path) -> dict[str, str]:
    """Environment of a process that sees another version of apache-tvm-ffi installed."""
    info = tmp_path / "apache_tvm_ffi-0.1.15.post1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: apache-tvm-ffi\nVersion: 0.1.15.post1\n"
    )
    return {**os.environ, "PYTHONPATH": str(tmp_path)}


def run_python(environment: dict[str, str], *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *args], env=environment, capture_output=True, text=True, check=False
    )


def test_a_bad_pair_is_one_line_on_the_command_line(
    wrong_ffi: dict[str, str], tmp_path: Path
) -> None:
    output = tmp_path / "x.so"
    done = run_python(wrong_ffi, "-m", "tvm_q4", "compile", "zoo:resnet18", "-o", str(output))
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: apache-tvm 0.27.0.post1 with apache-tvm-ffi 0.1.15.post1")
    assert not output.exists()


def test_a_bad_pair_stops_every_import_of_tvm(wrong_ffi: dict[str, str]) -> None:
    code = (
        "import tvm_q4\n"
        "try:\n    import tvm_q4.ops\n"
        "except tvm_q4.EnvironmentMismatch:\n    print('refused')"
    )
    assert run_python(wrong_ffi, "-c", code).stdout == "refused\n"


def test_doctor_reports_a_bad_pair(wrong_ffi: dict[str, str]) -> None:
    done = run_python(wrong_ffi, "-m", "tvm_q4", "doctor")
    assert done.returncode == 1
    assert "WRONG" in done.stdout
    assert "0.1.15.post1" in done.stdout


def test_importing_the_package_loads_neither_tvm_nor_torch() -> None:
    code = (
        "import sys, tvm_q4.cli.main; print({'tvm', 'torch', 'numpy', 'rich'} & set(sys.modules))"
    )
    assert run_python(dict(os.environ), "-c", code).stdout == "set()\n"


def test_every_name_of_tvm_is_where_the_table_says() -> None:
    for name, (module, attribute) in _compat._TVM_NAMES.items():
        assert getattr(_compat, name) is getattr(importlib.import_module(module), attribute)
    with pytest.raises(AttributeError, match="no attribute 'Relay'"):
        _ = _compat.Relay


def test_no_other_file_reaches_for_these_names() -> None:
    folders = (Path(importlib.import_module(n).__file__).parent for n in PACKAGES)
    files = {p for folder in folders for p in folder.rglob("*.py") if p.name != "_compat.py"}
    modules = {m for m, _ in _compat._TVM_NAMES.values()} - {"tvm", "tvm.ir", "tvm.relax"}
    banned = re.compile("|".join(re.escape(m) for m in sorted(modules)) + r"|tvm import tirx")
    banned_uses = re.compile(r"tvm\.ir\.GenericConst|relax\.TensorType|tvm\.tirx")
    texts = {p: p.read_text() for p in files}
    assert len(texts) > 50
    assert [p for p, t in texts.items() if banned.search(t) or banned_uses.search(t)] == []
