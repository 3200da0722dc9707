"""Which family a module's source is of."""

from __future__ import annotations

import pytest

from tvm_q4.library.cuda_module import family_of_source, kernel_names

SOURCE = """
__forceinline__ __device__ void helper_sm80(int x) { asm volatile("mma;"); }
extern "C" __global__ void __launch_bounds__(64) conv_sm75_kernel(int* __restrict__ a);
extern "C" __global__ void __launch_bounds__(64) conv_sm75_kernel(int* __restrict__ a) { a[0] = 1; }
extern "C" __global__ void __launch_bounds__(128, 2)
pool_sm75_kernel_1(int* a) {}
extern "C" __global__ void head_2_sm75(int* a) {}
"""


def test_kernel_names() -> None:
    assert kernel_names(SOURCE) == ["conv_sm75_kernel", "pool_sm75_kernel_1", "head_2_sm75"]


def test_family() -> None:
    assert family_of_source(SOURCE) == 75
    assert family_of_source(SOURCE.replace("_sm75", "_sm90")) == 90


@pytest.mark.parametrize("names", ["conv_kernel", "conv_sm75_kernel pool_sm80_kernel", ""])
def test_every_module_is_of_one_family(names: str) -> None:
    with pytest.raises(AssertionError, match="kernels of families"):
        family_of_source(
            "".join(f"__global__ void {name}(int* a) {{}}\n" for name in names.split())
        )
