"""Loading and running libraries."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tvm_ffi

from tests.library import tiny
from tvm_q4.errors import InputError, LibraryError
from tvm_q4.library import host, load
from tvm_q4.library.export import find_compiler


def _floats(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, (count, 3, 4, 5)).astype(np.float32)


def _expected(x: np.ndarray) -> np.ndarray:
    return tiny.expected(tiny.quantize(x))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_any_number_of_images(tiny_library, count):
    x = _floats(count)
    result = tiny_library.run(x)
    assert result.dtype == np.float32 and result.shape == (count, 6)
    assert np.array_equal(result, _expected(x))
    assert np.array_equal(tiny_library.run(tiny.quantize(x)), _expected(x))


def test_results_do_not_share_memory(tiny_library):
    first = tiny_library.run(_floats(2, seed=1))
    kept = first.copy()
    tiny_library.run(_floats(2, seed=2))
    assert np.array_equal(first, kept)


def test_arrays_of_any_memory_layout(tiny_library):
    x = _floats(4)
    readonly = x.copy()
    readonly.flags.writeable = False
    channels_last = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    for same in (readonly, channels_last, np.repeat(x, 2, axis=3)[..., ::2], x[::-1][::-1]):
        assert np.array_equal(tiny_library.run(same), _expected(x))


@pytest.mark.parametrize("offset", [0, 1, 4, 15])
def test_every_alignment_gives_the_same(tiny_library, offset):
    x = _floats(2)
    memory = np.zeros(x.size + 64, np.float32)
    start = (-memory.ctypes.data // 4) % 16 + offset
    view = memory[start : start + x.size].reshape(x.shape)
    view[:] = x
    assert np.array_equal(tiny_library.run(view), _expected(x))
    assert np.array_equal(view, x)


def test_aligned_batches_are_read_in_place(tiny_library):
    memory = np.zeros(120 + 16, np.float32)
    start = (-memory.ctypes.data // 4) % 16
    view = memory[start : start + 120].reshape(2, 3, 4, 5)
    assert np.shares_memory(np.from_dlpack(tiny_library.tensor(view)), view)
    shifted = memory[start + 1 : start + 121].reshape(2, 3, 4, 5)
    assert not np.shares_memory(np.from_dlpack(tiny_library.tensor(shifted)), shifted)


def test_dlpack_tensors(tiny_library):
    x = _floats(3)
    tensor = tvm_ffi.from_dlpack(x)
    assert np.array_equal(tiny_library.run(tensor), _expected(x))
    torch = pytest.importorskip("torch")
    assert np.array_equal(tiny_library.run(torch.from_numpy(x).requires_grad_()), _expected(x))
    out = torch.zeros(3, 6)
    assert tiny_library.run(torch.from_numpy(x), out=out) is out
    assert np.array_equal(out.numpy(), _expected(x))


def test_out(tiny_library):
    x = _floats(3)
    out = np.zeros((6, 3), np.float32).T
    assert tiny_library.run(x, out=out) is out
    assert np.array_equal(out, _expected(x))
    for bad in (np.zeros((3, 5), np.float32), np.zeros((3, 6)), np.zeros((2, 6), np.float32)):
        with pytest.raises(InputError, match="the result is float32"):
            tiny_library.run(x, out=bad)
    out = np.zeros((3, 6), np.float32)
    out.flags.writeable = False
    with pytest.raises(InputError, match="read-only"):
        tiny_library.run(x, out=out)


def test_infinities_clamp(tiny_library):
    x = _floats(2)
    x[0, 0, 0, 0], x[1, 2, 3, 4] = np.inf, -np.inf
    assert np.array_equal(tiny_library.run(x), _expected(x))


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.zeros((2, 3, 4, 6), np.float32), ["[2, 3, 4, 6]", "float32 or int8 [N, 3, 4, 5]"]),
        (np.zeros((3, 4, 5), np.float32), ["[3, 4, 5]"]),
        (np.zeros((2, 3, 4, 5)), ["float64", "float32 or int8"]),
        (np.zeros((2, 3, 4, 5), np.uint8), ["uint8"]),
        (np.zeros((2, 3, 4, 5), ">f4"), [">f4"]),
        (np.zeros((0, 3, 4, 5), np.float32), ["no images"]),
        (np.full((2, 3, 4, 5), 8, np.int8), ["is 8 at index [0, 0, 0, 0]", "-8..7"]),
        (np.full((2, 3, 4, 5), -9, np.int8), ["is -9"]),
        ([[1.0]], ["type list"]),
        ("x", ["type str"]),
    ],
)
def test_bad_inputs(tiny_library, x, words):
    with pytest.raises(InputError) as caught:
        tiny_library.run(x)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words)


def test_nan(tiny_library):
    x = _floats(3)
    x[2, 1, 0, 3] = np.nan
    x[0, 0, 0, :2] = np.inf, -np.inf
    with pytest.raises(InputError, match=r"NaN at index \[2, 1, 0, 3\]"):
        tiny_library.run(x)


def test_opposite_infinities_are_not_nan(tiny_library):
    x = _floats(1)
    x[0, 0, 0, :2] = np.inf, -np.inf
    assert np.array_equal(tiny_library.run(x), _expected(x))


def test_logits_of_integer_output(tiny_path, tmp_path):
    output = tiny.metadata()["output"] | {"integer": True, "scale": [1, 2, 4, 8, 16, 3]}
    values = np.arange(12, dtype=np.int32).reshape(2, 6)
    for form in ("multiply", "divide"):
        path = tiny.write(tmp_path / f"{form}.so", output=output | {"scale_form": form})
        scale = np.array([1, 2, 4, 8, 16, 3], np.float32)
        floats = values.astype(np.float32)
        expected = floats * scale if form == "multiply" else floats / scale
        assert np.array_equal(load(path).logits(values), expected)
    assert np.array_equal(load(tiny_path).logits(floats), floats)


def test_code_that_is_no_tvm_module(tmp_path):
    section, source, path = tmp_path / "s", tmp_path / "a.c", tmp_path / "a.so"
    section.write_text(json.dumps(tiny.metadata()))
    source.write_text("int f(void) { return 1; }\n")
    subprocess.run([find_compiler(), "-shared", "-fPIC", "-o", path, source], check=True)
    subprocess.run(["objcopy", f"--add-section=.tvm_q4={section}", path], check=True)
    with pytest.raises(LibraryError, match="does not load here") as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert "compiled with apache-tvm 0, this is" in str(caught.value)


def test_library_for_a_cpu_with_more_instructions(tmp_path, monkeypatch):
    path = tiny.write(tmp_path / "a.so", target={"kind": "llvm", "mcpu": "cascadelake"})
    monkeypatch.setattr(host.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(host, "cpu_flags", lambda: frozenset({"avx", "avx2", "fma"}))
    with pytest.raises(LibraryError, match=r"'cascadelake'.*avx512vnni.*--target llvm"):
        load(path)


def test_cpu_flags_by_llvm_names():
    text = "processor : 0\nflags\t\t: fpu bmi1 avx512_vnni avx_vnni amx_int8 fma\nbugs : x\n"
    flags = host.cpu_flags(text)
    assert flags == {"fpu", "bmi", "avx512vnni", "avxvnni", "amxint8", "fma"}
    assert host.missing_features({"avx512vnni", "amx-int8", "bmi", "slow-3ops-lea"}, flags) == []
    assert host.missing_features({"avx512bw", "amx-tile", "64bit"}, flags) == [
        "amx-tile",
        "avx512bw",
    ]
    assert host.cpu_flags("processor : 0\n") is None
    assert host.missing_features({"avx512bw"}, None) == []


@pytest.mark.parametrize("threads", [0, -1])
def test_bad_thread_counts(tiny_path, threads):
    with pytest.raises(InputError, match="at least 1"):
        load(tiny_path, threads=threads)


def test_threads_before_the_pool_is_made(tiny_path):
    code = (
        "import sys\n"
        "sys.modules['torch'] = None  # tvm_ffi would import it, which takes seconds\n"
        "import tvm, tvm_q4\n"
        f"lib = tvm_q4.load({str(tiny_path)!r}, threads=3)\n"
        "assert tvm.runtime.num_threads() == 3\n"
        f"tvm_q4.load({str(tiny_path)!r}, threads=2)\n"
        "assert tvm.runtime.num_threads() == 2\n"
        "try:\n"
        f"    tvm_q4.load({str(tiny_path)!r}, threads=5)\n"
        "except tvm_q4.InputError as error:\n"
        "    assert 'TVM_NUM_THREADS=5' in str(error)\n"
        "else:\n"
        "    raise SystemExit('no error')\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TVM_NUM_THREADS"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
