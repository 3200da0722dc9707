"""Where `Q4Quantizer` puts quantizers, read off the exported graphs."""

from functools import cache

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchao")

from torch import nn  # noqa: E402

import tvm_q4  # noqa: E402
from tvm_q4.errors import InputError, UnsupportedError  # noqa: E402
from tvm_q4.frontend.torch_export import import_exported  # noqa: E402
from tvm_q4.models.resnet_cifar import CifarResNet  # noqa: E402
from tvm_q4.quantize import BitConfig, LayerBits, quantize_ptq  # noqa: E402

Q = torch.ops.quantized_decomposed
QUANTIZE, DEQUANTIZE = Q.quantize_per_tensor.default, Q.dequantize_per_tensor.default
PER_CHANNEL = Q.dequantize_per_channel.default
aten = torch.ops.aten
ALLOWED = {
    QUANTIZE, DEQUANTIZE, PER_CHANNEL, aten.conv2d.default, aten.linear.default, aten.relu.default,
    aten.add.Tensor, aten.max_pool2d.default, aten.avg_pool2d.default, aten.cat.default,
    aten.adaptive_avg_pool2d.default, aten.flatten.using_ints, aten.slice.Tensor, aten.pad.default,
}  # fmt: skip
U8, S8, U4, S4 = (0, 255), (-128, 127), (0, 15), (-8, 7)


class Stem(nn.Module):
    """Stem with max-pool, one bottleneck-like block with a grouped convolution, dropout."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.a = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.b = nn.Conv2d(8, 8, 1)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = self.pool(torch.relu_(self.bn1(self.conv1(x))))
        y = self.b(torch.relu(self.a(x)))
        y += x
        return self.fc(self.drop(torch.flatten(nn.functional.adaptive_avg_pool2d(y.relu_(), 1), 1)))


class Branches(nn.Module):
    """Inception-like: an input read by two convolutions and a pool, concatenated."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.left = nn.Conv2d(8, 4, 1)
        self.right = nn.Conv2d(8, 4, 3, padding=1)
        self.last = nn.Conv2d(16, 4, 1)
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        x = self.conv1(x).relu()
        pooled = nn.functional.avg_pool2d(x, 3, 1, 1)
        x = torch.cat([self.left(x).relu(), self.right(x).relu(), pooled], 1)
        return self.fc(self.last(x).relu().mean([2, 3]))


def quantized(model, config, size=16, **options):
    torch.manual_seed(0)
    x = torch.randn(2, 3, size, size)
    return quantize_ptq(model, (x,), [x], config, **options)


@cache
def cifar(shortcut, config):
    return quantized(CifarResNet(8, shortcut), config)


def calls(program, operator):
    return [n for n in program.graph.nodes if n.op == "call_function" and n.target is operator]


def named(program, layer):
    """Return the node of a layer, found by the name that its weight was given."""
    names = program.graph_signature.inputs_to_buffers
    for node in calls(program, aten.conv2d.default) + calls(program, aten.linear.default):
        if names[node.args[1].args[0].name] == f"{layer}.weight":
            return node
    raise AssertionError(layer)


def read_range(node, position=0):
    """Return the integer range at which `node` reads an operand; None where it reads floats."""
    source = node.args[position]
    return tuple(source.args[3:5]) if source.target is DEQUANTIZE else None


def quantize_of(node, position=0):
    return node.args[position].args[0]


def weight_range(node):
    return tuple(node.args[1].args[4:6])


@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize("config", ["uniform8", "uniform4", "w4a8"])
def test_cifar_resnet_has_only_known_operators_and_ranges(shortcut, config):
    program = cifar(shortcut, config)
    operators = {n.target for n in program.graph.nodes if n.op == "call_function"}
    assert operators <= ALLOWED
    inner, weights = (
        (U4 if config == "uniform4" else U8),
        ((-127, 127) if config == "uniform8" else (-7, 7)),
    )
    for layer in ("layer1.0.conv1", "layer1.0.conv2", "layer2.0.conv1", "layer3.0.conv2"):
        assert read_range(named(program, layer)) == inner
        assert weight_range(named(program, layer)) == weights
    assert read_range(named(program, "conv1")) == S8
    assert read_range(named(program, "fc")) == U8
    assert (
        weight_range(named(program, "conv1")) == weight_range(named(program, "fc")) == (-127, 127)
    )


def test_integers_stay_in_range_and_zero_points_are_zero():
    program = cifar("B", "uniform4")
    state = program.state_dict
    assert int(state["layer1.0.conv1.weight"].abs().max()) <= 7
    assert int(state["conv1.weight"].abs().max()) > 7
    for name, value in state.items():
        if name.endswith("zero_point"):
            assert not value.any()
    assert all(node.args[2] == 0 for node in calls(program, QUANTIZE))


def test_residual_add_reads_the_accumulator_and_an_integer_skip():
    program = cifar("B", "uniform4")
    plain, *strided = calls(program, aten.add.Tensor)
    assert plain.args[0] is named(program, "layer1.0.conv2") and read_range(plain, 1) == U8
    for add, layer in zip(strided, ("layer2.0", "layer3.0"), strict=True):
        assert add.args[0] is named(program, f"{layer}.conv2")
        assert read_range(add, 1) == S8
        assert quantize_of(add, 1).args[0] is named(program, f"{layer}.downsample.0")


def test_skip_is_chosen_by_depth_where_the_shortcut_stands_first():
    class Swapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 1)
            self.a, self.b, self.short = (nn.Conv2d(4, 4, 1) for _ in range(3))
            self.fc = nn.Linear(4, 2)

        def forward(self, x):
            x = self.stem(x).relu()
            y = (self.short(x) + self.b(self.a(x).relu())).relu()
            return self.fc(y.mean([2, 3]))

    program = quantized(Swapped(), "uniform8")
    (add,) = calls(program, aten.add.Tensor)
    assert add.args[1] is named(program, "b")
    assert read_range(add, 0) == S8


def test_one_tensor_has_one_quantizer_a_precision():
    w4 = cifar("B", "uniform4")
    first, shortcut = named(w4, "layer2.0.conv1"), named(w4, "layer2.0.downsample.0")
    assert quantize_of(first) is quantize_of(shortcut)
    conv, add = named(w4, "layer1.0.conv1"), calls(w4, aten.add.Tensor)[0]
    assert read_range(conv) == U4 and read_range(add, 1) == U8
    assert quantize_of(conv).args[0] is quantize_of(add, 1).args[0]
    w8 = cifar("B", "uniform8")
    conv, add = named(w8, "layer1.0.conv1"), calls(w8, aten.add.Tensor)[0]
    assert quantize_of(conv) is quantize_of(add, 1)


def test_padded_shortcut_stays_on_one_integer_grid():
    program = cifar("A", "uniform8")
    add = calls(program, aten.add.Tensor)[1]
    after = quantize_of(add, 1)
    node = after.args[0]
    while node.target in (aten.pad.default, aten.slice.Tensor):
        node = node.args[0]
    assert node.target is DEQUANTIZE
    assert node.args[1:] == after.args[1:]
    assert node.args[0] is quantize_of(named(program, "layer2.0.conv1"))


def test_max_pool_runs_on_the_stream_and_is_read_at_two_precisions():
    program = quantized(Stem(), "uniform4")
    (pool,) = calls(program, aten.max_pool2d.default)
    (add,) = calls(program, aten.add.Tensor)
    assert read_range(pool) == U8
    assert quantize_of(add, 1).args[0] is pool
    assert quantize_of(add, 1).args[1:] == quantize_of(pool).args[1:]
    assert read_range(named(program, "a")) == U4
    assert read_range(named(program, "b")) == U4
    assert {n.target for n in program.graph.nodes if n.op == "call_function"} <= ALLOWED


def test_concat_branches_are_quantized_each_at_its_own_scale():
    program = quantized(Branches(), "uniform4")
    (cat,) = calls(program, aten.cat.default)
    branches = cat.args[0]
    assert [tuple(b.args[3:5]) for b in branches] == [U8, U8, U8]
    assert len({b.args[1] for b in branches}) == 3
    (pool,) = calls(program, aten.avg_pool2d.default)
    assert read_range(pool) == U8
    assert read_range(named(program, "last")) == U4


def test_input_of_a_layer_without_relu_is_signed():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(1024, 2))
    program = quantized(model, "uniform4")
    assert read_range(named(program, "1")) == S4
    assert read_range(named(program, "3")) == S8


def test_bit_config_by_layer_and_residual_bits():
    config = BitConfig(
        LayerBits(8, 8), {"layer2.0.conv2": LayerBits(4, 4), "conv1": LayerBits(4, 8)}
    )
    program = quantized(CifarResNet(8), config, residual_bits=4)
    assert read_range(named(program, "layer2.0.conv2")) == U4
    assert weight_range(named(program, "layer2.0.conv2")) == (-7, 7)
    assert read_range(named(program, "layer2.0.conv1")) == U8
    assert weight_range(named(program, "conv1")) == (-7, 7)
    assert read_range(calls(program, aten.add.Tensor)[0], 1) == U4
    assert read_range(calls(program, aten.add.Tensor)[1], 1) == S4


def test_stream_of_16_bits_is_int16_and_compiled_exactly():
    torch.manual_seed(3)
    x = torch.randn(2, 3, 16, 16)
    program = quantize_ptq(CifarResNet(8, "A"), (x,), [x], "uniform4", residual_bits=16)
    for add in calls(program, aten.add.Tensor):
        assert read_range(add, 1) == (-(1 << 15), (1 << 15) - 1)
        assert quantize_of(add, 1).args[5] == torch.int16
    assert read_range(named(program, "layer1.0.conv2")) == U4
    library = tvm_q4.compile(program, batch=2, require_integer_only=True)
    module = import_exported(program, batch=2)
    assert tvm_q4.verify(library, module, x.numpy())["bit_exact"]


def test_views_and_means_after_a_relu_are_unsigned():
    class Viewed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

        def forward(self, x):
            y = nn.functional.avg_pool2d(self.conv(x).relu(), 14)
            return self.fc(y.view(y.size(0), -1))

    class Averaged(Viewed):
        def forward(self, x):
            return self.fc(self.conv(x).relu().mean([2, 3], keepdim=True).reshape(-1, 4))

    assert read_range(named(quantized(Viewed(), "uniform8"), "fc")) == U8
    program = quantized(Averaged(), "uniform8")
    assert read_range(named(program, "fc")) == U8
    (mean,) = calls(program, aten.mean.dim)
    assert read_range(mean) == U8


def test_any_batch_size_runs_and_a_program_is_accepted():
    torch.manual_seed(1)
    model = CifarResNet(8).eval()
    x = torch.randn(2, 3, 16, 16)
    direct = quantize_ptq(model, (x[:1],), [x], "uniform8")
    again = quantize_ptq(torch.export.export(model, (x,)), (x,), [x], "uniform8")
    with torch.no_grad():
        expected = direct.module()(x)
        assert torch.equal(again.module()(x), expected)
        for n in (1, 3, 5):
            batch = x[:1].repeat(n, 1, 1, 1)
            assert direct.module()(batch).shape == (n, 10)


def test_quantized_network_follows_the_float_one():
    torch.manual_seed(2)
    model = CifarResNet(8).eval()
    x = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        reference = model(x)
        error8 = quantize_ptq(model, (x,), [x], "uniform8").module()(x) - reference
        error4 = quantize_ptq(model, (x,), [x], "uniform4").module()(x) - reference
    noise8, noise4 = (
        float(e.square().mean() / reference.square().mean()) for e in (error8, error4)
    )
    assert noise8 < 1e-3 < noise4 < 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_observer": "best"}, "weight_observer is 'best'"),
        ({"activation_observer": "best"}, "activation_observer is 'best'"),
        ({"residual_bits": 6}, "residual_bits is 6"),
    ],
)
def test_bad_options_are_errors(options, message):
    with pytest.raises(InputError, match=message):
        quantized(CifarResNet(8), "uniform8", **options)


def test_no_calibration_data_and_unknown_layer_are_errors():
    x = torch.randn(2, 3, 16, 16)
    with pytest.raises(InputError, match="no calibration batches"):
        quantize_ptq(CifarResNet(8), (x,), [], "uniform8")
    with pytest.raises(InputError, match="'layer9'"):
        quantized(CifarResNet(8), BitConfig(LayerBits(8, 8), {"layer9": LayerBits(4, 4)}))
    with pytest.raises(UnsupportedError, match="no convolution or linear layer"):
        quantized(nn.ReLU(), "uniform8")


@pytest.mark.parametrize(("depth", "shortcut"), [(7, "B"), (2, "B"), (20, "C")])
def test_cifar_resnet_refuses_impossible_forms(depth, shortcut):
    with pytest.raises(InputError, match="CIFAR ResNet"):
        CifarResNet(depth, shortcut)
