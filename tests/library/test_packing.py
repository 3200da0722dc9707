"""TVM's blob of modules: reading it, and putting machine code in place of source."""

from __future__ import annotations

import struct

import pytest

from tvm_q4.errors import LibraryError
from tvm_q4.library.fatbin import MAGIC
from tvm_q4.library.packing import Blob, Entry, replace_source, source_only

TREE = struct.pack("<4Q", 2, 0, 1, 1) + struct.pack("<Q", 1)  # row pointers [0, 1], children [1]


def sized(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def cuda(source: str, functions: bytes = b"\x01\x00functions") -> Entry:
    return Entry("cuda", sized(b"cuda") + functions + sized(source.encode()))


@pytest.fixture
def blob() -> Blob:
    first, second = cuda("first source"), cuda("the second source", b"\x02more")
    return Blob(
        TREE, (Entry("relax.VMExecutable", b"\0weights"), Entry("_lib", None), first, second)
    )


def test_what_is_read_is_what_was_written(blob: Blob) -> None:
    data = blob.to_bytes()
    assert struct.unpack_from("<Q", data)[0] == len(data) - 8
    assert Blob.parse(data) == blob
    assert Blob.parse(data + b"what the linker puts behind it") == blob


def test_source_gives_way_to_machine_code(blob: Blob) -> None:
    compiled = {"first source": MAGIC + b"1", "the second source": MAGIC + b"22"}
    replaced = Blob.parse(replace_source(blob, compiled).to_bytes())
    assert replaced.tree == blob.tree
    assert replaced.entries[:2] == blob.entries[:2]
    assert replaced.fatbins() == [MAGIC + b"1", MAGIC + b"22"]
    expected = sized(b"fatbin") + b"\x01\x00functions" + sized(MAGIC + b"1")
    assert replaced.entries[2] == Entry("cuda", expected)
    assert b"source" not in replaced.to_bytes()


def test_one_source_may_end_like_another() -> None:
    blob = Blob(TREE, (cuda("a source"), cuda("another a source")))
    compiled = {"a source": MAGIC + b"1", "another a source": MAGIC + b"2"}
    assert replace_source(blob, compiled).fatbins() == [MAGIC + b"1", MAGIC + b"2"]


def test_machine_code_that_holds_a_fat_binarys_first_bytes(blob: Blob) -> None:
    code = MAGIC + b"a" + sized(MAGIC + b"b") + b"c"
    replaced = replace_source(blob, {"first source": code, "the second source": code})
    assert replaced.fatbins() == [code, code]


def test_source_is_no_machine_code(blob: Blob) -> None:
    with pytest.raises(LibraryError, match="device code of format 'cuda'"):
        blob.fatbins()


@pytest.mark.parametrize("keep", [0, 4, 12, 60, -1])
def test_cut_off(blob: Blob, keep: int) -> None:
    with pytest.raises(LibraryError, match="compile it again") as caught:
        Blob.parse(blob.to_bytes()[:keep])
    assert "\n" not in str(caught.value)


def test_tvm_does_not_compile_while_it_builds() -> None:
    import tvm

    name = "tvm_callback_cuda_compile"
    before = tvm.get_global_func(name)
    with source_only():
        assert bytes(tvm.get_global_func(name)("source")) == b"source"
    assert tvm.get_global_func(name).is_(before) or tvm.get_global_func(name).same_as(before)
