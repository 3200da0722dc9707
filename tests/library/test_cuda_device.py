"""Which code of a library a GPU runs, and what is said where there is none."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tvm_q4.cuda_target import CudaTarget
from tvm_q4.errors import LibraryError
from tvm_q4.library import cuda_device
from tvm_q4.library.cuda_device import Choice, choose, emulated_int4, load_runtime, open_device

HERE = load_runtime() is None


def target(*archs: int) -> dict[str, Any]:
    return CudaTarget(archs).to_json()


@pytest.mark.parametrize(
    ("archs", "device", "expected"),
    [
        ((75, 80, 89, 90), 75, Choice(75, 75, "cubin")),
        ((75, 80, 89, 90), 80, Choice(80, 80, "cubin")),
        ((75, 80, 89, 90), 86, Choice(80, 80, "cubin")),
        ((75, 80, 89, 90), 89, Choice(80, 89, "cubin")),
        ((75, 80, 89, 90), 90, Choice(90, 90, "cubin")),
        ((75, 80, 89, 90), 120, Choice(90, 90, "ptx")),
        ((75, 80, 90, 120), 121, Choice(90, 120, "cubin")),
        ((75, 80, 90, 100), 120, Choice(90, 100, "ptx")),
        ((75, 80), 90, Choice(80, 80, "ptx")),
        ((75,), 80, Choice(75, 75, "ptx")),
        ((75,), 90, Choice(75, 75, "ptx")),
        ((86,), 89, Choice(80, 86, "cubin")),
        ((90,), 200, Choice(90, 90, "ptx")),
    ],
)
def test_the_highest_family_not_above_the_device(
    archs: tuple[int, ...], device: int, expected: Choice
) -> None:
    assert choose(target(*archs), device) == expected


@pytest.mark.parametrize(
    ("archs", "device", "message"),
    [
        ((80,), 75, "holds code for sm_80 and PTX .* device is sm_75; .* cuda:sm_75,sm_80"),
        ((75, 90), 86, "holds code for sm_75, sm_90 .* --target cuda:sm_75,sm_86,sm_90"),
        ((89,), 86, "holds code for sm_89"),
        ((75,), 70, "device is sm_70"),
    ],
)
def test_a_device_without_code(archs: tuple[int, ...], device: int, message: str) -> None:
    with pytest.raises(LibraryError, match=message) as caught:
        choose(target(*archs), device)
    assert "\n" not in str(caught.value)


def test_without_ptx_later_devices_are_refused() -> None:
    only = {"archs": [75, 80], "ptx": None}
    assert choose(only, 86) == Choice(80, 80, "cubin")
    with pytest.raises(LibraryError, match="code for sm_75, sm_80, the device is sm_90"):
        choose(only, 90)


@pytest.mark.parametrize(
    ("archs", "bits", "device", "warned"),
    [
        ((75, 80), (4, 4), 90, True),
        ((75,), (4, 4), 120, True),
        ((75, 80), (4, 4), 89, False),
        ((75, 80), (4, 8), 90, False),
        ((75, 80, 90), (4, 4), 90, False),
        ((75, 80, 90), (4, 4), 120, False),
    ],
)
def test_emulated_int4(
    archs: tuple[int, ...], bits: tuple[int, int], device: int, warned: bool
) -> None:
    layers = [
        {"weight_bits": 8, "activation_bits": 8},
        {"weight_bits": bits[0], "activation_bits": bits[1]},
    ]
    warning = emulated_int4({"target": target(*archs), "layers": layers}, device)
    assert (warning is not None) == warned
    assert warning is None or "compile the model for sm_90" in warning


@pytest.mark.skipif(HERE, reason="there is an NVIDIA driver here")
def test_no_driver() -> None:
    with pytest.raises(LibraryError, match=r"no NVIDIA driver \(libcuda.so.1 does not load\)"):
        open_device()


def answers(monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...]) -> None:
    """Let shared libraries load, except those with one of these words in their names."""

    def load(name: str) -> str | None:
        return f"{name}: no such file" if any(word in name for word in missing) else None

    monkeypatch.setattr(cuda_device, "_load", load)


@pytest.mark.skipif(HERE, reason="there is an NVIDIA driver here")
@pytest.mark.parametrize(
    ("missing", "words"),
    [
        (("libcuda.so",), "no NVIDIA driver"),
        (("libcudart",), 'run: pip install "nvidia-cuda-runtime==13'),
        (("libtvm",), "TVM's runtime for CUDA does not load: .*no such file"),
        ((), "it registers no device"),
    ],
)
def test_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...], words: str
) -> None:
    answers(monkeypatch, missing)
    problem = load_runtime()
    assert problem is not None and "\n" not in problem
    assert re.search(words, problem)


def test_a_driver_without_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    import tvm

    class NoDevice:
        exist = False

    monkeypatch.setattr(cuda_device, "load_runtime", lambda: None)
    monkeypatch.setattr(tvm, "cuda", lambda _: NoDevice())
    with pytest.raises(LibraryError, match="shows no GPU; check nvidia-smi"):
        open_device()


def test_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    import tvm

    class Device:
        exist, compute_version, device_name = True, "12.0", "RTX"

    monkeypatch.setattr(cuda_device, "load_runtime", lambda: None)
    monkeypatch.setattr(tvm, "cuda", lambda _: Device())
    device = open_device()
    assert (device.arch, str(device)) == (120, "RTX (sm_120)")
