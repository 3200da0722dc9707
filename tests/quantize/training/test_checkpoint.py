"""Checkpoints: whole or absent, never used where they do not fit, never run as code."""

import pytest

torch = pytest.importorskip("torch")

from tvm_q4.errors import InputError  # noqa: E402
from tvm_q4.quantize.training.checkpoint import load_checkpoint, save_checkpoint  # noqa: E402

SETTINGS = {"epochs": 2, "config": {"layers": {"a": {"weight": 4}}}}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoint.pt"


def test_round_trip(path):
    save_checkpoint(path, SETTINGS, {"step": 3, "model": {"w": torch.arange(4.0)}})
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    state = load_checkpoint(path, SETTINGS)
    assert state["step"] == 3 and torch.equal(state["model"]["w"], torch.arange(4.0))


def test_none_yet(path):
    assert load_checkpoint(path, SETTINGS) is None


@pytest.mark.parametrize("other", [{**SETTINGS, "epochs": 3}, {**SETTINGS, "method": "lsq"}])
def test_other_settings_are_named(path, other):
    save_checkpoint(path, SETTINGS, {"step": 3})
    with pytest.raises(InputError, match=r"was made with (epochs 2, this run has 3|method None)"):
        load_checkpoint(path, other)


@pytest.mark.parametrize("content", [b"", b"hello", None])
def test_damaged_files(path, content):
    save_checkpoint(path, SETTINGS, {"step": 3})
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    with pytest.raises(InputError, match="cannot be read"):
        load_checkpoint(path, SETTINGS)


class _Evil:
    def __reduce__(self):
        return print, ("code was run",)


def test_files_that_would_run_code_are_refused(path, capsys):
    torch.save({"format": "tvm-q4/training-checkpoint", "version": 1, "x": _Evil()}, path)
    with pytest.raises(InputError, match="cannot be read"):
        load_checkpoint(path, SETTINGS)
    assert capsys.readouterr().out == ""


def test_other_files_of_torch(path):
    torch.save({"state_dict": {}}, path)
    with pytest.raises(InputError, match="is not a checkpoint of tvm-q4"):
        load_checkpoint(path, SETTINGS)


def test_a_newer_version(path):
    save_checkpoint(path, SETTINGS, {"version": 2})
    with pytest.raises(InputError, match="has version 2, this release reads 1"):
        load_checkpoint(path, SETTINGS)


def test_a_folder_that_is_not_there(path):
    with pytest.raises(InputError, match="cannot be written"):
        save_checkpoint(path.parent / "missing" / "x.pt", SETTINGS, {})
