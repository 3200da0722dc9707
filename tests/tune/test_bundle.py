"""Bundles: their content, measuring without a compiler, results that come back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tune import fakes
from tvm_q4.errors import InputError
from tvm_q4.library.fatbin import device_codes
from tvm_q4.library.nvcc import find_nvcc
from tvm_q4.tune import bundle as bundle_module
from tvm_q4.tune import bundle_runner, bundle_worker, import_results, write_bundle
from tvm_q4.tuning_logs.records import best_records, read_log

pytest.importorskip("xgboost")

BLOCKER = """\
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "xgboost", "tvm", "tvm_q4"}:
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocker())
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two candidates of one layer for this CPU."""
    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    result = write_bundle(fakes.network(), folder, trials=2, tasks="c")
    assert (result["tasks"], result["candidates"], result["failed"]) == (1, 2, 0)
    assert result["bytes"] < 10e6
    return folder


@pytest.fixture(scope="module")
def hollow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of two tasks whose candidates hold no code."""
    folder = tmp_path_factory.mktemp("hollow") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle_module, "Builder", fakes.HollowBuilder)
        result = write_bundle(fakes.network(), folder, trials=4)
    assert (result["tasks"], result["candidates"], result["failed"]) == (2, 8, 0)
    return folder


def run(bundle: Path, *arguments: object, python: Path | None = None) -> tuple[int, str, str]:
    """Run a bundle's program; where no interpreter is given, in this one without our packages."""
    command = [str(python or sys.executable), str(bundle / "run.py"), *map(str, arguments)]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "sitecustomize.py").write_text(BLOCKER)
        environment = os.environ | {"PYTHONPATH": folder}
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=300, env=environment, check=False
        )
    return done.returncode, done.stdout, done.stderr


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path, *lines: object) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n")
    return path


@pytest.mark.slow
def test_results_of_a_machine_without_a_compiler_come_back(bundle: Path, tmp_path: Path) -> None:
    results, log = tmp_path / "results.jsonl", tmp_path / "log.jsonl"
    code, out, err = run(bundle, "--results", results, "--threads", 1)
    assert (code, err) == (0, ""), err
    assert "4 measurements, 0 failed" in out
    found = import_results(results, log)
    assert (found["records"], found["inexact"], found["skipped"]) == (4, 0, 0)
    task = rows(results)[0]["manifest"]["tasks"][0]
    (best,) = best_records([log], task["arch"]).values()
    assert best.again and best.checked and best.signature == task["signature"]
    assert {r["threads"] for r in rows(log)} == {1}
    assert import_results(results, log)["duplicates"] == 4 and len(rows(log)) == 4
    # What was measured is not built again.
    more = write_bundle(fakes.network(), tmp_path / "more", trials=2, tasks="c", log=log)
    again = rows_of_manifest(tmp_path / "more")
    assert more["candidates"] == 3  # the start beside two new ones
    new = [c["params"] for c in again[0]["candidates"][1:]]
    assert all(params not in new for params in (c["params"] for c in task["candidates"]))


def rows_of_manifest(bundle: Path) -> list[dict[str, Any]]:
    return json.loads((bundle / "bundle.json").read_text())["tasks"]


@pytest.mark.slow
def test_a_run_goes_on_where_it_ended(bundle: Path, tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    assert run(bundle, "--results", results)[0] == 0
    head, first, *rest = rows(results)
    failed = {k: first[k] for k in ("bundle", "task", "candidate")} | {"error": "gone"}
    write(results, head, failed, *rest[1:])
    assert run(bundle, "--results", results)[0] == 0
    assert sum("error" in row for row in rows(results)) == 0
    assert [row for row in rows(results) if row in rest[1:]] == rest[1:]  # not measured again
    before = results.read_bytes()
    assert run(bundle, "--results", results)[0] == 0 and results.read_bytes() == before
    write(results, {**head, "bundle": "other"})
    code, _, err = run(bundle, "--results", results)
    assert code == 2 and err.splitlines() == [
        f"error: '{results}' is not of this bundle; give --results another name"
    ]


@pytest.mark.slow
def test_a_fresh_environment_with_the_runtime_only(bundle: Path, tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    venv.create(environment, symlinks=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    for name in ("numpy", "apache-tvm-ffi", "typing_extensions"):
        link(name, packages)
    python = environment / "bin" / "python"
    results = tmp_path / "results.jsonl"
    code, out, err = run(bundle, "--results", results, python=python)
    assert code == 0, err
    assert "4 measurements, 0 failed" in out
    assert import_results(results, tmp_path / "log.jsonl")["inexact"] == 0


def link(name: str, packages: Path) -> None:
    """Show an installed distribution to another environment, and nothing else."""
    installed = distribution(name)
    for top in {file.parts[0] for file in installed.files or () if file.parts[0] != ".."}:
        (packages / top).symlink_to(Path(str(installed.locate_file(top))).resolve())


@pytest.mark.slow
def test_wrong_bits_are_recorded_as_such(bundle: Path, tmp_path: Path) -> None:
    copy, log = tmp_path / "copy", tmp_path / "log.jsonl"
    shutil.copytree(bundle, copy)
    case = copy / "cases" / "0.npz"
    with np.load(case) as file:
        arrays = dict(file)
    changed = np.flatnonzero(arrays["m0"])[-1]
    arrays["y0"].reshape(-1)[changed] ^= 1
    np.savez(case, **arrays)
    assert run(copy)[0] == 0
    found = import_results(copy / "results.jsonl", log)
    assert found["inexact"] == found["records"] == 2  # no exact one is left to measure again
    assert best_records([log], rows_of_manifest(bundle)[0]["arch"]) == {}


@pytest.mark.slow
def test_candidates_that_crash_are_failures(bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    broken = rows_of_manifest(bundle)[0]["candidates"][1]["folder"]
    (copy / broken / "kernel.so").write_bytes(b"no library")
    code, out, _ = run(copy)
    assert code == 0 and "2 measurements, 1 failed" in out
    found = import_results(copy / "results.jsonl", tmp_path / "log.jsonl")
    assert (found["records"], found["failed"], found["skipped"]) == (2, 1, 0)


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import time; time.sleep(60)", "stopped after its limit of 0.5 s"),
        ("import os; os.abort()", "its process ended with signal 6"),
        ("raise SystemExit(3)", "its process ended with exit code 3"),
    ],
)
def test_a_kernel_that_hangs_or_crashes_is_ended(
    program: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "measure.py").write_text(program)
    monkeypatch.setattr(bundle_runner, "FOLDER", tmp_path)
    monkeypatch.setattr(bundle_runner, "START_LIMIT_S", 0.0)
    worker = bundle_runner.Worker(None)
    assert worker.ask({}, 0.5 if "sleep" in program else 30.0) == {"error": reason}
    assert worker.process is None


def test_damaged_results_are_refused(hollow: Path, tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    manifest = json.loads((hollow / "bundle.json").read_text())
    for text in ('{"cut', "[1]\n", '{"bundle": "other"}\n'):
        results.write_text(text)
        with pytest.raises(bundle_runner.Problem, match="is not of this bundle"):
            bundle_runner.Results(results, manifest)


def test_another_machine_is_refused_in_one_line(
    hollow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = json.loads((hollow / "bundle.json").read_text())
    bundle_runner.check_packages(manifest)
    with pytest.raises(bundle_runner.Problem, match=r"pip install apache-tvm-ffi==9\.9"):
        bundle_runner.check_packages(manifest | {"tvm_ffi": "9.9"})
    bundle_worker.check_features(manifest["features"])
    monkeypatch.setattr(bundle_worker, "cpu_info", lambda key: "sse avx bmi1 avx512_vnni")
    bundle_worker.check_features(["avx", "bmi", "avx512vnni"])
    with pytest.raises(RuntimeError, match="this CPU lacks amx-int8, which"):
        bundle_worker.check_features(["avx", "amx-int8"])
    assert bundle_runner.runs_here("skylake", {"threads": 2})
    assert bundle_runner.runs_here("sm_80", {"device_arch": 86})
    assert not bundle_runner.runs_here("sm_86", {"device_arch": 80})
    assert not bundle_runner.runs_here("sm_75", {"device_arch": 80})


def test_a_bundle_says_nothing_of_where_it_was_made(hollow: Path) -> None:
    texts = [path.read_text() for path in hollow.rglob("*") if path.suffix in (".json", ".py")]
    assert len(texts) == 11
    assert not any(str(hollow.parent) in text or str(Path.home()) in text for text in texts)


@pytest.mark.slow
def test_a_bundle_for_gpus_holds_machine_code_and_no_source(tmp_path: Path) -> None:
    try:
        find_nvcc((75, 80))
    except Exception as error:
        pytest.skip(f"needs nvcc: {error}")
    folder = tmp_path / "bundle"
    write_bundle(fakes.network(), folder, target="cuda:sm_75,sm_80", trials=2, tasks="c")
    assert sorted(p.name for p in (folder / "lib").iterdir()) == [
        "libtvm_runtime.so",
        "libtvm_runtime_cuda.so",
    ]
    tasks = rows_of_manifest(folder)
    assert [task["arch"] for task in tasks] == ["sm_75", "sm_80"]
    for task in tasks:
        for candidate in task["candidates"]:
            library = (folder / candidate["folder"] / "kernel.so").read_bytes()
            codes = device_codes(fatbin_in(library))
            assert [(c.kind, c.arch) for c in codes] == [("cubin", int(task["arch"][3:]))]
            assert b"__global__" not in library and b"#include" not in library
    names = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert names == {".so", ".json", ".npz", ".py"}


def fatbin_in(library: bytes) -> bytes:
    from tvm_q4.library.fatbin import MAGIC

    assert library.count(MAGIC) == 1
    return library[library.index(MAGIC) :]


def test_a_place_that_is_taken_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"exists already; give --bundle a new name"):
        write_bundle(fakes.network(), tmp_path)
    with pytest.raises(InputError, match="cannot be written"):
        write_bundle(fakes.network(), tmp_path / "none" / "bundle")
    with pytest.raises(InputError, match="trials is 0"):
        write_bundle(fakes.network(), tmp_path / "bundle", trials=0)
    with pytest.raises(InputError, match="task 'z' does not exist"):
        write_bundle(fakes.network(), tmp_path / "bundle", tasks="z")
    assert list(tmp_path.iterdir()) == []


MEASURED = {
    "task": 0, "candidate": 1, "times_us": [3.0, 2.0], "start_us": [4.0], "checked": True,
    "date": "2026-01-01T00:00:00+00:00", "device": "there", "threads": 2,
}  # fmt: skip


@pytest.fixture
def lines(hollow: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Head and one row of results."""
    manifest = json.loads((hollow / "bundle.json").read_text())
    return {"bundle": manifest["id"], "manifest": manifest}, {"bundle": manifest["id"], **MEASURED}


def test_a_record_says_what_was_measured_where(
    lines: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path
) -> None:
    head, row = lines
    log = tmp_path / "log.jsonl"
    import_results(write(tmp_path / "r", head, row, row | {"again": True}), log)
    task = head["manifest"]["tasks"][0]
    first, second = rows(log)
    assert first["params"] == task["candidates"][1]["params"]
    assert (first["times_us"], first["start_us"]) == ([3.0, 2.0], [4.0])
    assert (first["device"], first["threads"], first["date"]) == ("there", 2, MEASURED["date"])
    assert second == first | {"again": True}
    assert [r.signature for r in read_log(log)] == [task["signature"]] * 2


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("{broken", "not JSON"),
        ("[1]", "no result of a bundle"),
        ({"bundle": "other"}, "of bundle 'other', whose manifest is not here"),
        ({"task": 2}, "task 2 is not in the bundle"),
        ({"task": True}, "task True is not in the bundle"),
        ({"candidate": -1}, "candidate -1 is not in the bundle"),
        ({"times_us": [0.0]}, "times_us missing or of the wrong type"),
        ({"times_us": "NaN"}, "times_us missing or of the wrong type"),
        ({"start_us": []}, "start_us missing or of the wrong type"),
        ({"checked": "yes"}, "checked missing or of the wrong type"),
        ({"device": None}, "device missing or of the wrong type"),
        ({"date": 5}, "date missing or of the wrong type"),
    ],
)
def test_other_lines_are_reported_and_skipped(
    lines: tuple[dict[str, Any], dict[str, Any]],
    change: Any,
    problem: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    head, row = lines
    wrong = change if isinstance(change, str) else row | change
    found = import_results(write(tmp_path / "r", head, wrong, row), tmp_path / "log.jsonl")
    assert (found["records"], found["skipped"]) == (1, 1)
    assert f"r:2: skipped, {problem}" in caplog.text


def test_results_without_their_bundle_are_refused(
    lines: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path
) -> None:
    head, row = lines
    changed = json.loads(json.dumps(head))
    changed["manifest"]["tasks"][0]["signature"] = "another"
    for content in ([row], ["nothing"], [changed, row]):
        with pytest.raises(InputError, match="are of no bundle"):
            import_results(write(tmp_path / "r", *content), tmp_path / "log.jsonl")
    with pytest.raises(InputError, match="cannot be read"):
        import_results(tmp_path / "missing", tmp_path / "log.jsonl")
    assert not (tmp_path / "log.jsonl").exists()
