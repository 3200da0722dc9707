"""Faults planted into kernels that TVM generated are caught, each for what it is."""

from __future__ import annotations

import re

import pytest

from tests.cuda_emulator import EmulationError, compiler
from tests.cuda_emulator.sample_data import Change, Gemm, run_epilogue, run_gemm
from tests.cuda_emulator.samples import Mma

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler")

SHARED = Gemm("sm_80", Mma(16, 32, "int8", "int8"), "shared", "ldmatrix")
LOADS = Gemm("sm_80", Mma(16, 64, "uint4", "int4"), "shared", "loads")
ASYNC = Gemm("sm_80", Mma(16, 64, "uint4", "int4"), "cp.async", "ldmatrix")
TURING = Gemm("sm_75", Mma(8, 32, "uint4", "int4"), "registers", "loads")


def replace(pattern: str, text: str, which: int | None = None) -> Change:
    """Change of one match of a regular expression in the kernel's body, or of all; there must be one."""

    def change(source: str) -> str:
        start = source.rindex("__global__")
        head, body = source[:start], source[start:]
        matches = list(re.finditer(pattern, body, re.MULTILINE))
        assert matches, f"the kernel has no {pattern}"
        for match in reversed(matches if which is None else [matches[which]]):
            body = body[: match.start()] + match.expand(text) + body[match.end() :]
        return head + body

    return change


BARRIER = r"__syncthreads\(\);"
LOAD_A = r"\*\(int4\*\)\((\w+) \+ 0\) = \*\(int4\*\)\(A_ptr \+ "
FIRST_MMA = r"^( *)(tvm_builtin_ptx_mma_.*)$"
LDMATRIX_ADDRESS = r"(ldmatrix_.*_x4.*cvta_generic_to_shared\(\(&\(\w+\[)"

CAUGHT = {
    "dropped barrier after the stores": (SHARED, BARRIER, "", 0, "race: read of .* wrote"),
    "dropped barrier before the next stores": (SHARED, BARRIER, "", 1, "race: write to .* read"),
    "dropped first barrier of two buffers": (TURING, BARRIER, "", 0, "race: read of .* wrote"),
    "dropped barrier between two buffers": (TURING, BARRIER, "", 2, "race: read of .* wrote"),
    "dropped barrier of a pipeline": (ASYNC, BARRIER, "", 0, "race: read of .* wrote"),
    "missing wait_group": (ASYNC, r"^.*wait_group.*$", "", 0, "before the cp.async .* waited for"),
    "missing commit_group": (ASYNC, r"^.*commit_group.*$", "", 1, "before the cp.async"),
    "copy into a stage in use": (ASYNC, r"v \+ 2\) % 3", "v + 1) % 3", None, "cp.async .* in flight|race: cp.async"),
    "uninitialised accumulator": (LOADS, r"^ *_ptr\w*\[3\] = .*$", "", 0, "uninitialised read: .* local"),
    "stage never filled": (ASYNC, r"^ *tvm_builtin_ptx_cp_async_cg.*$", "", 0, "uninitialised read: .* shared"),
    "result read before it is written": (SHARED, LOAD_A, r"*(int4*)(\1 + 0) = *(int4*)(C_ptr + ", 0, "uninitialised read: .* global array 'C_ptr'"),
    "read out of bounds": (SHARED, LOAD_A, r"*(int4*)(\1 + 0) = *(int4*)(A_ptr + 1024 + ", 0, "out-of-bounds read: .* 'A_ptr', which has 4096"),
    "negative address": (SHARED, LOAD_A, r"*(int4*)(\1 + 0) = *(int4*)(A_ptr - 4 + ", 0, "out-of-bounds read: bytes -16 to -1"),
    "ldmatrix out of bounds": (SHARED, LDMATRIX_ADDRESS, r"\g<1>256 + ", 0, "out-of-bounds read: .* shared"),
    "misaligned vector": (SHARED, LOAD_A, r"*(int4*)(\1 + 0) = *(int4*)(A_ptr + 1 + ", 0, "misaligned read: 16 bytes"),
    "misaligned ldmatrix": (SHARED, LDMATRIX_ADDRESS, r"\g<1>1 + ", 0, "misaligned ldmatrix"),
    "misaligned cp.async": (ASYNC, r"\(&\(A_ptr\[", r"(&(A_ptr[1 + ", 0, "misaligned cp.async"),
    "wrong lane of the result": (TURING, r"\(\(int\)threadIdx\.x\) & 31\) >> 2\) \* 32", "((int)threadIdx.x) & 31) & 7) * 32", None, "race: write to .* 'C_ptr' that thread 0 wrote"),
    "mma in half a warp": (SHARED, FIRST_MMA, r"\1if (((int)threadIdx.x) & 1) { \2 }", 0, "diverged warp"),
    "mma that one lane skips": (SHARED, FIRST_MMA, r"\1if (((int)threadIdx.x) != 40) { \2 }", -1, "diverged warp: .* thread 40"),
    "barrier of one warp": (SHARED, r"^( *)(\w*_ptr\w*\[0\] = )", r"\1if (((int)threadIdx.x) < 32) { __syncthreads(); } \2", 0, "barrier not reached by all threads"),
}  # fmt: skip

WRONG = {
    "swapped fragment registers": (SHARED, r"(ldmatrix_\w+_x4\w*\()(\w+\[1\]), (\w+\[2\])|(ldmatrix\w+x4\w+\(\w+\[0\], )(\w+\[1\]), (\w+\[2\])", r"\4\6, \5"),
    "wrong fragment lane": (LOADS, r"\(\(int\)threadIdx\.x\) & 31\) >> 2", "((int)threadIdx.x) & 31) >> 3"),
    "wrong half of k": (LOADS, r"\(1 \^ ", "(0 ^ "),
}  # fmt: skip


@pytest.mark.parametrize("fault", CAUGHT)
def test_fault_is_an_error(fault: str) -> None:
    sample, pattern, text, which, message = CAUGHT[fault]
    with pytest.raises(EmulationError, match=message) as error:
        run_gemm(sample, replace(pattern, text, which))
    assert re.search(r"gemm_kernel: block \(0, 0, 0\), thread \(\d+, 0, 0\)", str(error.value))
    assert re.search(r"\n  line \d+: .*\S", str(error.value))


@pytest.mark.parametrize("fault", WRONG)
def test_fault_changes_the_result(fault: str) -> None:
    sample, pattern, text = WRONG[fault]
    equal, _ = run_gemm(sample, replace(pattern, text))
    assert not equal


def test_swapped_nibbles_change_the_result() -> None:
    swap = replace(r"(cvt_pack\w*\(\w+\[0\], )(\w+\[\d+\]), (\w+\[\d+\])", r"\1\3, \2")
    assert run_epilogue(swap) == (True, False)


def test_missing_bound_check_is_out_of_bounds() -> None:
    unguarded = replace(r"if \(.* < 13\) \{", "if (true) {")
    with pytest.raises(EmulationError, match=r"block \(1, 0, 0\).*out-of-bounds read: .*'X_ptr'"):
        run_epilogue(unguarded)
