from __future__ import annotations

import pytest
from tvm.target import Target

from tvm_q4.cuda_target import parse_cuda
from tvm_q4.errors import TargetError
from tvm_q4.schedules.cuda.device import DEVICES, device_of, family_of

# Dense int8 and int4 TOPS as the data sheets print them.
DATASHEET_TOPS = {
    "t4": (130, 260),
    "a100": (624, 1248),
    "a100-80gb": (624, 1248),
    "rtx3090": (284, 568),
    "a10": (250, 500),
    "l4": (242, 485),
    "rtx4090": (661, 1321),
    "h100": (1979, 0),
    "h200": (1979, 0),
}


def cuda(arch: str, *keys: str) -> Target:
    return Target({"kind": "cuda", "arch": arch, "keys": ["cuda", "gpu", *keys]})


@pytest.mark.parametrize("name", DATASHEET_TOPS)
def test_rates_reproduce_the_datasheet(name):
    device = DEVICES[name]
    tops = [2e-3 * device.sms * device.boost_ghz * m for m in (device.int8_macs, device.int4_macs)]
    assert tops == pytest.approx(DATASHEET_TOPS[name], rel=0.005)


def test_every_device_is_checked():
    assert set(DATASHEET_TOPS) == set(DEVICES)
    assert all(name == device.name for name, device in DEVICES.items())


@pytest.mark.parametrize(
    ("arch", "family", "name"),
    [
        ("sm_75", 75, "t4"),
        ("sm_80", 80, "a100"),
        ("sm_86", 80, "a10"),
        ("sm_87", 80, "a10"),
        ("sm_89", 80, "l4"),
        ("sm_90", 90, "h200"),
        ("sm_90a", 90, "h200"),
        ("sm_100", 90, "h200"),
        ("sm_121", 90, "h200"),
    ],
)
def test_default_of_an_architecture(arch, family, name):
    assert family_of(cuda(arch)) == family
    assert device_of(cuda(arch)).name == name


@pytest.mark.parametrize("name", DEVICES)
def test_a_named_device_is_that_device(name):
    device = DEVICES[name]
    target = cuda(f"sm_{device.arch}", f"device-{name}")
    assert device_of(target) == device
    assert family_of(target) == device.family


def test_no_int4_tensor_path_from_sm_90():
    assert [d.name for d in DEVICES.values() if not d.has_int4] == ["h100", "h200"]
    assert all(d.family == 90 for d in DEVICES.values() if not d.has_int4)


def test_only_the_t4_predicts_below_its_boost_clock():
    assert [d.name for d in DEVICES.values() if d.clock_ghz != d.boost_ghz] == ["t4"]
    assert DEVICES["t4"].clock_ghz == 0.9


@pytest.mark.parametrize(
    ("target", "name", "kib"),
    [
        ("cuda:sm_75", "t4", 64),
        ("cuda:sm_80", "a100", 99),
        ("cuda:sm_86", "a10", 99),
        ("cuda:sm_90,sm_100", "h200", 99),
        ("nvidia/geforce-rtx-4090", "rtx4090", 99),
    ],
)
def test_shared_memory_is_what_every_device_of_the_family_has(target, name, kib):
    wanted = parse_cuda(target)
    device = device_of(wanted.family_target(max(wanted.families())))
    assert (device.name, device.shared_per_block) == (name, kib * 1024)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (cuda("sm_80", "device-v100"), r"device 'v100' is unknown; use one of t4, a100"),
        (cuda("sm_75", "device-h200"), r"device 'h200' \(sm_90\) does not run .* sm_75"),
        (cuda("sm_70"), r"no kernels for sm_70; choose of sm_75"),
        (Target({"kind": "llvm"}), r"not a CUDA architecture"),
    ],
)
def test_wrong_targets_are_one_line_errors(target, message):
    with pytest.raises(TargetError, match=message) as caught:
        device_of(target)
    assert "\n" not in str(caught.value)
