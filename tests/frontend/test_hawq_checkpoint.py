"""HAWQ's files: keys and shapes as its repository has them, and files that are refused."""

from __future__ import annotations

import json
import re
import subprocess
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.frontend import hawq_checkpoint as made  # noqa: E402
from tests.frontend.hawq_networks import ARCHITECTURE_OF  # noqa: E402
from tvm_q4.errors import InputError  # noqa: E402
from tvm_q4.frontend import load_model  # noqa: E402
from tvm_q4.frontend.hawq import load_hawq_model  # noqa: E402
from tvm_q4.frontend.hawq.architecture import ARCHITECTURES  # noqa: E402
from tvm_q4.frontend.hawq.checkpoint import checked_arrays, read_checkpoint  # noqa: E402
from tvm_q4.meta import model_meta  # noqa: E402
from tvm_q4.model_hash import model_hash  # noqa: E402

State = OrderedDict[str, torch.Tensor]
TINY = ARCHITECTURE_OF[made.TINY]


@pytest.fixture(scope="module")
def state() -> State:
    return made.make_state(made.TINY, None, seed=21)


def refusal(path: Path, **options: Any) -> str:
    """The one line that a file is refused with."""
    with pytest.raises(InputError) as error:
        load_hawq_model(path, arch=TINY, **options)
    text = str(error.value)
    assert "\n" not in text and path.name in text
    return text


@pytest.mark.parametrize(
    ("arch", "net"), [("resnet18", made.RESNET18), ("resnet50", made.RESNET50)]
)
def test_keys_and_shapes_are_those_of_the_repository(
    arch: str, net: made.Net, data_dir: Callable[..., Path]
) -> None:
    listed = json.loads(data_dir("hawq-v3", "checkpoint_keys.json").read_text())[arch]
    expected = {entry["key"]: tuple(entry["shape"]) for entry in listed}
    assert dict(made.shapes(net)) == expected
    assert len(expected) == {"resnet18": 320, "resnet50": 817}[arch]


@pytest.mark.parametrize("whole", [False, True])
def test_each_missing_unexpected_or_misshapen_tensor_is_named(
    state: State, whole: bool, tmp_path: Path
) -> None:
    def save(tensors: State) -> Path:
        if whole:
            return made.save_whole(tensors, tmp_path / "c.pth.tar", "tiny")
        return made.save_quantized(tensors, tmp_path / "q.pth.tar")

    optional = ("weighting", "weight_scaling_factor", "tracked", *(("_integer",) if whole else ()))
    stored = [k for k in state if whole or any(g in k for g in made.GROUPS)]
    for key in stored[::17]:
        file = read_checkpoint(save(OrderedDict((k, t) for k, t in state.items() if k != key)))
        if key.endswith(optional) and not key.endswith("act_scaling_factor"):
            checked_arrays(file, TINY)
            continue
        with pytest.raises(InputError, match=f"lacks 1 tensors of tiny, first '{key}'"):
            checked_arrays(file, TINY)
    for key in stored[::23]:
        wrong = torch.ones((3, *state[key].shape))
        shape = str(list(wrong.shape))
        if key == "quant_output.weight_integer":
            continue  # its own shape tells the classes
        line = refusal(save(OrderedDict(state, **{key: wrong})))
        assert f"'{key}' has shape {shape}, expected [" in line
        assert str(list(state[key].shape)) in line
    extra = OrderedDict(state, **{"stage1.unit9.quant_act.act_scaling_factor": torch.ones(1)})
    line = refusal(save(extra))
    assert "holds 1 tensors that tiny does not have, first 'stage1.unit9.quant_act" in line


def test_another_architecture_is_told_apart(tmp_path: Path) -> None:
    path = made.save_quantized(made.make_state(made.TINY_BOTTLENECK), tmp_path / "b.pth.tar")
    line = refusal(path)
    assert "first 'quant_init_block_convbn." in line
    assert "and has 'quant_init_convbn." in line


VALUES = {
    "not a number": ("quant_output.bias_integer", float("nan"), "not finite"),
    "no integer": ("quant_output.weight_integer", 1.5, "holds 1.5, expected integers in -128..127"),
    "too large": ("stage1.unit1.quant_convbn1.weight_integer", -9.0, "give the bit config"),
    "bias": ("stage1.unit1.quant_convbn1.bias_integer", 2.0**33, "-2147483648..2147483648"),
    "scale": ("quant_act_int32.act_scaling_factor", 0.0, "a scale that is not positive"),
    "weight scale": ("quant_output.fc_scaling_factor", -0.1, "a scale that is not positive"),
    "placeholder": ("quant_input.pre_weight_scaling_factor", 2.0, "HAWQ keeps it at 1"),
    "variance": ("quant_init_block_convbn.bn.running_var", -1.0, "a negative variance"),
    "range": ("stage1.unit1.quant_act_int32.x_max", 50.0, "at 16 bits; give the bit config"),
}


@pytest.mark.parametrize("case", VALUES)
def test_values_that_cannot_be_are_named(state: State, case: str, tmp_path: Path) -> None:
    key, value, words = VALUES[case]
    changed = state[key].clone()
    changed.view(-1)[0] = value
    tensors = OrderedDict(state, **{key: changed})
    if any(group in key for group in made.GROUPS):
        path = made.save_quantized(tensors, tmp_path / "q.pth.tar")
    else:
        path = made.save_whole(tensors, tmp_path / "c.pth.tar", "tiny")
    line = refusal(path, config="uniform4")
    assert key.rsplit(".", 1)[0] in line
    assert words in line


def test_other_types_of_tensors_are_refused(state: State, tmp_path: Path) -> None:
    key = "quant_output.weight_integer"
    for other in (state[key].half(), state[key].to_sparse(), state[key].to("meta")):
        path = made.save_quantized(OrderedDict(state, **{key: other}), tmp_path / "q.pth.tar")
        assert f"'{key}' is a " in refusal(path)


class Trap:
    """Unpickles into a call that leaves a trace."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_pickle_is_not_run(legacy: bool, state: State, tmp_path: Path) -> None:
    path, trace = tmp_path / "trap.pth.tar", tmp_path / "trace"
    groups = {g: {k: t for k, t in state.items() if g in k} for g in made.GROUPS}
    for content in (Trap(trace), {**groups, "more": Trap(trace)}, {"state_dict": [Trap(trace)]}):
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
        line = refusal(path)
        assert "holds the pickled object io.open, which is not read for safety" in line
    torch.save({"f": subprocess.run}, path)
    assert re.search(r"pickled object \w+\.run,", refusal(path))
    assert not trace.exists()


def test_damaged_files_are_refused(
    state: State, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    good = made.save_quantized(state, tmp_path / "good.pth.tar").read_bytes()
    legacy = tmp_path / "legacy.pth.tar"
    torch.save({"state_dict": dict(state)}, legacy, _use_new_zipfile_serialization=False)
    old = legacy.read_bytes()
    rng = np.random.default_rng(5)
    cases = {"empty": b"", "text": b"hello", "random": rng.bytes(4000), "zip": b"PK\x03\x04" * 50}
    cases |= {f"cut{i}": good[: len(good) * i // 7] for i in range(1, 7)}
    cases |= {f"old-cut{i}": old[: len(old) * i // 7] for i in range(1, 7)}
    for i in range(24):
        source = bytearray(old if i % 2 else good)
        for at in rng.integers(0, min(len(source), 3000), 5):
            source[at] = rng.integers(256)
        cases[f"mutated{i}"] = bytes(source)
    capfd.readouterr()
    for name, data in cases.items():
        path = tmp_path / f"{name}.pth.tar"
        path.write_bytes(data)
        try:
            load_hawq_model(path, arch=TINY)
        except InputError as error:
            text = str(error)
            assert "\n" not in text and name in text
        else:
            assert name.startswith("mutated"), "a few changed bytes may do no harm"
    assert capfd.readouterr().err == ""
    assert "cannot be read: " in refusal(tmp_path)


OTHERS = {
    "tensor": (torch.ones(3), "holds a Tensor; expected a dict"),
    "state dict": ({"conv1.weight": torch.ones(3)}, "its keys begin with 'conv1.weight'"),
    "empty": ({}, "its keys begin with nothing"),
    "list": ({"state_dict": [1]}, "'state_dict' is not a dict from names to tensors"),
    "numbers": ({"state_dict": {"a": 1}}, "'state_dict' is not a dict from names to tensors"),
    "four groups": (
        {g: {} for g in made.GROUPS[:4]}, "nor all five groups ('act_scaling_factor' is missing)"),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHERS)
def test_files_of_other_content_are_refused(case: str, tmp_path: Path) -> None:
    content, words = OTHERS[case]
    torch.save(content, tmp_path / "other.pth.tar")
    assert words in refusal(tmp_path / "other.pth.tar")


def test_load_model_takes_checkpoints_and_their_options(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ARCHITECTURES, "tiny", TINY)
    for suffix in (".pth.tar", ".tar", ".pth"):
        path = made.save_quantized(state, tmp_path / f"q{suffix}")
        mod = load_model(path, batch=3, image_size=(40, 33))
        assert [int(d) for d in mod["main"].params[0].ty.shape] == [3, 3, 40, 33]
    whole = made.save_whole(state, tmp_path / "c.pth.tar", "tiny")
    facts = model_meta(load_model(whole, hawq_config="uniform4", hawq_rounding="half_up"))
    assert facts["source_format"] == "HAWQ checkpoint"
    assert (facts["name"], facts["transform"]) == ("tiny@uniform4", "imagenet")
    assert facts["source_details"] == {
        "file": "checkpoint", "arch": "tiny", "bit config": "uniform4", "rounding": "half_up",
    }  # fmt: skip
    assert model_hash(load_model(path, arch="tiny")) == model_hash(load_model(whole))
    for options in ({"arch": "tiny"}, {"hawq_config": "uniform4"}):
        with pytest.raises(InputError, match="is no HAWQ checkpoint"):
            load_model("zoo:resnet18", **options)
    with pytest.raises(InputError, match="rounding 'up' is unknown; use half_even"):
        load_model(path, hawq_rounding="up")
