"""Running a CUDA library, with this machine's CPU in place of the GPU.

The library has the metadata and the function names of a CUDA library; its kernels run on the CPU.
What is "on the device" is then a DLPack tensor of TVM's or PyTorch's on the CPU, and what is on the
host a NumPy array.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm

from tests.library import tiny, tiny_cuda
from tvm_q4.errors import InputError, LibraryError
from tvm_q4.library import Library, cuda_device, load
from tvm_q4.library.cuda_device import CudaDevice


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_cuda.write_emulated(tmp_path_factory.mktemp("tiny_cuda") / "tiny.so")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Function that puts the CPU in place of a GPU of an arch."""

    def put(arch: int) -> None:
        device = CudaDevice(tvm.cpu(0), arch, "Test GPU")
        monkeypatch.setattr(cuda_device, "open_device", lambda: device)

    return put


@pytest.fixture
def library(path: Path, gpu: Callable[[int], None]) -> Library:
    gpu(86)
    return load(path)


def floats(count: int) -> np.ndarray:
    return np.random.default_rng(count).normal(0, 3, (count, 3, 4, 5)).astype(np.float32)


def expected(x: np.ndarray) -> np.ndarray:
    return tiny.expected(tiny.quantize(x))


def on_device(x: np.ndarray) -> Any:
    """A tensor at an address to which every kernel may assume alignment."""
    tensor = tvm.runtime.empty(x.shape, str(x.dtype))
    return tensor.copyfrom(x)


def called(library: Library, x: np.ndarray, *, plain: bool) -> list[str]:
    """Kernels of one run."""
    names: list[str] = []

    def note(_func: Any, name: str, before: bool, *_: Any) -> int:
        if before and not name.startswith("vm."):
            names.append(name)
        return 0

    with library.instrumented(note):
        library.invoke(x, plain=plain)
    return names


def test_the_device_decides_the_family(path: Path, gpu: Callable[[int], None]) -> None:
    for arch, family in ((75, 75), (80, 80), (86, 80), (89, 80)):
        gpu(arch)
        library = load(path, cuda_graph=False)
        assert library.metadata["family"] == family
        assert library.metadata["memory"]["arena_bytes"] == family
        assert library.metadata["calls"][1]["kernel"] == f"double_sm{family}"
        assert library.metadata["layers"][0]["kernel"] == f"double_sm{family}"
        assert called(library, floats(2), plain=True)[1] == f"double_sm{family}"
        assert library.device == f"Test GPU (sm_{arch})"
        assert "Test GPU" in repr(library)


def test_a_device_without_code(path: Path, gpu: Callable[[int], None]) -> None:
    gpu(70)
    with pytest.raises(LibraryError, match=r"tiny.so' cannot run here: .* device is sm_70"):
        load(path)


@pytest.mark.skipif(cuda_device.load_runtime() is None, reason="there is an NVIDIA driver here")
def test_no_device(path: Path) -> None:
    words = r"tiny.so' cannot run here: .* no NVIDIA driver"
    with pytest.raises(LibraryError, match=words):
        load(path)
    library = load(path, lazy=True)
    assert library.metadata["target"]["archs"] == [75, 80, 89]
    assert "device" not in repr(library)
    for run in (library.run, library.trace):
        with pytest.raises(LibraryError, match=words):
            run(floats(2))


def test_lazy_libraries_load_when_they_run(path: Path, gpu: Callable[[int], None]) -> None:
    gpu(75)
    library = load(path, lazy=True)
    assert np.array_equal(library.run(floats(2)), expected(floats(2)))
    assert library.metadata["family"] == 75


def test_int4_kernels_of_old_archs_on_a_new_device(
    path: Path, gpu: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    gpu(89)
    load(path)
    assert not caplog.records
    gpu(90)
    load(path)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "int4" in record.getMessage() and "sm_90" in record.getMessage()


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_arrays_of_the_host(library: Library, count: int) -> None:
    x = floats(count)
    result = library.run(x)
    assert isinstance(result, np.ndarray)
    assert np.array_equal(result, expected(x))
    assert np.array_equal(library.run(tiny.quantize(x)), expected(x))
    flipped = np.ascontiguousarray(x[:, :, ::-1])[:, :, ::-1]
    assert np.array_equal(library.run(flipped), expected(x))


@pytest.mark.parametrize("count", [2, 6])
def test_tensors_on_the_device(library: Library, count: int) -> None:
    x = floats(count)
    for tensor in (on_device(x), on_device(tiny.quantize(x))):
        result = library.run(tensor)
        assert isinstance(result, tvm.runtime.Tensor)
        assert np.array_equal(result.numpy(), expected(x))


def test_a_tensor_of_one_batch_is_not_copied(library: Library) -> None:
    x, seen = on_device(floats(2)), []

    def note(_func: Any, name: str, before: bool, _result: Any, *args: Any) -> int:
        if before and name.startswith("quantize_input"):
            seen.append(args[0].data_ptr())
        return 0

    with library.instrumented(note):
        library.run(x)
    assert seen == [x.data_ptr()]


def test_tensors_at_any_address(library: Library) -> None:
    torch = pytest.importorskip("torch")
    x = floats(2)
    memory = torch.zeros(x.size + 64)
    for offset in (0, 1, 3):
        view = memory[offset : offset + x.size].view(x.shape)
        view.copy_(torch.from_numpy(x))
        assert np.array_equal(library.run(view).numpy(), expected(x))


def test_out(library: Library) -> None:
    x, out = floats(4), np.zeros((4, 6), np.float32)
    device_out = tvm.runtime.empty((4, 6), "float32")
    for source in (x, on_device(x)):
        out[:] = 0
        assert library.run(source, out=out) is out
        assert np.array_equal(out, expected(x))
        device_out.copyfrom(np.zeros((4, 6), np.float32))
        assert library.run(source, out=device_out) is device_out
        assert np.array_equal(device_out.numpy(), expected(x))


@pytest.mark.parametrize("shape", [(4, 5), (3, 6)])
def test_an_out_of_the_wrong_shape(library: Library, shape: tuple[int, int]) -> None:
    for x in (floats(4), on_device(floats(4))):
        for out in (np.zeros(shape, np.float32), tvm.runtime.empty(shape, "float32")):
            with pytest.raises(InputError, match=r"the result is float32 \[4, 6\]"):
                library.run(x, out=out)


@pytest.mark.parametrize(
    ("shape", "dtype", "words"),
    [
        ((3, 3, 4, 5), "float32", "holds 3 images, which is no multiple of the compiled batch 2"),
        ((2, 3, 5, 4), "float32", "has shape float32 .2, 3, 5, 4."),
        ((2, 3, 4, 5), "float64", "has dtype float64"),
        ((2, 60), "float32", "has shape"),
    ],
)
def test_bad_tensors(library: Library, shape: tuple[int, ...], dtype: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        library.run(tvm.runtime.empty(shape, dtype))
    assert "\n" not in str(caught.value)


def test_tensors_that_are_not_contiguous(library: Library) -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(InputError, match="contiguous"):
        library.run(torch.zeros(2, 3, 5, 4).transpose(2, 3))


def test_a_tensor_on_another_gpu(library: Library) -> None:
    class Elsewhere:
        def __dlpack_device__(self) -> tuple[int, int]:
            return (1, 3)

        def __dlpack__(self) -> None:
            raise AssertionError

    with pytest.raises(InputError, match="is on GPU 3, the library runs on GPU 0"):
        library.run(Elsewhere())


def test_small_batches_are_one_graph(path: Path, gpu: Callable[[int], None]) -> None:
    gpu(80)
    x = floats(2)
    for asked, graph in ((None, True), (True, True), (False, False)):
        library = load(path, cuda_graph=asked)
        assert library.cuda_graph == graph
        names = called(library, x, plain=False)
        assert names == [
            f"{n}{'_graph' * graph}_sm80" for n in ("quantize_input", "double", "head")
        ]
        assert called(library, x, plain=True)[0] == "quantize_input_sm80"
        assert np.array_equal(library.run(x), expected(x))


def test_large_batches_are_a_graph_where_asked_for(
    tmp_path: Path, gpu: Callable[[int], None]
) -> None:
    gpu(80)
    path = tiny_cuda.write_emulated(tmp_path / "a.so", batch=9)
    assert not load(path).cuda_graph
    assert load(path, cuda_graph=True).cuda_graph


def test_tracing_watches_each_kernel(library: Library) -> None:
    x = floats(3)
    tensors = library.trace(x)
    q = tiny.quantize(x)
    assert np.array_equal(tensors["input"], q)
    assert np.array_equal(tensors["double"], 2 * q)
    assert np.array_equal(tensors["output"], expected(x))
    assert list(library.trace(q)) == ["double", "fc.dq", "output"]


def test_a_failure_on_the_device_is_one_line(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_tensor: Any) -> None:
        raise RuntimeError("cuModuleLoadData failed\n grid=(1,1,1)")

    monkeypatch.setattr("tvm_q4.library.cuda_backend._function", lambda *_: fail)
    with pytest.raises(
        LibraryError, match=r"failed on Test GPU .*cuModuleLoadData failed"
    ) as caught:
        library.run(floats(2))
    assert "\n" not in str(caught.value)


def test_cpu_libraries_have_no_graph(tiny_path: Path) -> None:
    with pytest.raises(LibraryError, match="is for the CPU; drop cuda_graph"):
        load(tiny_path, cuda_graph=True)
    assert not load(tiny_path, cuda_graph=False).cuda_graph
