"""HAWQ's arithmetic: every integer of an imported checkpoint, against an emulation in float64."""

from __future__ import annotations

import logging
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import tvm
from numpy.typing import NDArray

torch = pytest.importorskip("torch")

from tests.frontend import hawq_checkpoint as made  # noqa: E402
from tests.frontend.hawq_emulation import Emulation  # noqa: E402
from tests.frontend.hawq_networks import ARCHITECTURE_OF, images, published  # noqa: E402
from tvm_q4.errors import NumericsError  # noqa: E402
from tvm_q4.frontend.hawq import load_hawq_model  # noqa: E402
from tvm_q4.frontend.hawq.architecture import Architecture  # noqa: E402
from tvm_q4.model_hash import model_hash  # noqa: E402
from tvm_q4.reference import ReferenceExecutor  # noqa: E402
from tvm_q4.relay_passes.pipeline import to_integer  # noqa: E402

State = OrderedDict[str, torch.Tensor]
MIXED = {"stage2.unit1.quant_convbn2", "stage2.unit2.quant_convbn1", "stage1.unit1.quant_convbn2"}
TIES = ("half_even", "half_away", "half_up", "floor")


def compare(mod: tvm.IRModule, emulation: Emulation, x: NDArray[np.float32]) -> None:
    """Every tensor that both sides name is equal, and no tensor of a quantizer is left out."""
    logits = emulation.run(x)
    for number, module in enumerate((mod, to_integer(mod))):
        result, found = ReferenceExecutor(module).run_and_trace(x)
        common = [name for name in emulation.tensors if name in found]
        for name in common:
            np.testing.assert_array_equal(found[name], emulation.tensors[name], err_msg=name)
        np.testing.assert_array_equal(result, logits)
        assert number or len(common) == len(emulation.tensors), "the imported module has them all"
        assert len(np.unique(found["quant_act_output"])) > 3, "the comparison needs live data"


def check(net: made.Net, state: State, four: set[str] | None, path: Path, mode: str) -> None:
    mod = load_hawq_model(
        made.save_quantized(state, path / "q.pth.tar"), arch=ARCHITECTURE_OF[net], rounding=mode,
        batch=2, image_size=(72, 56),
    )  # fmt: skip
    compare(mod, Emulation(net, state, made.layer_bits(net, four), mode), images(2, 72, 56))


@pytest.mark.parametrize("four", [None, set(), MIXED], ids=["uniform4", "uniform8", "mixed"])
@pytest.mark.parametrize("mode", TIES)
def test_basic_units(tmp_path: Path, four: set[str] | None, mode: str) -> None:
    check(made.TINY, made.make_state(made.TINY, four, seed=1), four, tmp_path, mode)


@pytest.mark.parametrize("net", [made.TINY_BOTTLENECK, made.TINY_BOTTLENECK_V1_5])
def test_bottleneck_units(tmp_path: Path, net: made.Net) -> None:
    four = {"stage1.unit1.quant_convbn3", "stage2.unit1.quant_convbn2"}
    check(net, made.make_state(net, four, seed=2), four, tmp_path, "half_even")


def powers_of_two(state: State) -> None:
    """Make every scale a power of two, so that ties are common."""
    for key, value in state.items():
        if key.endswith("scaling_factor") and "weight_scaling" not in key:
            shift = 2 if "int32" in key else 0
            state[key] = torch.exp2(torch.ceil(torch.log2(value)) - shift)


def test_ties_go_where_each_rounding_sends_them(tmp_path: Path) -> None:
    state = made.make_state(made.TINY, set(), seed=3)
    powers_of_two(state)
    streams = []
    for mode in TIES:
        check(made.TINY, state, set(), tmp_path, mode)
        emulation = Emulation(made.TINY, state, made.layer_bits(made.TINY, set()), mode)
        emulation.run(images(2, 72, 56))
        streams.append(emulation.tensors["stage1.unit1.quant_act1"].tobytes())
    assert len(set(streams)) == 3, "positive ties go up in half_away and half_up alike"


def test_first_stream_is_clamped_to_16_bits_by_pytorch_alone(tmp_path: Path) -> None:
    state = made.make_state(made.TINY, None, seed=4)
    state["quant_act_int32.act_scaling_factor"] /= 16
    tops = {}
    for mode in ("half_even", "half_up"):
        check(made.TINY, state, None, tmp_path, mode)
        emulation = Emulation(made.TINY, state, made.layer_bits(made.TINY, None), mode)
        emulation.run(images(2, 72, 56))
        tops[mode] = emulation.tensors["quant_act_int32"].max()
    assert tops["half_even"] == 32767 < tops["half_up"]


DEAD = {
    "quant_init_block_convbn": [1],
    "stage1.unit1.quant_convbn1": [0, 3],
    "stage1.unit1.quant_convbn2": [2, 4],
    "stage2.unit1.quant_identity_convbn": [0, 1, 2, 3],
    "stage2.unit2.quant_convbn2": [5, 6, 11],
}


def test_dead_channels_saturate(tmp_path: Path) -> None:
    state = made.make_state(made.TINY, MIXED, seed=5, dead=DEAD)
    limits = {state[f"{name}.bias_integer"][DEAD[name]].abs().max().item() for name in DEAD}
    assert limits == {2.0**31}, "these channels are to be the saturated ones"
    check(made.TINY, state, MIXED, tmp_path, "half_even")


def test_dead_classes_saturate(tmp_path: Path) -> None:
    state = made.make_state(made.TINY, None, seed=6)
    state["quant_output.weight_integer"][[0, 3]] = 0
    state["quant_output.bias_integer"][[0, 3]] = torch.tensor([2.0**31, -(2.0**31)])
    check(made.TINY, state, None, tmp_path, "half_even")


def test_saturated_channels_that_the_data_still_moves(tmp_path: Path) -> None:
    name = "stage1.unit1.quant_convbn1"
    state = made.make_state(made.TINY, None, seed=7)
    state[f"{name}.bias_integer"][2] = 2.0**31
    state[f"{name}.convbn_scaling_factor"][2] = 1e-10
    check(made.TINY, state, None, tmp_path, "half_even")  # too small a scale to move the result
    state[f"{name}.convbn_scaling_factor"][2] = 1e-3
    with pytest.raises(NumericsError, match=f"{name} channel 2: .*constant channels are exact"):
        check(made.TINY, state, None, tmp_path, "half_even")


def test_one_weight_scale_for_all_channels(tmp_path: Path) -> None:
    state = made.make_state(made.TINY, None, seed=8)
    for name in made.convolutions(made.TINY):
        state[f"{name}.convbn_scaling_factor"] = state[f"{name}.convbn_scaling_factor"][:1]
    state["quant_input.act_scaling_factor"] = state["quant_input.act_scaling_factor"][0]
    check(made.TINY, state, None, tmp_path, "half_even")


def test_both_files_make_the_same_module(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = made.make_state(made.TINY, MIXED, seed=9)
    arch = ARCHITECTURE_OF[made.TINY]
    quantized = made.save_quantized(state, tmp_path / "q.pth.tar", prefix="")
    whole = made.save_whole(state, tmp_path / "c.pth.tar", "tiny")
    expected = model_hash(load_hawq_model(quantized, arch=arch))
    with caplog.at_level(logging.WARNING):
        assert model_hash(load_hawq_model(whole, arch=arch)) == expected
    assert not caplog.records
    other = made.make_state(made.TINY, MIXED, seed=10)
    stale = OrderedDict((k, other[k] if k.endswith("_integer") else t) for k, t in state.items())
    fresh = OrderedDict((k, t) for k, t in state.items() if not k.endswith("_integer"))
    for changed in (stale, fresh):
        made.save_whole(changed, whole, "tiny")
        with caplog.at_level(logging.WARNING):
            assert model_hash(load_hawq_model(whole, arch=arch)) == expected
        assert "do not follow from its float weights" in caplog.text
        caplog.clear()


NETWORKS = [
    ("resnet18", made.RESNET18, "bops_0.5"),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in (
            ("resnet18", made.RESNET18, "uniform4"),
            ("resnet34", made.RESNET34, "uniform8"),
            ("resnet50", made.RESNET50, "latency_0.25"),
            ("resnet50b", made.RESNET50B, "modelsize_0.5"),
            ("resnet101", made.RESNET101, "uniform4"),
        )
    ),
]


@pytest.mark.parametrize(("arch", "net", "config"), NETWORKS)
def test_whole_networks(tmp_path: Path, arch: str, net: made.Net, config: str) -> None:
    four = published(arch.removesuffix("b"), config)
    state = made.make_state(net, four, seed=11)
    path = made.save_quantized(state, tmp_path / "q.pth.tar")
    named = config if not arch.endswith("b") else None
    mod = load_hawq_model(path, arch=arch, config=named, image_size=(64, 64))
    emulation = Emulation(net, state, made.layer_bits(net, four), "half_even")
    compare(mod, emulation, images(1, 64, 64))


def test_architectures_of_the_tests_are_the_frontends() -> None:
    for net, arch in ARCHITECTURE_OF.items():
        assert isinstance(arch, Architecture)
        names = [c.name for c in arch.convs()]
        assert names == list(made.convolutions(net))
