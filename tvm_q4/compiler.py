"""From a model to a library: the main job."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tvm
from tvm import relax
from tvm.target import Target

from tvm_q4.cuda_target import CudaTarget
from tvm_q4.errors import CheckFailed, UnsupportedError
from tvm_q4.library.packing import source_only
from tvm_q4.metadata import EntrySet, build_metadata
from tvm_q4.model_hash import model_hash
from tvm_q4.progress import ProgressBar
from tvm_q4.relay_passes.check_integer_only import check_integer_only
from tvm_q4.relay_passes.integer_output import IntegerOutput
from tvm_q4.relay_passes.lower_to_tir import Lowered
from tvm_q4.relay_passes.pipeline import to_fused, to_integer, to_kernels, to_vm
from tvm_q4.targets import as_target, target_arch
from tvm_q4.tuning_logs.records import best_records
from tvm_q4.variants import Variant, describe, variants

if TYPE_CHECKING:
    from tvm_q4.library import Library

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """How to compile; see `compile_model`."""

    require_integer_only: bool = False
    integer_output: bool = False
    dump_ir: str | Path | None = None
    tuning_log: tuple[str, ...] = ()
    strict_log: bool = False


_DEFAULTS = Options()
STEPS = ("import", "integers", "kernels", "machine code", "library")


@dataclass
class Compiled:
    """A compiled model before it is written: TVM's executable and the metadata."""

    executable: Any
    metadata: dict[str, Any]


def compile_model(
    model: Any,
    *,
    target: str | Target | CudaTarget = "llvm",
    batch: int | None = None,
    image_size: tuple[int, int] | None = None,
    tuning_log: Sequence[str | Path] = (),
    strict_log: bool = False,
    require_integer_only: bool = False,
    integer_output: bool = False,
    dump_ir: str | Path | None = None,
    seed: int = 0,
    arch: str | None = None,
    hawq_config: str | Path | None = None,
    hawq_rounding: str | None = None,
    output: str | Path | None = None,
) -> Library:
    """Compile a quantized model to a library.

    Parameters
    ----------
    model : str, Path, torch.export.ExportedProgram or tvm.IRModule
        A ``.pt2`` file, recipe folder, ``zoo:NAME@CONFIG``, or a program or module in memory.
    target : str, tvm.target.Target or CudaTarget
        ``llvm`` (this CPU), ``cuda:sm_75,sm_80``, a device as ``nvidia/nvidia-t4``, a TVM target
        tag or a JSON object.
    batch : int, optional
        Images a run; the model's own where None.
    image_size : (int, int), optional
        Height and width; the model's own where None.
    tuning_log : sequence of paths
        Files of measured records, or names of shipped ones (`tuning_logs.shipped`); the fastest
        checked record of the same arch and layer signature decides a
        layer's parameters, else the rule's prediction does.
    strict_log : bool
        Demand a record for every layer whose rule has parameters to choose.
    require_integer_only : bool
        Refuse a model in which anything but the input's quantize and the logits' scale stays float.
    integer_output : bool
        Return the last layer's int32 accumulators; their scales are in the metadata.
    dump_ir : path, optional
        Folder that gets the module after each phase.
    seed : int
        Seed of the random weights of ``zoo:`` models.
    arch, hawq_config, hawq_rounding : str, optional
        What a HAWQ checkpoint does not tell; see `tvm_q4.frontend.hawq.load_hawq_model`.
    output : path, optional
        The library's file; a temporary one where None.

    Returns
    -------
    Library
        The library. One for CUDA, which need not run here, loads its code when it is first run.

    Raises
    ------
    Q4Error
        For anything wrong with the model, the target or the options; nothing is written then.
    """
    from tvm_q4.library import check_writable, export_library, load

    if output is not None:
        check_writable(output)
    resolved = as_target(target)
    if isinstance(resolved, CudaTarget):
        from tvm_q4.library.nvcc import find_nvcc

        find_nvcc(resolved.archs)
    options = Options(
        require_integer_only, integer_output, dump_ir, tuple(map(str, tuning_log)), strict_log
    )
    if output is None:
        output = Path(tempfile.mkdtemp(prefix="tvm_q4_")) / "library.so"
    with ProgressBar("compile", len(STEPS)) as bar:
        bar.step("import")
        hawq = {"arch": arch, "hawq_config": hawq_config, "hawq_rounding": hawq_rounding}
        mod = _load(model, batch, image_size, seed, hawq)
        bar.advance()
        compiled = compile_module(mod, resolved, options, bar)
        bar.step("library")
        export_library(compiled.executable, compiled.metadata, Path(output))
        bar.advance()
    return load(output, lazy=isinstance(resolved, CudaTarget))


def _load(
    model: Any,
    batch: int | None,
    image_size: tuple[int, int] | None,
    seed: int,
    hawq: dict[str, Any],
) -> tvm.IRModule:
    if isinstance(model, tvm.IRModule):
        return model
    if isinstance(model, (str, Path)):
        from tvm_q4.frontend import load_model

        return load_model(
            model, batch=batch, image_size=image_size, seed=seed, require_quantized=True, **hawq
        )
    from tvm_q4.frontend.torch_export import import_exported

    return import_exported(model, batch=batch, image_size=image_size)


def compile_module(
    mod: tvm.IRModule,
    target: Target | CudaTarget,
    options: Options = _DEFAULTS,
    bar: ProgressBar | None = None,
) -> Compiled:
    """Compile a module of the QDQ or integer stage for `target`; `bar` is told of each step.

    Raises
    ------
    UnsupportedError
        If `require_integer_only` is asked for and an operator stays float.
    CheckFailed
        If `strict_log` is asked for and a layer has no record.
    """
    bar = bar or ProgressBar("compile", len(STEPS), show=False)
    bar.step("integers")
    integer = to_integer(mod, dump_dir=options.dump_ir)
    digest = model_hash(integer)
    if options.integer_output:
        integer = IntegerOutput(integer)
    float_ops = check_integer_only(integer)
    _report_float(float_ops, options.require_integer_only)
    bar.advance()
    bar.step("kernels")
    fused = to_fused(integer, dump_dir=options.dump_ir)
    lowered = [(v, _lower(fused, v, options)) for v in variants(target)]
    bar.advance()
    bar.step("machine code")
    entries, executable = _build(lowered, options)
    bar.advance()
    facts = {"sha256": digest, "float_ops": float_ops}
    return Compiled(executable, build_metadata(integer, fused, entries, describe(target), facts))


def _lower(fused: tvm.IRModule, variant: Variant, options: Options) -> Lowered:
    """Kernels of one entry set."""
    records = best_records(options.tuning_log, target_arch(variant.target))
    lowered = to_kernels(
        fused,
        variant.target,
        variant.rules,
        records.get,
        suffix=variant.suffix,
        dump_dir=options.dump_ir,
    )
    if options.strict_log:
        _check_strict(lowered, variant.target)
    return lowered


def _build(lowered: list[tuple[Variant, Lowered]], options: Options) -> tuple[list[EntrySet], Any]:
    """The entry sets with their planned memory, and one executable that holds them all."""
    functions: dict[tvm.ir.GlobalVar, Any] = {}
    entries = []
    for variant, one in lowered:
        mod, arena = to_vm(one.mod, variant.target, suffix=variant.suffix, dump_dir=options.dump_ir)
        functions |= dict(mod.functions)
        entries.append(EntrySet(variant, one, arena))
    target = entries[-1].variant.target
    passes = "default"
    if target.kind.name == "cuda":
        from tvm_q4.schedules.cuda.pipeline import tir_pipeline

        passes = tir_pipeline()
    with source_only():
        executable = relax.build(
            tvm.IRModule(functions, attrs=lowered[-1][1].mod.attrs),
            target=target,
            relax_pipeline=tvm.transform.Sequential([]),
            tir_pipeline=passes,
        )
    return entries, executable


def _check_strict(lowered: Lowered, target: Target) -> None:
    """Demand that no parameter was chosen without a record."""
    missing = [c for c in lowered.calls if c.choice.source == "predicted"]
    arch = target_arch(target)
    if missing:
        msg = (
            f"--strict-log: {len(missing)} of {len(lowered.calls)} layers have no checked record "
            f"for {arch}, first {missing[0].layer.name!r} ({missing[0].signature}); tune the model "
            "for this target, or drop --strict-log"
        )
        raise CheckFailed(msg)


def _report_float(float_ops: list[dict[str, Any]], forbidden: bool) -> None:
    if not float_ops:
        return
    first = float_ops[0]
    place = f"{first['op']} at {first['name']!r} ({first['reason']})"
    text = f"{len(float_ops)} operators stay float, first {place}"
    if forbidden:
        raise UnsupportedError(
            f"the model is not integer only: {text}; quantize them or drop --require-integer-only"
        )
    logger.warning("%s", text)
