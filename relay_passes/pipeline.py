"""The pipeline from an imported model to an integer module, on one screen."""

from __future__ import annotations

from pathlib import Path

import tvm
from tvm import relax

from tvm_q4.errors import InputError
from tvm_q4.relay_passes.check_overflow import CheckOverflow
from tvm_q4.relay_passes.fold_batch_norm import FoldBatchNorm
from tvm_q4.relay_passes.fold_requantize import FoldRequantize
from tvm_q4.relay_passes.fold_weight_quantize import FoldWeightQuantize
from tvm_q4.relay_passes.qdq_to_integer import QdqToInteger

INTEGER_PHASES = (
    ("fold-weight-quantize", FoldWeightQuantize),
    ("fold-batch-norm", FoldBatchNorm),
    ("qdq-to-integer", QdqToInteger),
    ("fold-requantize", FoldRequantize),
    ("check-overflow", CheckOverflow),
)
"""Name and pass of each phase. Weights are folded first: batch norms then find integers."""


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
