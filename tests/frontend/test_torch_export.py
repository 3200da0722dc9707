"""The importer of exported programs: structure, names, bits, shapes, and agreement with torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tvm
from torch import nn
from tvm import relax

from tests.frontend.graphs import (
    Lambda,
    Q,
    bindings,
    constant_of,
    export,
    fake_quantized,
    op_counts,
    q4_calls,
    torch_tensors,
)
from tvm_q4 import ops
from tvm_q4.errors import InputError, UnsupportedError
from tvm_q4.frontend.torch_export import import_exported, is_quantized
from tvm_q4.frontend.torch_names import span_name
from tvm_q4.meta import model_meta
from tvm_q4.models.resnet_cifar import CifarResNet
from tvm_q4.quantize import quantize_ptq
from tvm_q4.reference import ReferenceExecutor

torch.set_num_threads(1)


def quantized(
    network: nn.Module, size: int, config: str, batch: int = 2
) -> torch.export.ExportedProgram:
    """Post-training quantization on random data."""
    x = torch.randn(batch, 3, size, size)
    return quantize_ptq(
        network, (x,), [x], config, weight_observer="minmax", activation_observer="minmax"
    )


@pytest.fixture(scope="module")
def resnet18_w4a4() -> torch.export.ExportedProgram:
    """Torchvision's ResNet-18 with random weights, W4A4 but first and last layer."""
    from tvm_q4.frontend.zoo import torchvision_models

    torch.manual_seed(0)
    return quantized(torchvision_models().resnet18(weights=None), 64, "uniform4")


def ramp(*shape: int) -> np.ndarray:
    """Deterministic float32 values around zero, multiples of 1/16."""
    return (np.arange(np.prod(shape), dtype="float32").reshape(shape) % 41 - 17) * np.float32(
        0.0625
    )


class QuantConv(nn.Module):
    """A 4-bit convolution between quantizers, with integer weights as PT2E leaves them."""

    def __init__(self) -> None:
        super().__init__()
        weight = torch.arange(-8, 8, dtype=torch.int8).reshape(2, 2, 2, 2).clamp(-7, 7)
        self.register_buffer("weight", weight)
        self.register_buffer("scales", torch.tensor([0.1, 0.2]))
        self.register_buffer("zeros", torch.tensor([0, 0]))
        self.register_buffer("bias", torch.tensor([0.5, -0.25]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, 2, H, W] to [N, 2, H', W']."""
        x = fake_quantized(x, 0.05, 0, 15, 3)
        weight = Q.dequantize_per_channel(
            self.weight, self.scales, self.zeros, 0, -7, 7, torch.int8
        )
        y = F.relu(F.conv2d(x, weight, self.bias, 2, 1))
        return fake_quantized(y, 0.3, 0, 15)


def emitted(x: relax.Var, *steps: object) -> relax.Function:
    """A function of one dataflow block that emits what each step makes of all values so far."""
    builder = relax.BlockBuilder()
    values = [x]
    with builder.function("main", [x]):
        with builder.dataflow():
            for step in steps:
                values.append(builder.emit(step(values)))
            out = builder.emit_output(values[-1])
        builder.emit_func_output(out)
    return builder.get()["main"]


def test_convolution_between_quantizers_becomes_the_stage_1_form() -> None:
    net = QuantConv()
    scales = net.scales.numpy().astype("float64")
    x = relax.Var("x", relax.TensorType([1, 2, 5, 7], "float32"))
    weight, bias = relax.const(net.weight.numpy(), "int8"), relax.const(net.bias.numpy())
    expected = emitted(
        x,
        lambda v: ops.quantize(v[0], 0.05, 3, name="input", qmin=0, qmax=15, dtype="uint8"),
        lambda v: ops.dequantize(v[1], 0.05, 3, name="input.dq", qmin=0, qmax=15),
        lambda v: ops.dequantize(
            weight, scales, [0, 0], name="layer.weight.dq", qmin=-7, qmax=7, axis=0
        ),
        lambda v: relax.op.nn.conv2d(v[2], v[3], (2, 2), (1, 1, 1, 1)),
        lambda v: relax.op.reshape(bias, [1, 2, 1, 1]),
        lambda v: relax.op.add(v[4], v[5]),
        lambda v: relax.op.nn.relu(v[6]),
        lambda v: ops.quantize(v[7], 0.3, 0, name="layer.out", qmin=0, qmax=15, dtype="uint8"),
        lambda v: ops.dequantize(v[8], 0.3, 0, name="layer.out.dq", qmin=0, qmax=15),
    )
    found = import_exported(export(Lambda(lambda m, x: m.layer(x), layer=net), 1, 2, 5, 7))
    tvm.ir.assert_structural_equal(found["main"], expected)
    assert [b.var.ty.dtype for b in bindings(found)][:2] == ["uint8", "float32"]


def test_linear_is_matmul_with_permuted_weight_before_and_after_decomposition() -> None:
    fc = nn.Linear(6, 3)
    x = relax.Var("x", relax.TensorType([2, 6, 1, 1], "float32"))
    weight, bias = (relax.const(p.detach().numpy()) for p in (fc.weight, fc.bias))
    expected = emitted(
        x,
        lambda v: relax.op.reshape(v[0], [2, 6]),
        lambda v: relax.op.permute_dims(weight),
        lambda v: relax.op.matmul(v[1], v[2]),
        lambda v: relax.op.add(v[3], bias),
    )
    program = export(Lambda(lambda m, x: m.fc(torch.flatten(x, 1)), fc=fc), 2, 6, 1, 1)
    tvm.ir.assert_structural_equal(import_exported(program)["main"], expected)
    decomposed = program.run_decompositions()
    assert "aten.addmm.default" in {str(n.target) for n in decomposed.graph.nodes}
    found = import_exported(decomposed)
    assert op_counts(found) == {
        "relax.reshape": 1,
        "relax.permute_dims": 1,
        "relax.matmul": 1,
        "relax.add": 1,
    }
    image = ramp(2, 6, 1, 1)
    np.testing.assert_array_equal(
        ReferenceExecutor(found).run(image),
        ReferenceExecutor(tvm.IRModule({"main": expected})).run(image),
    )
    assert [span_name(b.value) for b in bindings(found)][2:4] == ["fc", "fc"]


def test_resnet18_w4a4_has_every_node_name_and_bit_width(
    resnet18_w4a4: torch.export.ExportedProgram,
) -> None:
    mod = import_exported(resnet18_w4a4, name="r18", facts={"classes": ["a"]})
    counts = op_counts(mod)
    wanted = {"nn.conv2d": 20, "matmul": 1, "nn.relu": 17, "nn.max_pool2d": 1, "nn.avg_pool2d": 1}
    assert {op: counts[f"relax.{op}"] for op in wanted} == wanted
    calls = q4_calls(mod)
    assert len(calls) == counts["q4.quantize"] + counts["q4.dequantize"], "names must be unique"
    weights = {
        n.removesuffix(".weight.dq"): a for n, a in calls.items() if n.endswith(".weight.dq")
    }
    blocks = [f"layer{i}.{j}.conv{k}" for i in (1, 2, 3, 4) for j in (0, 1) for k in (1, 2)]
    shortcuts = [f"layer{i}.0.downsample.0" for i in (2, 3, 4)]
    assert set(weights) == {"conv1", "fc", *blocks, *shortcuts}
    eight = {"conv1", "fc"}
    assert {n for n, a in weights.items() if (a["qmin"], a["qmax"]) == (-127, 127)} == eight
    assert {n for n, a in weights.items() if (a["qmin"], a["qmax"]) == (-7, 7)} == set(
        weights
    ) - eight
    inputs = {n: (a["qmin"], a["qmax"], a["dtype"]) for n, a in q4_calls(mod, "quantize").items()}
    assert inputs["input"] == (-128, 127, "int8")
    assert inputs["layer1.0.conv1.out"] == inputs["layer4.1.conv1.out"] == (0, 15, "uint8")
    assert inputs["avgpool.out"] == (0, 255, "uint8")
    assert inputs["layer2.0.downsample.0.out"][2] == "int8"
    assert {inputs["layer1.0.add"], inputs["layer1.0.add.q2"]} == {
        (0, 15, "uint8"),
        (0, 255, "uint8"),
    }
    assert {span_name(c) for c in convolutions(mod)} == {"conv1", *blocks, *shortcuts}
    facts = model_meta(mod)
    assert (facts["name"], facts["source_format"], facts["classes"]) == (
        "r18",
        "torch.export",
        ["a"],
    )


def test_a_layers_name_comes_from_its_parameter_where_module_paths_are_missing(
    resnet18_w4a4: torch.export.ExportedProgram,
) -> None:
    program = torch.export.export(
        resnet18_w4a4.module(check_guards=False), (torch.randn(2, 3, 64, 64),)
    )
    for node in program.graph.nodes:
        node.meta.pop("nn_module_stack", None)
    names = {n for n in q4_calls(import_exported(program)) if n.endswith(".weight.dq")}
    assert names == {
        n for n in q4_calls(import_exported(resnet18_w4a4)) if n.endswith(".weight.dq")
    }


@pytest.mark.parametrize(("batch", "size"), [(1, (64, 64)), (3, (61, 45)), (None, None)])
def test_batch_and_image_size_are_specialised(
    resnet18_w4a4: torch.export.ExportedProgram, batch: int | None, size: tuple[int, int] | None
) -> None:
    mod = import_exported(resnet18_w4a4, batch=batch, image_size=size)
    shape = [batch or 1, 3, *(size or (64, 64))]
    assert [int(d) for d in mod["main"].params[0].ty.shape] == shape
    assert [int(d) for d in mod["main"].ret_ty.shape] == [shape[0], 1000]


def convolutions(mod: tvm.IRModule) -> list[relax.Call]:
    """The float convolutions of main."""
    calls = [b.value for b in bindings(mod) if hasattr(b.value, "op")]
    return [c for c in calls if c.op.name == "relax.nn.conv2d"]


def check_against_torch(program: torch.export.ExportedProgram, x: np.ndarray) -> None:
    """Each quantized tensor, computed from torch's own inputs to it, within one step of torch's."""
    mod = import_exported(program, batch=x.shape[0], image_size=x.shape[2:])
    logits, tensors = torch_tensors(program, torch.from_numpy(x))
    names = list(q4_calls(mod, "quantize"))
    assert len(names) == len(tensors)
    theirs = dict(zip(names, tensors, strict=True))
    ours = ReferenceExecutor(mod).trace(x, overrides=theirs)
    for name, want in theirs.items():
        steps = np.abs(ours[name].astype("int32") - want.astype("int32"))
        assert ours[name].dtype == want.dtype and steps.max() <= 1, name
        assert (steps > 0).mean() <= 0.002, (
            f"{name}: {(steps > 0).mean():.4f} of the elements differ"
        )
        assert len(np.unique(want)) > 2, f"{name} is dead, the comparison would say nothing"
    mine = ReferenceExecutor(mod).run(x)
    assert mine.shape == logits.shape


@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize("batch", [1, 3])
def test_cifar_resnet_agrees_with_torch(shortcut: str, batch: int) -> None:
    torch.manual_seed(1)
    program = quantized(CifarResNet(8, shortcut), 32, "uniform4")
    counts = op_counts(import_exported(program))
    pads, slices, convs = (counts[f"relax.{op}"] for op in ("nn.pad", "strided_slice", "nn.conv2d"))
    assert (pads, slices, convs) == ((2, 4, 7) if shortcut == "A" else (0, 0, 9))
    check_against_torch(program, torch.randn(batch, 3, 31, 29).numpy())


def test_padded_shortcut_names_and_pad_widths() -> None:
    torch.manual_seed(1)
    mod = import_exported(quantized(CifarResNet(8, "A"), 32, "uniform8"))
    assert "layer2.0.downsample.pad" in q4_calls(mod, "quantize")
    pad = next(b.value for b in bindings(mod) if span_name(b.value) == "layer2.0.downsample.pad")
    assert [int(p) for p in pad.attrs["pad_width"]] == [0, 0, 8, 8, 0, 0, 0, 0]


def test_grouped_convolutions_agree_with_torch() -> None:
    from tvm_q4.frontend.zoo import torchvision_models

    torch.manual_seed(2)
    resnet = torchvision_models().resnet
    network = resnet.ResNet(
        resnet.Bottleneck, [1, 1, 1, 1], num_classes=7, groups=8, width_per_group=4
    )
    program = quantized(network, 33, "w4a8")
    mod = import_exported(program)
    groups = {span_name(c): int(c.attrs["groups"]) for c in convolutions(mod)}
    assert groups["layer1.0.conv2"] == 8 and groups["layer1.0.conv1"] == 1
    assert constant_of(mod, "layer1.0.conv2.weight.dq", 0).shape == (32, 4, 3, 3)
    check_against_torch(program, torch.randn(1, 3, 33, 35).numpy())


def test_float_network_with_unfolded_batch_norm_agrees_with_torch() -> None:
    from tvm_q4.frontend.zoo import torchvision_models

    torch.manual_seed(3)
    network = torchvision_models().resnet18(weights=None, num_classes=5)
    network.train()(torch.randn(4, 3, 32, 32))
    program = export(network, 1, 3, 37, 41)
    assert not is_quantized(program)
    x = torch.randn(1, 3, 37, 41)
    want = network(x).detach().numpy()
    for form in (program, program.run_decompositions()):
        mod = import_exported(form)
        assert op_counts(mod)["relax.nn.batch_norm"] == 20
        np.testing.assert_allclose(
            ReferenceExecutor(mod).run(x.numpy()), want, rtol=1e-3, atol=1e-4
        )


CONVOLUTIONS = {
    "same padding, even kernel": {"kernel_size": (2, 4), "padding": "same"},
    "same padding, dilated": {"kernel_size": 3, "padding": "same", "dilation": (2, 1)},
    "no bias": {"kernel_size": 1, "bias": False},
    "valid padding": {"kernel_size": 3, "padding": "valid"},
    "uneven": {"kernel_size": (3, 2), "stride": (2, 1), "padding": (0, 1), "dilation": (1, 2)},
    "grouped": {"kernel_size": 3, "groups": 2, "padding": 1},
    "depthwise": {"kernel_size": 3, "groups": 4, "stride": 2},
}  # fmt: skip


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolution_agrees_with_torch(case: str) -> None:
    torch.manual_seed(4)
    net = nn.Conv2d(4, 8, **CONVOLUTIONS[case])
    program = export(net, 2, 4, 9, 7)
    x = torch.from_numpy(ramp(3, 4, 9, 7))
    for form in (program, program.run_decompositions()):
        found = ReferenceExecutor(import_exported(form, batch=3)).run(x.numpy())
        np.testing.assert_allclose(found, net(x).detach().numpy(), rtol=1e-5, atol=1e-5)


SMALL = {
    "ceil-mode max pool": lambda m, x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True),
    "max pool, last window dropped": lambda m, x: F.max_pool2d(x, 2, 3, 1, ceil_mode=True),
    "dilated max pool": lambda m, x: F.max_pool2d(x, 2, 1, 0, 3),
    "average pool counting padding": lambda m, x: F.avg_pool2d(x, 3, 1, 1),
    "average pool skipping padding": lambda m, x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "adaptive pool 1": lambda m, x: F.adaptive_avg_pool2d(x, 1),
    "adaptive pool that divides": lambda m, x: F.adaptive_avg_pool2d(x, (3, None)),
    "mean keeping dimensions": lambda m, x: x.mean((2, 3), keepdim=True),
    "mean": lambda m, x: x.mean([-1, -2]),
    "relu6": lambda m, x: F.relu6(x),
    "hardtanh": lambda m, x: F.hardtanh(x, -0.25, 0.75),
    "clamp from below": lambda m, x: x.clamp(min=-0.5),
    "clamp at zero": lambda m, x: x.clamp(min=0),
    "concat": lambda m, x: torch.cat([x, F.relu(x), x], 1),
    "channel padding": lambda m, x: F.pad(x[:, :, ::2, 1::2], (0, 0, 0, 0, 1, 2)),
    "squeeze everything": lambda m, x: F.adaptive_avg_pool2d(x, 1).squeeze(),
    "view with the recorded batch": lambda m, x: x.view(2, -1),
    "reshape with inferred batch": lambda m, x: x.reshape(-1, 4 * 9 * 7),
    "transpose": lambda m, x: x.transpose(1, 2).permute(0, 3, 1, 2),
    "no-ops": lambda m, x: x.contiguous().clone().detach().to(torch.float32) + x,
    "dropout": lambda m, x: F.dropout(x, 0.5, m.training),
}  # fmt: skip


@pytest.mark.parametrize("case", SMALL)
def test_operator_agrees_with_torch_also_at_another_batch(case: str) -> None:
    net = Lambda(SMALL[case]).eval()
    program = export(net, 2, 4, 9, 7)
    for form in (program, program.run_decompositions()):
        for batch in (2, 3):
            x = torch.from_numpy(ramp(batch, 4, 9, 7))
            found = ReferenceExecutor(import_exported(form, batch=batch)).run(x.numpy())
            want = x.reshape(batch, -1) if case == "view with the recorded batch" else net(x)
            np.testing.assert_allclose(found, want.numpy(), rtol=1e-6, atol=1e-6)


def test_static_batch_is_kept_and_image_size_that_does_not_fit_names_the_layer() -> None:
    net = Lambda(lambda m, x: m.fc(torch.flatten(x, 1)), fc=nn.Linear(4 * 9 * 7, 3))
    program = export(net, 2, 4, 9, 7)
    assert [int(d) for d in import_exported(program)["main"].ret_ty.shape] == [2, 3]
    with pytest.raises(
        UnsupportedError, match=r"node 'linear'.*takes 252 features and is given 324"
    ):
        import_exported(program, image_size=(9, 9))


def test_dynamic_image_size_must_be_given() -> None:
    sizes = ({2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO},)
    program = torch.export.export(
        Lambda(lambda m, x: F.relu(x)), (torch.randn(1, 3, 8, 8),), dynamic_shapes=sizes
    )
    with pytest.raises(InputError, match="--image-size"):
        import_exported(program)
    assert [int(d) for d in import_exported(program, image_size=(5, 7))["main"].ret_ty.shape] == [
        1,
        3,
        5,
        7,
    ]
