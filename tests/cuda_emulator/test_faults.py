"""Faults planted into kernels that TVM generated are caught, each for what it is."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

from tests.cuda_emulator import EmulationError, compiler
from tests.cuda_emulator.sample_data import Change, Gemm, run_epilogue, run_gemm
from tests.cuda_emulator.samples import Mma

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler")

SHARED = Gemm("sm_80", Mma(16, 32, "int8", "int8"), "shared", "ldmatrix")
LOADS = Gemm("sm_80", Mma(16, 64, "uint4", "int4"), "shared", "loads")
ASYNC = Gemm("sm_80", Mma(16, 64, "uint4", "int4"), "cp.async", "ldmatrix")
TURING = Gemm("sm_75", Mma(8, 32, "uint4", "int4"), "registers", "loads")


@dataclass(frozen=True)
class Fault:
    """Matches of a regular expression in a kernel's body, one or all of them, replaced."""

    sample: Gemm
    pattern: str
    text: str = ""
    which: int | None = 0

    def plant(self, source: str) -> str:
        """Change the source; the pattern must be there."""
        start = source.rindex("__global__")
        head, body = source[:start], source[start:]
        matches = list(re.finditer(self.pattern, body, re.MULTILINE))
        assert matches, f"the kernel has no {self.pattern}"
        for match in reversed(matches if self.which is None else [matches[self.which]]):
            body = body[: match.start()] + match.expand(self.text) + body[match.end() :]
        return head + body


BARRIER = r"__syncthreads\(\);"
LOAD_A = r"(\*\(int4\*\)\(\w+ \+ 0\) = \*\(int4\*\))\(A_ptr \+ "
ZERO = r"^( *)(_ptr\w*\[3\] = .*)$"
MMA = r"^( *)(tvm_builtin_ptx_mma_.*)$"
ROW_ADDRESS = r"(ldmatrix_.*_x4.*cvta_generic_to_shared\(\(&\(\w+\[)"
RESULT_ROW = r"\(\(int\)threadIdx\.x\) & 31\) >> 2\) \* 32"
COPY = r"^ *tvm_builtin_ptx_cp_async_cg.*$"

CAUGHT = {
    # What orders threads.
    "no barrier after the stores": (Fault(SHARED, BARRIER), "race: read of .* wrote"),
    "no barrier before the next stores": (
        Fault(SHARED, BARRIER, which=1),
        "race: write to .* read",
    ),
    "no first barrier of two buffers": (Fault(TURING, BARRIER), "race: read of .* wrote"),
    # TVM's own pass has put a barrier that is not needed at 1.
    "no barrier between two buffers": (Fault(TURING, BARRIER, which=2), "race: read of .* wrote"),
    "no barrier in a pipeline": (Fault(ASYNC, BARRIER), "race: read of .* wrote"),
    "barrier of one warp": (
        Fault(SHARED, ZERO, r"if (((int)threadIdx.x) < 32) { __syncthreads(); } \2"),
        "barrier not reached by all threads",
    ),
    "wrong lane of the result": (
        Fault(TURING, RESULT_ROW, "((int)threadIdx.x) & 31) & 7) * 32", None),
        "race: write to .* 'C_ptr' that thread 0 wrote",
    ),
    # Asynchronous copies.
    "no wait_group": (Fault(ASYNC, r"^.*wait_group.*$"), "before the cp.async .* waited for"),
    "no commit_group": (Fault(ASYNC, r"^.*commit_group.*$", which=1), "before the cp.async"),
    "copy into a stage in use": (
        Fault(ASYNC, r"v \+ 2\) % 3", "v + 1) % 3", None),
        "cp.async .* in flight|race: cp.async",
    ),
    "stage never filled": (Fault(ASYNC, COPY), "uninitialised read: .* shared"),
    "misaligned copy": (Fault(ASYNC, r"\(&\(A_ptr\[", "(&(A_ptr[1 + "), "misaligned cp.async"),
    # Memory.
    "accumulator not cleared": (Fault(LOADS, ZERO), "uninitialised read: .* local"),
    "result read before it is written": (
        Fault(SHARED, LOAD_A, r"\1(C_ptr + "),
        "uninitialised read: .* global array 'C_ptr'",
    ),
    "address too high": (
        Fault(SHARED, LOAD_A, r"\1(A_ptr + 1024 + "),
        "out-of-bounds read: .* 'A_ptr', which has 4096",
    ),
    "address negative": (
        Fault(SHARED, LOAD_A, r"\1(A_ptr - 4 + "),
        "out-of-bounds read: bytes -16 to -1",
    ),
    "ldmatrix out of bounds": (
        Fault(SHARED, ROW_ADDRESS, r"\g<1>256 + "),
        "out-of-bounds read: .* shared",
    ),
    "misaligned vector": (
        Fault(SHARED, LOAD_A, r"\1(A_ptr + 1 + "),
        "misaligned read: 16 bytes",
    ),
    "misaligned ldmatrix": (Fault(SHARED, ROW_ADDRESS, r"\g<1>1 + "), "misaligned ldmatrix"),
    # Warps.
    "mma in half a warp": (
        Fault(SHARED, MMA, r"\1if (((int)threadIdx.x) & 1) { \2 }"),
        "diverged warp",
    ),
    "mma that one lane skips": (
        Fault(SHARED, MMA, r"\1if (((int)threadIdx.x) != 40) { \2 }", -1),
        "diverged warp: .* thread 40",
    ),
}

WRONG = {
    "swapped fragment registers": Fault(
        SHARED, r"(ldmatrix\w+x4\w+\(\w+\[0\], )(\w+\[1\]), (\w+\[2\])", r"\1\3, \2"
    ),
    "wrong lane of a fragment": Fault(
        LOADS, r"(\(int\)threadIdx\.x\)) & 31\) >> 2", r"\1 & 31) >> 3", None
    ),
    "wrong half of k": Fault(LOADS, r"\(1 \^ ", "(0 ^ ", None),
}


@pytest.mark.parametrize("name", CAUGHT)
def test_fault_is_an_error(name: str) -> None:
    fault, message = CAUGHT[name]
    with pytest.raises(EmulationError, match=message) as error:
        run_gemm(fault.sample, fault.plant)
    assert re.search(r"gemm_kernel: block \(0, 0, 0\), thread \(\d+, 0, 0\)", str(error.value))
    assert re.search(r"\n  line \d+: .*\S", str(error.value))


@pytest.mark.parametrize("name", WRONG)
def test_fault_changes_the_result(name: str) -> None:
    equal, _ = run_gemm(WRONG[name].sample, WRONG[name].plant)
    assert not equal


def test_signed_for_unsigned_changes_the_result() -> None:
    equal, _ = run_gemm(LOADS, lambda source: source.replace(".u4.s4.", ".s4.s4."))
    assert not equal


def test_swapped_nibbles_change_the_result() -> None:
    swap: Change = Fault(
        LOADS, r"(cvt_pack\w*\(\w+\[0\], )(\w+\[\d+\]), (\w+\[\d+\])", r"\1\3, \2"
    ).plant
    assert run_epilogue(swap) == (True, False)


def test_missing_bound_check_is_out_of_bounds() -> None:
    unguarded = Fault(LOADS, r"if \(.* < 13\) \{", "if (true) {").plant
    with pytest.raises(EmulationError, match=r"block \(1, 0, 0\).*out-of-bounds read: .*'X_ptr'"):
        run_epilogue(unguarded)
