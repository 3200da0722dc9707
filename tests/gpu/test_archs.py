"""Which code of a library a real GPU runs: its own, PTX of an older arch, or none."""

from __future__ import annotations

import pytest

from tests import small_network
from tests.gpu.bodies import check_library
from tests.gpu.conftest import Compile
from tvm_q4.cuda_target import ARCH_FAMILY, CudaTarget, family_of_arch
from tvm_q4.errors import LibraryError
from tvm_q4.library import load
from tvm_q4.library.cuda_device import CudaDevice, can_run, choose

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("arch", [75, 80, 90])
def test_ptx_of_an_older_arch(compiled: Compile, gpu: CudaDevice, arch: int) -> None:
    """The driver compiles it; from sm_90 on that emulates int4 products, slowly but exactly."""
    if arch // 10 >= gpu.arch // 10:
        pytest.skip(f"sm_{gpu.arch} runs machine code of sm_{arch}, or nothing of it")
    assert choose(CudaTarget((arch,)).to_json(), gpu.arch).kind == "ptx"
    module = small_network.quantized()
    library = check_library(compiled(module, arch), module)
    assert library.metadata["family"] == family_of_arch(arch)


def test_the_best_of_several_families(compiled: Compile, gpu: CudaDevice) -> None:
    archs = [75, 80, 90]
    module = small_network.quantized()
    library = check_library(compiled(module, *archs), module)
    assert library.metadata["family"] == family_of_arch(gpu.arch)


def test_no_code_for_this_gpu(compiled: Compile, gpu: CudaDevice) -> None:
    others = [a for a in ARCH_FAMILY if not can_run(CudaTarget((a,)).to_json(), gpu.arch)]
    if not others:
        pytest.skip(f"every arch that there is makes code that sm_{gpu.arch} runs")
    path = compiled(small_network.quantized(), others[-1])
    words = rf"holds code for sm_{others[-1]} .* the device is sm_{gpu.arch}"
    with pytest.raises(LibraryError, match=words) as caught:
        load(path)
    assert "\n" not in str(caught.value)
