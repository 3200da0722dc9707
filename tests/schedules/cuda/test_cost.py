from __future__ import annotations

import dataclasses
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.schedules.cuda.gemms import best, conv, network_us, tiles
from tests.schedules.cuda.resources import Usage, kernel_usage, occupancy_loss
from tvm_q4.schedules.cuda.cost import (
    GemmShape,
    Resources,
    Tile,
    blocks_per_sm,
    occupancy,
    predict_memory_us,
    predict_us,
    resources,
)
from tvm_q4.schedules.cuda.device import DEVICES

T4, A100, RTX3090, L4, H200 = (DEVICES[n] for n in ("t4", "a100", "rtx3090", "l4", "h200"))
LARGE = Tile(128, 128, 64, 64, 64, 3)


# --- Resources -----------------------------------------------------------------------------------


def test_resources_of_a_large_tile():
    # 128 sums, (64 + 64) / 8 * 2 words of fragments, 8 copies, 32 others: 200.
    assert resources(LARGE, 80) == Resources(128, 3 * 16384, 200)
    # On sm_75 each of the copies waits in 4 registers.
    assert resources(dataclasses.replace(LARGE, stages=2), 75) == Resources(128, 2 * 16384, 232)


def test_a_residual_takes_registers():
    assert resources(LARGE, 80, residual=True).registers == 216


def test_weights_of_twice_the_bytes_take_twice_the_shared_memory():
    assert resources(LARGE, 90, b_ratio=2.0).shared == 3 * (128 + 256) * 64


@pytest.mark.parametrize(
    ("used", "device", "blocks"),
    [
        (Resources(128, 16384, 240), A100, 2),  # registers: 8 warps of 240
        (Resources(128, 49152, 64), A100, 3),  # shared memory: 164 KiB in units of 49
        (Resources(256, 1024, 32), A100, 8),  # threads: 2048
        (Resources(32, 1024, 32), T4, 16),  # blocks
        (Resources(128, 33 * 1024, 32), T4, 1),  # 64 KiB an SM
        (Resources(128, 32 * 1024, 32), T4, 2),  # which sm_75 does not take a KiB of
        (Resources(128, 50 * 1024, 32), L4, 1),  # while from sm_80 on every block does
        (Resources(128, 65 * 1024, 32), T4, 0),
        (Resources(2048, 1024, 16), A100, 0),
        (Resources(128, 1024, 256), A100, 0),
    ],
)
def test_blocks_per_sm(used, device, blocks):
    assert blocks_per_sm(used, device) == blocks


def test_a_tile_that_does_not_fit_is_infinitely_slow():
    shape = conv(8, 56, 64, 64, 3, 8, A100)
    for tile in (Tile(256, 128, 128, 64, 64, 5), Tile(128, 128, 64, 128, 128, 3)):
        assert occupancy(tile, A100) == 0
        assert predict_us(shape, tile, A100).us == math.inf


def test_there_is_no_int4_instruction_on_hopper():
    shape = dataclasses.replace(conv(8, 56, 64, 64, 3, 4, A100), bits_mma=4)
    assert predict_us(shape, LARGE, A100).us < math.inf
    assert predict_us(shape, LARGE, H200).us == math.inf


def test_gate_of_compiled_kernels():
    text = """
Resource usage:
 Common:
  GLOBAL:0
 Function conv_sm80:
  REG:238 STACK:0 SHARED:1024 LOCAL:8 CONSTANT[0]:360 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function add_sm80:
  REG:10 STACK:16 SHARED:0 LOCAL:0 CONSTANT[0]:360 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
    usage = kernel_usage(text)
    assert usage == {"conv_sm80": Usage(238, 0, 1024, 8), "add_sm80": Usage(10, 16, 0, 0)}
    assert occupancy_loss(Resources(128, 49152, 254), LARGE, A100) is None
    loss = occupancy_loss(Resources(128, 120 * 1024, 238), LARGE, A100)
    assert loss is not None
    assert loss.startswith("1 CTAs an SM of a100, not 2")


# --- Terms ---------------------------------------------------------------------------------------


def test_feed_ratios_of_warp_tiles():
    """Shared over tensor time doubles from T4 to A100 to H200 (performance.md, section 6)."""
    ratios = []
    for device in (T4, A100, H200):
        tile = dataclasses.replace(LARGE, stages=2)
        parts = predict_us(conv(128, 56, 256, 256, 3, 8, device), tile, device).parts
        ratios.append(parts["shared"] / parts["mma"] / device.mma_efficiency)
    assert ratios[1] / ratios[0] == pytest.approx(2)
    assert ratios[2] / ratios[0] == pytest.approx(4)
    # ldmatrix alone is 0.25 on a T4; what copies write comes on top.
    assert ratios[0] == pytest.approx(0.25 * 1.5)


def test_half_warp_tiles_read_shared_memory_twice_as_often():
    shape = conv(128, 56, 256, 256, 3, 8, A100)
    small, large = (
        predict_us(shape, Tile(128, 128, 64, w, w, 3), A100).parts["shared"] for w in (32, 64)
    )
    written = 128 * 2 * 64
    assert small / large == pytest.approx((4 * written + written) / (2 * written + written))


def test_waves_have_a_tail():
    """One CTA more than a whole wave costs much of a wave; the next ones cost little."""
    times = [
        predict_us(conv_of_rows(128 * ctas), LARGE, A100).us for ctas in (216, 217, 300, 324, 432)
    ]
    full, tail, more, third, two = times
    assert tail - full > 0.3 * (two - full)
    assert third - tail < 0.2 * (tail - full)
    assert more <= third


def conv_of_rows(m: int) -> GemmShape:
    return GemmShape(m, 128, 2304, 2304, m * 256, 128 * 2304, m * 128)


def test_more_stages_hide_latency_of_short_steps():
    shape = conv(1, 14, 256, 256, 3, 8, A100)
    two, four = (predict_us(shape, Tile(64, 64, 32, 32, 32, s), A100).us for s in (2, 4))
    assert four < two


def test_split_k_where_ctas_are_fewer_than_sms():
    assert best(conv(1, 7, 512, 512, 3, 8, A100), A100, tiles(A100))[1].split_k > 1
    assert best(conv(128, 56, 64, 64, 3, 8, A100), A100, tiles(A100))[1].split_k == 1


def test_split_k_pays_for_its_partial_sums():
    shape = conv(128, 56, 64, 64, 3, 8, A100)
    whole, split = (predict_us(shape, Tile(128, 64, 64, 64, 32, 3, k), A100) for k in (1, 4))
    assert whole.parts["reduce"] == 0
    assert split.parts["reduce"] > 4 * shape.outputs * 4 / 1555e3  # at least all of them from DRAM
    assert split.us > whole.us


def test_a_residual_and_widening_cost_integer_operations():
    tile = Tile(128, 64, 64, 32, 64, 3)
    plain = conv(8, 14, 256, 1024, 1, 8, H200)
    with_skip = conv(8, 14, 256, 1024, 1, 8, H200, residual=True)
    assert predict_us(with_skip, tile, H200).us > predict_us(plain, tile, H200).us
    packed = conv(8, 14, 256, 1024, 1, 4, H200)
    unwidened = dataclasses.replace(packed, widen=False)
    alu = [predict_us(s, tile, H200).parts["alu"] for s in (packed, unwidened)]
    assert alu[0] > alu[1]


@pytest.mark.parametrize("name", DEVICES)
def test_memory_kernels_reach_most_of_the_bandwidth(name):
    device = DEVICES[name]
    floor = 1e9 / (device.dram_gbs * 1e3)
    assert floor < predict_memory_us(5e8, 5e8, device) < 1.25 * floor
    assert device.launch_us < predict_memory_us(1000, 1000, device) < device.launch_us + 3


# --- Monotonicity --------------------------------------------------------------------------------

_DEVICES = st.sampled_from(list(DEVICES.values()))
_TILES = st.builds(
    Tile,
    st.sampled_from((64, 128, 256)),
    st.sampled_from((64, 128)),
    st.sampled_from((32, 64, 128)),
    st.sampled_from((32, 64)),
    st.sampled_from((32, 64)),
    st.integers(2, 4),
    st.sampled_from((1, 2, 4, 16)),
)


@st.composite
def _layers(draw):
    """Arguments of `conv` but for the device."""
    bits = draw(st.sampled_from((4, 8)))
    return {
        "batch": draw(st.integers(1, 128)),
        "side": draw(st.sampled_from((7, 14, 28, 56))),
        "channels": draw(st.sampled_from((32, 64, 256, 1024))),
        "out_channels": draw(st.sampled_from((32, 96, 256, 1024))),
        "kernel": draw(st.sampled_from((1, 3))),
        "bits": bits,
        "residual": draw(st.booleans()),
    }


def _us(arguments, tile, device, **change):
    return predict_us(conv(**(arguments | change), device=device), tile, device).us


@given(_layers(), _TILES, _DEVICES, st.integers(1, 128))
@settings(max_examples=150, deadline=None)
def test_more_images_are_never_faster(arguments, tile, device, more):
    assert _us(arguments, tile, device, batch=arguments["batch"] + more) >= _us(
        arguments, tile, device
    )


@given(_layers(), _TILES, _DEVICES, st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_more_channels_are_never_faster(arguments, tile, device, times):
    now = _us(arguments, tile, device)
    assert _us(arguments, tile, device, channels=arguments["channels"] * times) >= now
    assert _us(arguments, tile, device, out_channels=arguments["out_channels"] * times) >= now


@given(
    _layers(),
    _TILES,
    _DEVICES,
    st.sampled_from(("sms", "dram_gbs", "l2_gbs", "l2_mb", "int8_macs", "shared_bytes_clk")),
    st.floats(1, 4),
)
@settings(max_examples=200, deadline=None)
def test_a_better_device_is_never_slower(arguments, tile, device, field, factor):
    better = dataclasses.replace(device, **{field: math.ceil(getattr(device, field) * factor)})
    assert _us(arguments, tile, better) <= _us(arguments, tile, device) * (1 + 1e-9)


@given(_layers(), _TILES, _DEVICES)
@settings(max_examples=100, deadline=None)
def test_no_term_exceeds_the_prediction(arguments, tile, device):
    found = predict_us(conv(**arguments, device=device), tile, device)
    counted = {k: v for k, v in found.parts.items() if k not in ("mma", "waves")}
    assert all(0 <= part <= found.us * (1 + 1e-9) for part in counted.values())


# --- Against what others published ---------------------------------------------------------------


def _rows(data_dir, network="resnet50"):
    roofline = json.loads(data_dir("roofline", "roofline.json").read_text())
    return roofline, roofline["networks"][network]["layers"]


ROOFLINE_NAMES = {"t4": "T4@900MHz", "a100": "A100-40GB", "l4": "L4", "h200": "H200-SXM"}


@pytest.mark.parametrize("name", ROOFLINE_NAMES)
@pytest.mark.parametrize("batch", [8, 128])
@pytest.mark.parametrize("bits", [8, 4])
def test_networks_lie_above_the_tile_bound(data_dir, name, batch, bits):
    roofline, rows = _rows(data_dir)
    key = ("resnet50", ROOFLINE_NAMES[name], f"W{bits}A{bits}", batch)
    (bound,) = (
        r["t_tile_us"]
        for r in roofline["results"]
        if (r["net"], r["device"], r["precision"], r["batch"]) == key
    )
    # A batch of 8 pays for launches, and for chains of steps that nothing hides.
    most = 1.9 if batch == 128 and bits == 8 else 4.2
    assert bound < network_us(rows, batch, bits, DEVICES[name]) < most * bound


@pytest.mark.parametrize(
    ("name", "bits", "batch", "published_us", "least", "most"),
    [
        # MLPerf ResNet-50 v1.5, TensorRT int8; batch 1 and 8 are latencies with their host's part.
        ("t4", 8, 1, 840, 0.7, 1.0),
        ("t4", 8, 8, 2240, 0.8, 1.1),
        ("t4", 8, 128, 128e6 / 6036, 0.9, 1.25),
        ("t4", 4, 128, 128e6 / 9062, 0.9, 1.25),
        ("a100-80gb", 8, 1, 400, 0.7, 1.0),
        ("a100-80gb", 8, 8, 630, 0.65, 1.1),
        ("a100-80gb", 8, 128, 128e6 / 43733, 0.9, 1.45),  # NVIDIA fuses all of stage 1
        ("l4", 8, 1, 390, 0.7, 1.0),
        ("l4", 8, 8, 750, 0.8, 1.1),
        ("h200", 8, 128, 128e6 / 94620, 0.9, 1.8),  # and uses wgmma with multicast
    ],
)
def test_resnet50_is_near_published_results(data_dir, name, bits, batch, published_us, least, most):
    predicted = network_us(_rows(data_dir)[1], batch, bits, DEVICES[name])
    assert least < predicted / published_us < most


@pytest.mark.parametrize(("channels", "tops"), [(128, 5.2), (512, 30), (1024, 65)])
def test_few_ctas_that_walk_all_of_k(channels, tops):
    """CUTLASS int4 on an RTX 3090, one 16x16 image, 3x3, 128x128x128 tiles (APNN-TC's tables)."""
    shape = conv(1, 16, channels, channels, 3, 4, RTX3090)
    operations = 2 * shape.outputs * shape.k_ops
    assert operations / predict_us(shape, LARGE, RTX3090).us / 1e6 == pytest.approx(tops, rel=0.25)


@pytest.mark.parametrize(("channels", "bits", "tops"), [(64, 8, 187), (128, 4, 440)])
def test_large_convolutions(channels, bits, tops):
    """CUTLASS on an RTX 3090, 3x3, tuned (CUTLASS issue 336)."""
    shape = conv(64, 128, channels, channels, 3, bits, RTX3090)
    found, _ = best(shape, RTX3090, tiles(RTX3090))
    assert 2e-6 * shape.outputs * shape.k_ops / found.us == pytest.approx(tops, rel=0.1)


@pytest.mark.parametrize("network", ["resnet18", "resnet50"])
@pytest.mark.parametrize("bits", [4, 8])
def test_predictions_lie_below_hawqs_kernels(data_dir, network, bits):
    """HAWQ-V3's tuned T4 kernels, at about a tenth of the peak, are slower than predictions."""
    path = data_dir("hawq-v3", "t4_layer_latency.json")
    choices = tiles(T4)
    for row in json.loads(path.read_text())["network"][network]["layers"]:
        kernel, channels, out_channels, stride, side = _hawq_shape(row["shape"])
        shape = conv(8, side, channels, out_channels, kernel, bits, T4, stride)
        found, _ = best(shape, T4, choices)
        assert found.us - T4.launch_us < row[f"log_int{bits}_us"]


def _hawq_shape(text: str) -> tuple[int, int, int, int, int]:
    """Kernel, channels, output channels, stride, side of ``3x3 64->128 s2 in56``."""
    window, channels, stride, side = text.split()
    inner, outer = channels.split("->")
    return int(window[0]), int(inner), int(outer), int(stride[1:]), int(side[2:])
