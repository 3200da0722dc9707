"""CUDA targets: what users may write, families, what TVM is told."""

from __future__ import annotations

import pytest
from tvm.target import Target

from tvm_q4.cuda_target import ARCH_FAMILY, CudaTarget, host_target, int4_note, shared_memory
from tvm_q4.errors import TargetError
from tvm_q4.library.cuda_device import can_run
from tvm_q4.targets import as_target, parse_target


def parsed(text: str) -> CudaTarget:
    target = parse_target(text)
    assert isinstance(target, CudaTarget)
    return target


@pytest.mark.parametrize(
    ("text", "archs", "device"),
    [
        ("cuda:sm_75,sm_80,sm_89,sm_90", (75, 80, 89, 90), None),
        ("cuda:sm_90, sm_75,sm_75", (75, 90), None),
        ("cuda:sm_90a", (90,), None),
        ("cuda", (75, 80, 89, 90), None),
        ("nvidia/nvidia-t4", (75,), "t4"),
        ("nvidia/nvidia-a100", (80,), "a100"),
        ("nvidia/nvidia-l4", (89,), "l4"),
        ("nvidia/geforce-rtx-4090", (89,), "rtx4090"),
        ("nvidia/nvidia-h100", (90,), "h100"),
        ("nvidia/nvidia-h200", (90,), "h200"),
        ("nvidia/geforce-rtx-3090", (86,), None),
        ("nvidia/jetson-agx-orin-64gb", (87,), None),
        ('{"kind": "cuda", "arch": "sm_80"}', (80,), None),
    ],
)
def test_what_users_may_write(text: str, archs: tuple[int, ...], device: str | None) -> None:
    assert parsed(text) == CudaTarget(archs, device)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cuda:sm_70", "'sm_70' is no architecture that there are kernels for"),
        ("cuda:sm_75,sm_81", "'sm_81' is no architecture"),
        ("cuda:", "'' is no architecture"),
        ("cuda:75", "'75' is no architecture"),
        ("cuda:sm_75;sm_80", "'sm_75;sm_80' is no architecture"),
        ("nvidia/tesla-v100", "does not exist"),
        ("nvidia/nvidia-v100", "'sm_70' is no architecture"),
        ('{"kind": "cuda", "arch": "sm_61"}', "'sm_61' is no architecture"),
        ('{"kind": "cuda"}', 'has no "arch"'),
        ('{"kind": "cuda", "arch": "sm_80", "host": {"kind": "llvm"}}', 'names a "host"'),
        ('{"kind": "cuda", "arch": "ampere"}', "is not a TVM target"),
    ],
)
def test_errors_are_one_line(text: str, message: str) -> None:
    with pytest.raises(TargetError, match=message) as caught:
        parse_target(text)
    assert "\n" not in str(caught.value)
    assert repr(text) in str(caught.value)


def test_an_unknown_arch_is_answered_with_the_choices() -> None:
    with pytest.raises(TargetError, match=r"choose of sm_75, sm_80, .*sm_121"):
        parse_target("cuda:sm_70")


@pytest.mark.parametrize("archs", [(), (70,)])
def test_a_target_without_code_is_refused(archs: tuple[int, ...]) -> None:
    with pytest.raises(TargetError, match="choose of sm_75"):
        CudaTarget(archs)


def test_families() -> None:
    target = CudaTarget((89, 75, 120, 80, 90))
    assert target.families() == {75: (75,), 80: (80, 89), 90: (90, 120)}
    assert target.ptx == 120


def test_metadata_and_text() -> None:
    target = parsed("nvidia/nvidia-l4")
    assert target.to_json() == {"kind": "cuda", "archs": [89], "ptx": 89, "device": "l4"}
    assert parsed(str(CudaTarget((75, 90)))) == CudaTarget((75, 90))


@pytest.mark.parametrize(
    ("text", "family", "arch", "device"),
    [
        ("cuda", 75, "sm_75", "t4"),
        ("cuda", 80, "sm_80", "a100"),
        ("cuda", 90, "sm_90", "h200"),
        ("cuda:sm_86", 80, "sm_86", "a10"),
        ("cuda:sm_89", 80, "sm_89", "l4"),
        ("cuda:sm_120", 90, "sm_120", "h200"),
        ("nvidia/geforce-rtx-4090", 80, "sm_89", "rtx4090"),
        ("nvidia/nvidia-h100", 90, "sm_90", "h100"),
    ],
)
def test_what_tvm_is_told(text: str, family: int, arch: str, device: str) -> None:
    target = parsed(text).family_target(family)
    assert (target.kind.name, target.attrs["arch"]) == ("cuda", arch)
    assert list(target.keys) == ["cuda", "gpu", f"device-{device}"]
    assert str(target.host) == str(host_target())


def test_a_named_device_says_nothing_about_other_families() -> None:
    target = CudaTarget((75, 89), "l4")
    assert "device-t4" in target.family_target(75).keys
    assert "device-l4" in target.family_target(80).keys


def test_kernels_fit_every_device_that_they_are_chosen_for() -> None:
    """sm_80's machine code runs on an L4, PTX of sm_90 on an RTX 5090: both have 99 KiB a block."""
    for arch in ARCH_FAMILY:
        target = CudaTarget((arch,))
        limit = int(target.family_target(ARCH_FAMILY[arch]).attrs["max_shared_memory_per_block"])
        runs_on = [device for device in ARCH_FAMILY if can_run(target.to_json(), device)]
        assert arch in runs_on
        assert limit == min(shared_memory(device) for device in runs_on)


def test_a_family_target_stands_for_its_arch() -> None:
    target = parsed("nvidia/nvidia-l4")
    assert as_target(target.family_target(80)) == target
    assert as_target(target) is target


def test_tvm_targets_are_checked_like_strings() -> None:
    assert as_target(Target("nvidia/nvidia-t4")) == CudaTarget((75,))
    with pytest.raises(TargetError, match="no architecture"):
        as_target(Target({"kind": "cuda", "arch": "sm_61"}))


def test_every_arch_is_described() -> None:
    for arch, family in ARCH_FAMILY.items():
        note = int4_note(arch)
        assert note.startswith(f"sm_{arch}")
        assert ("no int4 tensor cores" in note) == (family == 90)
        assert shared_memory(arch) >= 64 * 1024
