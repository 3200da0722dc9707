"""Asynchronous copies, ordering between threads, and what a launch refuses."""

from __future__ import annotations

import numpy as np
import pytest

from tests.cuda_emulator import EmulationError, Uninitialized, compiler, run
from tests.cuda_emulator.test_instructions import TX, asm, kernel, words

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler")

POINTERS = "uint* __restrict__ X_ptr, uint* __restrict__ Y_ptr"
COMMIT = asm("cp.async.commit_group;")
WAIT_ALL = asm("cp.async.wait_all;")


def copy_kernel(statement: str, wait: str = WAIT_ALL) -> str:
    """Each thread starts a copy of 16 bytes, waits, and stores them."""
    body = f"""  __shared__ alignas(64) uint s[128];
  uint4 ones = make_uint4(7, 7, 7, 7);
  *(uint4*)(s + {TX} * 4) = ones;
  unsigned int dst = __cvta_generic_to_shared(s + {TX} * 4);
  {statement}
  {wait}
  *(uint4*)(Y_ptr + {TX} * 4) = *(uint4*)(s + {TX} * 4);"""
    return kernel(body, POINTERS)


def cp_async(options: str, *more: str, offset: str = f"{TX} * 4") -> str:
    bindings = ", ".join(['"r"(dst)', f'"l"((void*)(X_ptr + {offset}))', *more])
    return asm(f"cp.async.{options};", "", bindings)


@pytest.mark.parametrize("size", [4, 8, 16])
def test_copy_sizes(size: int) -> None:
    x, y = words(128), np.zeros(128, np.uint32)
    cache = "cg" if size == 16 else "ca"
    statement = cp_async(f"{cache}.shared.global.L2::128B [%0], [%1], {size}")
    run(copy_kernel(statement), "k", (1,), (32,), [x, Uninitialized(y)])
    want = np.full((32, 4), 7, np.uint32)
    want[:, : size // 4] = x.reshape(32, 4)[:, : size // 4]
    assert (y.reshape(32, 4) == want).all()


def test_source_size_fills_with_zeros_and_reads_no_more() -> None:
    x, y = words(64), np.zeros(128, np.uint32)
    size = f"{TX} < 16 ? {TX} : 0"
    statement = cp_async("cg.shared.global [%0], [%1], 16, %2", f'"r"({size})')
    run(copy_kernel(statement), "k", (1,), (32,), [x, Uninitialized(y)])
    want = np.zeros((32, 16), np.uint8)
    for i in range(16):
        want[i, :i] = x.view(np.uint8).reshape(-1, 16)[i, :i]
    assert (y.view(np.uint8).reshape(32, 16) == want).all()
    with pytest.raises(EmulationError, match=r"thread \(16, 0, 0\): out-of-bounds read"):
        run(copy_kernel(statement.replace(size, "16")), "k", (1,), (32,), [x, y])


def test_predicates_skip_or_ignore_the_source() -> None:
    x, y = words(128), np.zeros(128, np.uint32)
    odd = f'"r"({TX} & 1)'
    setp = "{{ .reg .pred p; setp.ne.b32 p, %2, 0; {} }}"
    ignore = cp_async("x", odd).replace(
        "cp.async.x;", setp.format("cp.async.cg.shared.global [%0], [%1], 16, p;")
    )
    skip = cp_async("x", odd).replace(
        "cp.async.x;", setp.format("@!p cp.async.cg.shared.global [%0], [%1], 16;")
    )
    for statement, otherwise in ((ignore, 0), (skip, 7)):
        run(copy_kernel(statement), "k", (1,), (32,), [x, Uninitialized(y)])
        even = np.arange(32)[:, None] % 2 == 0
        assert (y.reshape(32, 4) == np.where(even, x.reshape(32, 4), otherwise)).all()


@pytest.mark.parametrize(("statement", "wait", "message"), [
    ("cg.shared.global [%0], [%1], 16", "", "before the cp.async of thread 0 to it was waited for"),
    ("cg.shared.global [%0], [%1], 16", asm("cp.async.wait_group 0;"), "waited for"),
    ("cg.shared.global [%0], [%1], 16", COMMIT + asm("cp.async.wait_group 1;"), "waited"),
    ("cg.shared.global [%0], [%1], 8", WAIT_ALL, "cp.async.cg copies 16 bytes"),
    ("ca.shared.global [%0], [%1], 12", WAIT_ALL, "cp.async of 12 bytes"),
    ("cg.shared.global [%0 + 4], [%1], 16", WAIT_ALL, "misaligned cp.async"),
    ("cg.shared.global [%0], [%1 + 8], 16", WAIT_ALL, "misaligned cp.async"),
    ("cg.shared.global [%0 + 16], [%1], 16", WAIT_ALL, "out-of-bounds|race"),
])  # fmt: skip
def test_wrong_copies(statement: str, wait: str, message: str) -> None:
    x, y = words(128), np.zeros(128, np.uint32)
    with pytest.raises(EmulationError, match=message):
        run(copy_kernel(cp_async(statement), wait), "k", (1,), (32,), [x, y])


EXCHANGE = f"""  __shared__ alignas(64) uint s[64];
  s[{TX}] = X_ptr[{TX}];
  SYNC;
  Y_ptr[{TX}] = s[{TX} ^ DISTANCE];"""


@pytest.mark.parametrize(("sync", "distance", "message"), [
    ("__syncthreads()", 32, None),
    ("__syncwarp()", 1, None),
    ("__syncwarp()", 32, "race: read .* that thread 32 wrote|uninitialised"),
    ("(void)0", 1, "race|uninitialised"),
    (asm("bar.sync 0;").rstrip(";"), 32, None),
])  # fmt: skip
def test_barriers_order_what_they_order(sync: str, distance: int, message: str | None) -> None:
    text = kernel(EXCHANGE.replace("SYNC", sync).replace("DISTANCE", str(distance)), POINTERS, 64)
    x, y = words(64), np.zeros(64, np.uint32)
    if message is None:
        run(text, "k", (1,), (64,), [x, y])
        assert (y == x[np.arange(64) ^ distance]).all()
        return
    with pytest.raises(EmulationError, match=message):
        run(text, "k", (1,), (64,), [x, y])


def test_blocks_add_atomically() -> None:
    x, y = words(128), np.zeros(32, np.uint32)
    add = kernel(f"  atomicAdd(&(Y_ptr[{TX}]), X_ptr[((int)blockIdx.x) * 32 + {TX}]);", POINTERS)
    run(add, "k", (4,), (32,), [x, y])
    assert (y == x.reshape(4, 32).sum(axis=0, dtype=np.uint32)).all()
    plain = kernel(f"  Y_ptr[{TX}] = X_ptr[((int)blockIdx.x) * 32 + {TX}];", POINTERS)
    with pytest.raises(EmulationError, match=r"race: write .* that thread 0 of block 0 wrote"):
        run(plain, "k", (4,), (32,), [x, y])
    with pytest.raises(EmulationError, match="uninitialised read: byte 0 of 'Y_ptr'"):
        run(add, "k", (4,), (32,), [x, Uninitialized(y)])


def test_chosen_blocks_only() -> None:
    x, y = words(128), np.zeros(128, np.uint32)
    at = f"((int)blockIdx.y) * 64 + ((int)blockIdx.x) * 32 + {TX}"
    run(
        kernel(f"  Y_ptr[{at}] = X_ptr[{at}];", POINTERS), "k", (2, 2), (32,), [x, y], blocks=[0, 3]
    )
    assert (y == np.where((np.arange(128) // 32) % 3 == 0, x, 0)).all()


def test_dynamic_shared_memory_and_scalars() -> None:
    body = f"""  extern __shared__ __align__(64) int s[];
  s[{TX}] = X_ptr[{TX} + n];
  __syncthreads();
  Y_ptr[{TX}] = s[31 - {TX}];"""
    text = kernel(body, "int* __restrict__ X_ptr, int* __restrict__ Y_ptr, int n")
    x, y = words(40).view(np.int32), np.zeros(32, np.int32)
    run(text, "k", (1,), (32,), {"X": x, "Y_ptr": y, "n": 8}, 128)
    assert (y == x[8:][::-1]).all()
    with pytest.raises(
        EmulationError, match=r"out-of-bounds write: .*'dynamic shared memory', which has 124"
    ):
        run(text, "k", (1,), (32,), [x, y, 8], 124)


MMA, REGISTERS = "mma.sync.aligned.", " {}, {}, {}, {};"


@pytest.mark.parametrize(("instruction", "arch", "message"), [
    ("cp.async.commit_group;", 75, "needs sm_80"),
    (MMA + "m16n8k64.row.col.s32.s4.s4.s32" + REGISTERS, 75, "needs sm_80"),
    (MMA + "m16n8k64.row.col.s32.s4.s4.s32" + REGISTERS, 90, "emulated in software"),
    (MMA + "m8n8k64.row.col.s32.s4.s4.s32" + REGISTERS, 80, "there is no instruction"),
    (MMA + "m16n8k32.row.col.s32.s8.s4.s32" + REGISTERS, 80, "there is no instruction"),
    (MMA + "m8n8k16.row.col.s32.s8.s8.s32" + REGISTERS, 75, "takes .* registers"),
    ("frobnicate.b32 %0;", 80, "not modelled"),
])  # fmt: skip
def test_instructions_that_an_architecture_lacks(instruction: str, arch: int, message: str) -> None:
    with pytest.raises(EmulationError, match=f"line 2: .*{message}"):
        run(kernel("  " + asm(instruction), "int* X_ptr"), "k", (1,), (32,), [words(1)], arch=arch)


def test_launches_that_are_refused() -> None:
    text, x = kernel("  X_ptr[0] = 1;", "uint* X_ptr"), words(4)
    with pytest.raises(EmulationError, match="64 threads in a block of at most 32"):
        run(text, "k", (1,), (64,), [x])
    with pytest.raises(EmulationError, match=r"no kernel 'j'; it has \['k'\]"):
        run(text, "j", (1,), (32,), [x])
    with pytest.raises(EmulationError, match="2 arguments for the parameters"):
        run(text, "k", (1,), (32,), [x, x])
    with pytest.raises(EmulationError, match="C-contiguous"):
        run(text, "k", (1,), (32,), [x[::2]])
    with pytest.raises(EmulationError, match=r"missing: \['X_ptr'\]; unknown: \['Z'\]"):
        run(text, "k", (1,), (32,), {"Z": x})
    with pytest.raises(EmulationError, match="sm_75 has 64 KiB"):
        run(text, "k", (1,), (32,), [x], 65537, arch=75)
    run(text, "k", (1,), (32,), [x])
    assert x[0] == 1


def test_tensor_core_instructions_need_whole_warps() -> None:
    text = kernel("  __syncwarp();", "uint* X_ptr", 48)
    with pytest.raises(
        EmulationError, match="__syncwarp needs a whole warp, this one has 16 threads"
    ):
        run(text, "k", (1,), (48,), [words(1)])


def test_scalars_must_be_written_before_they_are_read() -> None:
    text = kernel(f"  uint v;\n  X_ptr[{TX}] = v + 1;", "uint* X_ptr")
    with pytest.raises(EmulationError, match=r"does not compile:[\s\S]*uninitialized"):
        run(text, "k", (1,), (32,), [words(32)])
