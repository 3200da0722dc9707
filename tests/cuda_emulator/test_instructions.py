"""Each modelled instruction, in small kernels written by hand, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from tests.cuda_emulator import EmulationError, Uninitialized, compiler, run

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler")

TX = "((int)threadIdx.x)"


def kernel(body: str, parameters: str, threads: int = 32) -> str:
    """CUDA text of a kernel `k`, in the form that TVM prints."""
    return (
        f'extern "C" __global__ void __launch_bounds__({threads}) k({parameters}) {{\n{body}\n}}\n'
    )


def asm(template: str, outputs: str = "", inputs: str = "") -> str:
    """An asm statement."""
    return f'asm volatile("{template}" : {outputs} : {inputs} : "memory");'


def words(count: int, seed: int = 0) -> np.ndarray:
    """Random 32-bit words."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 2**32, count, dtype=np.uint64).astype(np.uint32)


# The fragment layouts of PTX, element by element: row of A or column of B, and k, of element i of
# lane (g, t) = (lane >> 2, lane & 3); and row and column of element i of C.
LAYOUTS = {
    (8, 16, 8): (lambda g, t, i: (g, 4 * t + i), lambda g, t, i: (g, 4 * t + i)),
    (8, 32, 4): (lambda g, t, i: (g, 8 * t + i), lambda g, t, i: (g, 8 * t + i)),
    (16, 16, 8): (
        lambda g, t, i: (g + 8 * (i >> 2), 4 * t + (i & 3)),
        lambda g, t, i: (g, 4 * t + i),
    ),
    (16, 32, 8): (
        lambda g, t, i: (g + 8 * ((i >> 2) & 1), 4 * t + (i & 3) + 16 * (i >> 3)),
        lambda g, t, i: (g, 4 * t + (i & 3) + 16 * (i >> 2)),
    ),
    (16, 32, 4): (
        lambda g, t, i: (g + 8 * (i >> 3), 8 * t + (i & 7)),
        lambda g, t, i: (g, 8 * t + i),
    ),
    (16, 64, 4): (
        lambda g, t, i: (g + 8 * ((i >> 3) & 1), 8 * t + (i & 7) + 32 * (i >> 4)),
        lambda g, t, i: (g, 8 * t + (i & 7) + 32 * (i >> 3)),
    ),
}


def elements(registers: np.ndarray, bits: int, signed: bool) -> np.ndarray:
    """Elements of each lane's registers, low bits first: [32, n]."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    values = (
        (registers[:, :, None] >> shifts & np.uint32(2**bits - 1)).reshape(32, -1).astype(np.int64)
    )
    return np.where(signed & (values >> (bits - 1) == 1), values - 2**bits, values)


def registers(prefix: str, first: int, count: int) -> tuple[str, str]:
    """PTX operands %first.. in braces, and their bindings to an array."""
    binding = ", ".join(f'"r"({prefix}[{i}])' for i in range(count))
    return "{" + ", ".join(f"%{first + i}" for i in range(count)) + "}", binding


def mma_kernel(opcode: str, na: int, nb: int, nc: int) -> str:
    """Each lane's registers of A, B and C stand one after the other in the arguments."""
    d = "{" + ", ".join(f"%{i}" for i in range(nc)) + "}"
    outputs = ", ".join(f'"=r"(D_ptr[{TX} * {nc} + {i}])' for i in range(nc))
    parts = [registers(f"({p} + {TX} * {n})", first, n) for p, first, n in
             (("A_ptr", nc, na), ("B_ptr", nc + na, nb), ("C_ptr", nc + na + nb, nc))]  # fmt: skip
    template = f"{opcode} {d}, " + ", ".join(p[0] for p in parts) + ";"
    pointers = ", ".join(f"uint* __restrict__ {p}_ptr" for p in "ABCD")
    return kernel(asm(template, outputs, ", ".join(p[1] for p in parts)), pointers)


@pytest.mark.parametrize("types", ["ss", "uu", "us", "su"])
@pytest.mark.parametrize("shape", LAYOUTS, ids=str)
def test_mma_fragments(shape: tuple[int, int, int], types: str) -> None:
    m, k, bits = shape
    na, nb, nc = m * k * bits // 1024, 8 * k * bits // 1024, m // 4
    opcode = f"mma.sync.aligned.m{m}n8k{k}.row.col.s32.{types[0]}{bits}.{types[1]}{bits}.s32"
    a, b, c = words(32 * na), words(32 * nb, 1), words(32 * nc, 2)
    d = np.zeros(32 * nc, np.uint32)
    run(mma_kernel(opcode, na, nb, nc), "k", (1,), (32,), [a, b, c, Uninitialized(d)])
    left, right = np.zeros((m, k), np.int64), np.zeros((8, k), np.int64)
    for matrix, regs, sign, place in zip((left, right), (a, b), types, LAYOUTS[shape], strict=True):
        values = elements(regs.reshape(32, -1), bits, sign == "s")
        for lane in range(32):
            for i, value in enumerate(values[lane]):
                matrix[place(lane >> 2, lane & 3, i)] = value
    product = left @ right.T
    for lane in range(32):
        for i in range(nc):
            row, column = (lane >> 2) + 8 * (i >> 1), 2 * (lane & 3) + (i & 1)
            assert d[lane * nc + i] == (int(c[lane * nc + i]) + product[row, column]) % 2**32


@pytest.mark.parametrize(("option", "expected"), [(".satfinite", 2**31 - 1), ("", -(2**31))])
def test_mma_overflow(option: str, expected: int) -> None:
    text = mma_kernel(f"mma.sync.aligned.m8n8k16.row.col{option}.s32.s8.s8.s32", 1, 1, 2)
    one = np.where(np.arange(32) % 4 == 0, 1, 0).astype(np.uint32)
    c, d = np.full(64, 2**31 - 1, np.uint32), np.zeros(64, np.uint32)
    run(text, "k", (1,), (32,), [one, one, c, d])
    assert (d.view(np.int32) == expected).all()


@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix(count: int) -> None:
    outs = ", ".join(f'"=r"(Y_ptr[{TX} * {count} + {i}])' for i in range(count))
    group = "{" + ", ".join(f"%{i}" for i in range(count)) + "}"
    template = f"ldmatrix.sync.aligned.m8n8.x{count}.shared.b16 {group}, [%{count}];"
    body = f"""  __shared__ alignas(64) uint s[128];
  *(uint4*)(s + {TX} * 4) = *(uint4*)(X_ptr + {TX} * 4);
  __syncthreads();
  unsigned int addr = __cvta_generic_to_shared(s + ({TX} * 13 & {8 * count - 1}) * 4);
  {asm(template, outs, '"r"(addr)')}"""
    x, y = words(128), np.zeros(32 * count, np.uint32)
    run(kernel(body, "uint* X_ptr, uint* Y_ptr"), "k", (1,), (32,), [x, y])
    rows = x.reshape(32, 4)[np.arange(32) * 13 % (8 * count)]
    want = [[rows[8 * i + (lane >> 2), lane & 3] for i in range(count)] for lane in range(32)]
    assert (y.reshape(32, count) == want).all()


def test_ldmatrix_of_sm_75_reads_every_address() -> None:
    template = "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
    body = f"""  __shared__ alignas(64) uint s[32];
  s[{TX}] = 0;
  __syncthreads();
  unsigned int addr = __cvta_generic_to_shared(s + {TX} * 4) + {TX} / 8;
  {asm(template, f'"=r"(Y_ptr[{TX}])', '"r"(addr)')}"""
    text, y = kernel(body, "uint* Y_ptr"), np.ones(32, np.uint32)
    run(text, "k", (1,), (32,), [y], arch=80)
    assert not y.any()
    with pytest.raises(EmulationError, match="misaligned ldmatrix"):
        run(text, "k", (1,), (32,), [y], arch=75)


def elementwise(expression: str, count: int = 3) -> np.ndarray:
    """Y[i] of a kernel that computes `expression` of a, b and c, words of X0, X1 and X2."""
    loads = "\n".join(f"  uint {n} = X{i}_ptr[{TX}];" for i, n in enumerate("abc"[:count]))
    pointers = ", ".join(f"uint* X{i}_ptr" for i in range(count))
    y = np.zeros(256, np.uint32)
    text = kernel(
        f"{loads}\n  uint y;\n  {expression}\n  Y_ptr[{TX}] = y;", f"{pointers}, uint* Y_ptr", 256
    )
    run(text, "k", (1,), (256,), [*(words(256, i) for i in range(count)), Uninitialized(y)])
    return y


def test_prmt_picks_bytes_and_signs() -> None:
    a, b, c = (words(256, i) for i in range(3))
    source = np.stack([a, b], axis=-1).view(np.uint8).reshape(256, 8)
    want = np.zeros((256, 4), np.uint8)
    for i in range(4):
        s = (c >> np.uint32(4 * i) & np.uint32(15)).astype(int)
        byte = source[np.arange(256), s & 7]
        want[:, i] = np.where(s & 8, np.where(byte >> 7, 255, 0), byte)
    operands = '"r"(a), "r"(b), "r"(c)'
    assert (
        elementwise(asm("prmt.b32 %0, %1, %2, %3;", '"=r"(y)', operands))
        == want.view(np.uint32)[:, 0]
    ).all()
    assert (elementwise("y = __byte_perm(a, b, c);") == want.view(np.uint32)[:, 0]).all()


@pytest.mark.parametrize(("table", "want"), [
    (0x96, lambda a, b, c: a ^ b ^ c),
    (0xE8, lambda a, b, c: (a & b) | (a & c) | (b & c)),
    (0xC0, lambda a, b, c: a & b),
    (0xEA, lambda a, b, c: (a & b) | c),
])  # fmt: skip
def test_lop3(table: int, want: object) -> None:
    y = elementwise(asm(f"lop3.b32 %0, %1, %2, %3, {table};", '"=r"(y)', '"r"(a), "r"(b), "r"(c)'))
    assert (y == want(*(words(256, i) for i in range(3)))).all()


@pytest.mark.parametrize("kind", ["s4", "u4", "s8", "u8", "s2", "u2"])
def test_cvt_pack_appends_two_saturated_values(kind: str) -> None:
    bits = int(kind[1])
    lo, hi = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if kind[0] == "s" else (0, 2**bits - 1)
    template = f"cvt.pack.sat.{kind}.s32.b32 %0, %1, %2, %3;"
    y = elementwise(
        "a = (int)a >> 26; b = (int)b >> 26; " + asm(template, '"=r"(y)', '"r"(a), "r"(b), "r"(c)')
    )
    a, b = (np.clip(words(256, i).view(np.int32) >> 26, lo, hi) & (2**bits - 1) for i in range(2))
    want = words(256, 2).astype(np.int64) << (2 * bits) | a.astype(np.int64) << bits | b
    assert (y == want % 2**32).all()


def test_integer_arithmetic() -> None:
    a, b, c = (words(256, i).view(np.int32).astype(np.int64) for i in range(3))
    high = (a * b >> 32) % 2**32
    assert (elementwise("y = __mulhi((int)a, (int)b);") == high).all()
    assert (elementwise(asm("mul.hi.s32 %0, %1, %2;", '"=r"(y)', '"r"(a), "r"(b)')) == high).all()
    low = elementwise(asm("mad.lo.s32 %0, %1, %2, %3;", '"=r"(y)', '"r"(a), "r"(b), "r"(c)'))
    assert (low == (a * b + c) % 2**32).all()
    wide = "{ .reg .b64 t; mul.wide.s32 t, %1, %2; shr.u64 t, t, 32; mov.b64 %0, t; }"
    with pytest.raises(EmulationError, match=r"shr\.u64.*not modelled"):
        elementwise(asm(wide, '"=r"(y)', '"r"(a), "r"(b)'))
    dots = sum(
        (x >> 8 * i << 56 >> 56) * (z >> 8 * i << 56 >> 56) for i in range(4) for x, z in [(a, b)]
    )
    assert (elementwise("y = __dp4a((int)a, (int)b, (int)c);") == (dots + c) % 2**32).all()
    shifted = elementwise(asm("shl.b32 %0, %1, %2;", '"=r"(y)', '"r"(a), "r"(b & 63)'))
    assert (shifted == np.where(b & 63 < 32, a << (b & 31), 0) % 2**32).all()
    clamped = asm(
        "{ .reg .pred p; setp.lt.s32 p, %1, %2; selp.b32 %0, %1, %2, p; }",
        '"=r"(y)',
        '"r"(a), "r"(b)',
    )
    assert (elementwise(clamped) == np.minimum(a, b) % 2**32).all()


@pytest.mark.parametrize(("call", "source"), [
    ("__shfl_sync(m, v, 5, 32)", lambda i: np.full(32, 5)),
    ("__shfl_sync(m, v, 3, 8)", lambda i: i // 8 * 8 + 3),
    ("__shfl_up_sync(m, v, 2, 32)", lambda i: np.where(i < 2, i, i - 2)),
    ("__shfl_down_sync(m, v, 3, 16)", lambda i: np.where(i % 16 > 12, i, i + 3)),
    ("__shfl_xor_sync(m, v, 9, 32)", lambda i: i ^ 9),
])  # fmt: skip
def test_shuffles(call: str, source: object) -> None:
    body = f"  uint m = 4294967295; int v = X_ptr[{TX}];\n  Y_ptr[{TX}] = {call};"
    x, y = words(32).view(np.int32), np.zeros(32, np.int32)
    run(kernel(body, "int* X_ptr, int* Y_ptr"), "k", (1,), (32,), [x, y])
    assert (y == x[source(np.arange(32))]).all()
    with pytest.raises(EmulationError, match="diverged warp"):
        half = body.replace("  Y_ptr", f"  if ({TX} < 16) Y_ptr")
        run(kernel(half, "int* X_ptr, int* Y_ptr"), "k", (1,), (32,), [x, y])
