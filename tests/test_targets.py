"""What users may write as a target."""

from __future__ import annotations

import json
import platform

import pytest
from tvm.target.codegen import llvm_get_system_cpu

from tvm_q4.errors import TargetError
from tvm_q4.library.host import cpu_flags
from tvm_q4.targets import host_cpu, parse_target


@pytest.mark.parametrize("text", ["llvm", "  llvm\n"])
def test_llvm_is_this_cpu(text: str) -> None:
    target = parse_target(text)
    assert target.kind.name == "llvm"
    assert target.attrs["mcpu"] in (llvm_get_system_cpu(), host_cpu())
    assert int(target.attrs["num-cores"]) >= 1


@pytest.mark.skipif(platform.machine() != "x86_64", reason="levels are those of x86-64")
@pytest.mark.parametrize(
    ("hidden", "expected"),
    [
        ("", "znver4"),
        ("avx512vnni", "x86-64-v4"),
        ("avx512vnni avx512f", "x86-64-v3"),
        ("avx512vnni avx512f avx2", "x86-64-v2"),
    ],
)
def test_extensions_that_a_virtual_machine_hides_are_not_used(hidden: str, expected: str) -> None:
    names = "avx avx2 fma f16c bmi bmi2 gfni vaes vpclmulqdq avx512f avx512cd avx512bw avx512dq"
    names += " avx512vl avx512bf16 avx512vbmi avx512vbmi2 avx512ifma avx512vnni avx512bitalg"
    flags = frozenset((names + " avx512vpopcntdq").split()) - set(hidden.split())
    assert host_cpu("znver4", flags) == expected


@pytest.mark.skipif(cpu_flags() is None, reason="this system does not list the CPU's extensions")
def test_this_cpu_has_what_the_host_target_uses() -> None:
    assert host_cpu() == parse_target("llvm").attrs["mcpu"]


def test_json() -> None:
    target = parse_target('{"kind": "llvm", "mcpu": "cascadelake", "num-cores": 3}')
    assert (target.attrs["mcpu"], int(target.attrs["num-cores"])) == ("cascadelake", 3)


def test_json_without_a_cpu() -> None:
    assert "mcpu" not in parse_target('{"kind": "llvm"}').attrs


def test_json_of_another_architecture() -> None:
    text = json.dumps({"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a72"})
    assert parse_target(text).attrs["mcpu"] == "cortex-a72"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("llvn", "does not exist"),
        ("", "does not exist"),
        ("{'kind': 'llvm'}", "is not valid JSON"),
        ('{"kind": "llvm", "mcpu": 3}', "is not a TVM target"),
        ('{"kind": "warp-drive"}', "is not a TVM target"),
        ('{"mcpu": "znver4"}', "is not a TVM target"),
        ("c", "of kind 'c', for which there are no kernels"),
        ('{"kind": "llvm", "mcpu": "pentium9000"}', "LLVM knows no CPU 'pentium9000'"),
        ('{"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "znver4"}', "LLVM knows no CPU"),
    ],
)
def test_errors_are_one_line(text: str, message: str) -> None:
    with pytest.raises(TargetError, match=message) as caught:
        parse_target(text)
    assert "\n" not in str(caught.value)
    assert repr(text.strip()) in str(caught.value)
