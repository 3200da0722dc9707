"""The whole way of a module from import to code generation, on one screen.

===========  ====================================================================================
stage        phases
===========  ====================================================================================
qdq          what a frontend made: float operators between q4.quantize and q4.dequantize
integer      `INTEGER_PHASES`: q4 operators on integers, proved not to overflow
fused        ``FuseEpilogue``: each anchor with its epilogue is one private function
kernels      ``lower_to_tir``: each such function is a TensorIR kernel of a schedule rule
calls        `CALL_PHASES`: TVM lowers what stays float and makes every tensor explicit
memory       ``PlanMemory``: every tensor has its place in one arena
vm           `VM_PHASES`: instructions of TVM's virtual machine
===========  ====================================================================================

TVM's default Relax pipeline is not used: its memory plan gives tensors storages of their own, and
its fusion expects functions that are not scheduled yet.
"""

from __future__ import annotations

from pathlib import Path

import tvm
from tvm import relax
from tvm.target import Target

from tvm_q4.errors import InputError
from tvm_q4.relay_passes.bind_float_kernels import bind_float_kernels
from tvm_q4.relay_passes.capture_cuda_graph import capture_cuda_graph
from tvm_q4.relay_passes.check_overflow import CheckOverflow
from tvm_q4.relay_passes.drop_dead_channels import DropDeadChannels
from tvm_q4.relay_passes.fold_batch_norm import FoldBatchNorm
from tvm_q4.relay_passes.fold_requantize import FoldRequantize
from tvm_q4.relay_passes.fold_reshape import FoldReshape
from tvm_q4.relay_passes.fold_weight_quantize import FoldWeightQuantize
from tvm_q4.relay_passes.fuse_epilogue import FuseEpilogue
from tvm_q4.relay_passes.fuse_stem_pool import FuseStemPool
from tvm_q4.relay_passes.lower_to_tir import Lowered, Tuned, lower_to_tir
from tvm_q4.relay_passes.plan_memory import ARENA_ATTR, PlanMemory
from tvm_q4.relay_passes.qdq_to_integer import QdqToInteger
from tvm_q4.relay_passes.split_bias import SplitBias
from tvm_q4.schedules.cuda.stem import stem_pays
from tvm_q4.schedules.rule import ScheduleRule

INTEGER_PHASES = (
    ("fold-weight-quantize", FoldWeightQuantize),
    ("fold-batch-norm", FoldBatchNorm),
    ("qdq-to-integer", QdqToInteger),
    ("fold-requantize", FoldRequantize),
    ("fold-reshape", FoldReshape),
    ("drop-dead-channels", DropDeadChannels),
    ("split-bias", SplitBias),
    ("check-overflow", CheckOverflow),
)
"""Name and pass of each phase. Weights are folded first: batch norms then find integers."""

_T = relax.transform
CALL_PHASES = (_T.LegalizeOps, _T.ToNonDataflow, _T.RemovePurityChecking, _T.CallTIRRewrite)
VM_PHASES = (
    _T.LowerAllocTensor,
    _T.KillAfterLastUse,
    _T.LowerRuntimeBuiltin,
    _T.ComputePrimValue,
    _T.VMShapeLower,
    _T.AttachGlobalSymbol,
)
_FUSED, _KERNELS, _MEMORY = (len(INTEGER_PHASES) + i for i in (1, 2, 3))


def dump_phase(directory: Path, number: int, name: str) -> tvm.transform.Pass:
    """A pass that writes the module to ``NN-name.py`` and changes nothing.

    Raises
    ------
    InputError
        If the file cannot be written.
    """

    @tvm.transform.module_pass(opt_level=0, name=f"Dump-{name}")
    def dump(mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        path = directory / f"{number:02d}-{name}.py"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            path.write_text(mod.script(show_meta=False), encoding="utf-8")
        except OSError as error:
            reason = f"{error.strerror}; give --dump-ir a writable folder"
            msg = f"cannot write the module to '{path}': {reason}"
            raise InputError(msg) from error
        return mod

    return dump


@relax.register_pipeline("tvm_q4_integer")
def integer_pipeline(dump_dir: str | Path | None = None) -> tvm.transform.Pass:
    """All passes up to the integer stage, with a dump after each if `dump_dir` is given."""
    passes: list[tvm.transform.Pass] = []
    if dump_dir is not None:
        passes.append(dump_phase(Path(dump_dir), 0, "imported"))
    for number, (name, phase) in enumerate(INTEGER_PHASES, start=1):
        passes.append(phase)
        if dump_dir is not None:
            passes.append(dump_phase(Path(dump_dir), number, name))
    return tvm.transform.Sequential(passes, opt_level=0, name="tvm_q4_integer")


def to_integer(mod: tvm.IRModule, *, dump_dir: str | Path | None = None) -> tvm.IRModule:
    """Bring a module from stage "qdq" to stage "integer"; others stay as they are.

    Parameters
    ----------
    mod : tvm.IRModule
        What a frontend made.
    dump_dir : str or Path, optional
        Folder for the module's text after each phase, ``NN-name.py``.

    Raises
    ------
    NumericsError
        If an accumulator may overflow int32, or a bias or a ratio leaves its range.
    InputError
        If `dump_dir` cannot be written.
    """
    return integer_pipeline(dump_dir)(mod)


def _dump(mod: tvm.IRModule, dump_dir: str | Path | None, number: int, name: str) -> None:
    if dump_dir is not None:
        dump_phase(Path(dump_dir), number, name)(mod)


def to_fused(mod: tvm.IRModule, *, dump_dir: str | Path | None = None) -> tvm.IRModule:
    """Bring a module from stage "integer" to stage "fused"."""
    fused = FuseEpilogue(mod)
    _dump(fused, dump_dir, _FUSED, "fuse-epilogue")
    return fused


def to_kernels(
    mod: tvm.IRModule,
    target: Target,
    rules: list[ScheduleRule],
    tuned: Tuned,
    *,
    suffix: str = "",
    dump_dir: str | Path | None = None,
) -> Lowered:
    """Bring a fused module to stage "kernels"; see `lower_to_tir`."""
    lowered = _lowered(mod, target, rules, tuned, suffix)
    _dump(lowered.mod, dump_dir, _KERNELS, f"lower-to-tir{suffix}")
    return lowered


def _lowered(
    mod: tvm.IRModule, target: Target, rules: list[ScheduleRule], tuned: Tuned, suffix: str
) -> Lowered:
    """Kernels; on GPUs the image's convolution takes its max-pools in where that is faster."""
    if target.kind.name == "cuda":
        stem = FuseStemPool(mod)
        if not stem.same_as(mod):
            lowered = lower_to_tir(stem, target, rules, tuned, suffix)
            if all(stem_pays(call.layer, target, call.choice) for call in lowered.calls):
                return lowered
    return lower_to_tir(mod, target, rules, tuned, suffix)


def to_vm(
    mod: tvm.IRModule, target: Target, *, suffix: str = "", dump_dir: str | Path | None = None
) -> tuple[tvm.IRModule, int]:
    """Bring a module of stage "kernels" to the virtual machine.

    `suffix` ends the names of float kernels for CUDA, and of the dump.

    Returns
    -------
    tuple of IRModule and int
        The module, ready for ``relax.build`` without a pipeline, and the bytes of planned memory.
    """
    with target:
        if target.kind.name == "cuda":
            mod = bind_float_kernels(_T.LegalizeOps()(mod), target, suffix)
        mod = tvm.transform.Sequential([phase() for phase in CALL_PHASES])(mod)
        mod = PlanMemory(mod)
        _dump(mod, dump_dir, _MEMORY, f"plan-memory{suffix}")
        planned = int(mod.attrs[ARENA_ATTR])
        if target.kind.name == "cuda":
            mod = capture_cuda_graph(mod, suffix)
        return tvm.transform.Sequential([phase() for phase in VM_PHASES])(mod), planned
