"""``verify``: a compiled library against the reference executor, bit for bit on every tensor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tvm_q4.comparison import Comparison, top1_agreement
from tvm_q4.errors import CheckFailed, InputError
from tvm_q4.library import Library, load
from tvm_q4.library.inputs import batches
from tvm_q4.onnxruntime_check import onnxruntime_model
from tvm_q4.sample_input import sample_input

if TYPE_CHECKING:
    import tvm


def verify(
    library: Library | str | Path,
    model: str | Path | tvm.IRModule,
    x: NDArray | None = None,
    *,
    first_mismatch: bool = False,
    onnxruntime: bool = False,
    seed: int = 0,
    arch: str | None = None,
    hawq_config: str | Path | None = None,
    hawq_rounding: str | None = None,
) -> dict[str, Any]:
    """Compare every tensor that a library stores with the reference executor's.

    Tensors must be equal. The exception is a quantization that reads a float island (operators that
    the model leaves in float32, whose rounding is not defined to the bit): it is reported as a
    ``float boundary`` with its own agreement, and the reference goes on from the library's value.
    What the library keeps in registers is checked through the layer that consumes it.

    Parameters
    ----------
    library : Library, str or Path
        A library or its file.
    model : str, Path or tvm.IRModule
        What it was compiled from: MODEL as for ``compile``, or a module of the QDQ or integer
        stage.
    x : ndarray [N, C, H, W], optional
        Input, float32 or the integers of the quantized input. Where None, random inputs over the
        whole range, at least two images (see `tvm_q4.sample_input`).
    first_mismatch : bool
        End at the first tensor that differs.
    onnxruntime : bool
        Run `model`, a ``.onnx`` file, in onnxruntime too.
    seed : int
        Seed of the random input, and of the weights of ``zoo:`` models.
    arch, hawq_config, hawq_rounding : str, optional
        As for ``compile``.

    Returns
    -------
    dict
        ``bit_exact``; ``layers``, one entry for each q4 tensor of the model in order: ``name``,
        ``kind``, ``checked`` (stored by the library), ``equal`` (fraction), ``max_step`` (largest
        difference in integer steps), and against the fake-quantized model, where `model` is one and
        has the tensor, ``framework_equal`` and ``framework_max_step``, each layer being fed what
        the library fed it, and ``onnxruntime_equal`` and ``onnxruntime_max_step`` likewise;
        ``first_mismatch`` (``name``, ``index``, ``expected``, ``found``) or
        None; ``output`` (``equal``, ``max_step`` of the result); ``top1_agreement`` and
        ``top1_against`` (``model``: the fake-quantized one, left to itself, else ``reference``);
        ``n`` images; where asked for, ``onnxruntime_top1_agreement`` (onnxruntime left to itself)
        and ``onnxruntime_version``.

    Raises
    ------
    CheckFailed
        If `model` is not what the library was compiled from.
    InputError
        If `model` or `x` cannot be used.
    EnvironmentMismatch
        If a package that the model's format or `onnxruntime` needs is not installed.
    """
    lib = library if isinstance(library, Library) else load(library)
    hawq = {"arch": arch, "hawq_config": hawq_config, "hawq_rounding": hawq_rounding}
    models = _Models(lib, model, {"seed": seed, **hawq}, onnxruntime)
    if x is None:
        x = sample_input(lib.metadata, max(2, lib.input.batch), dtype=lib.input.dtype, seed=seed)
    lib.input.check(x)
    comparison = Comparison(models.boundaries)
    logits = []
    for piece, count in batches(x, lib.input.batch):
        logits.append(_compare(lib, models, piece, count, comparison, not first_mismatch))
        if first_mismatch and comparison.mismatch is not None:
            break
    own, model_logits, *other = (np.concatenate(part) for part in zip(*logits, strict=True))
    report = comparison.report(first_mismatch) | {
        "top1_agreement": top1_agreement(own, model_logits),
        "top1_against": "model" if models.framework and not first_mismatch else "reference",
        "n": len(own),
    }
    if models.onnxruntime is not None:
        report["onnxruntime_top1_agreement"] = top1_agreement(own, other[0])
        report["onnxruntime_version"] = models.onnxruntime.version
    return report


def _compare(
    lib: Library, models: _Models, x: NDArray, count: int, comparison: Comparison, framework: bool
) -> list[NDArray]:
    """Compare one batch; logits of the library and the models for its `count` real images."""
    found = lib.trace(x)
    result = found.pop(lib.metadata["output"]["name"])
    overrides = {name: found[name] for name in models.boundaries if name in found}
    floats, given = _float_input(lib, x)
    reference, expected = models.integer.run_and_trace(floats, overrides | given)
    for name in given:
        expected.pop(name)
    comparison.add(expected, found, count)
    comparison.add_output(reference, result, count, exact=models.exact_output)
    logits = [lib.logits(result[:count]), lib.logits(np.asarray(reference)[:count])]
    if models.framework is not None and framework:
        free, values = models.framework.run_and_trace(floats, given)
        # Once more with the library's integers in place of its own, so that each layer's difference
        # is that layer's alone and does not grow with depth.
        own = {n: found[n].astype(v.dtype) for n, v in values.items() if _same(v, found, n)}
        comparison.add_model("framework", models.framework.trace(floats, own | given), own, count)
        logits[1] = np.asarray(free)[:count]
    if models.onnxruntime is not None:
        # What the library keeps in registers is fed as the reference executor has it.
        free, values = models.onnxruntime.run_and_trace(floats, expected | found | given)
        own = {n: found[n] for n in values if n in found}
        comparison.add_model("onnxruntime", values, own, count)
        logits.append(free[:count])
    return logits


def _same(value: NDArray, found: dict[str, NDArray], name: str) -> bool:
    """Whether the library stores a tensor of integers of that name and shape."""
    return name in found and value.dtype != np.float32 and value.shape == found[name].shape


def _float_input(lib: Library, x: NDArray) -> tuple[NDArray, dict[str, NDArray]]:
    """Input of the reference for `x`, and the integers that take its quantize's place, if any."""
    if str(x.dtype) == lib.input.dtype:
        return x, {}
    quantized = lib.metadata["input"]["quantized"]
    steps = x.astype(np.float32) - np.float32(quantized["zero_point"])
    return steps * np.float32(quantized["scale"]), {quantized["name"]: x}


class _Models:
    """Executors of the model that a library was compiled from, checked to be that model."""

    def __init__(
        self,
        lib: Library,
        model: str | Path | tvm.IRModule,
        options: dict[str, Any],
        onnxruntime: bool,
    ) -> None:
        from tvm_q4.reference import ReferenceExecutor
        from tvm_q4.relay_passes.integer_output import IntegerOutput
        from tvm_q4.relay_passes.pipeline import to_integer

        mod = _load(lib, model, options)
        integer = to_integer(mod)
        _check_same_model(lib, integer, model)
        if lib.metadata["output"]["integer"]:
            integer = IntegerOutput(integer)
        self.integer = ReferenceExecutor(integer)
        self.framework = None if _is_integer(mod) else ReferenceExecutor(mod)
        self.boundaries = float_boundaries(integer)
        self.exact_output = not _ends_in_float(integer)
        self.onnxruntime = onnxruntime_model(model, mod) if onnxruntime else None


def _load(lib: Library, model: str | Path | tvm.IRModule, options: dict[str, Any]) -> tvm.IRModule:
    if isinstance(model, (str, Path)):
        from tvm_q4.frontend import load_model

        batch, _, *size = lib.input.shape
        image_size = (size[0], size[1]) if len(size) == 2 else None
        return load_model(model, batch=batch, image_size=image_size, **options)
    shape = tuple(int(d) for d in model["main"].params[0].ty.shape)
    if shape != lib.input.shape:
        msg = (
            f"the module's input is {list(shape)}, the library was compiled for "
            f"{list(lib.input.shape)}; import the model for that shape"
        )
        raise InputError(msg)
    return model


def _check_same_model(lib: Library, integer: tvm.IRModule, model: object) -> None:
    from tvm_q4.model_hash import model_hash

    found, expected = model_hash(integer), lib.metadata["model"]["sha256"]
    if found != expected:
        name = f"'{model}'" if isinstance(model, (str, Path)) else "the module"
        msg = (
            f"library '{lib.path}' was compiled from {lib.metadata['model']['name']!r} (sha256 "
            f"{expected[:12]}), {name} is another model (sha256 {found[:12]}); give the former, "
            "with the seed that was used"
        )
        raise CheckFailed(msg)


def float_boundaries(mod: tvm.IRModule) -> list[str]:
    """Names of the q4.quantize tensors of an integer module that do not quantize its input."""
    from tvm_q4.ops import is_q4

    (param,) = mod["main"].params
    return [
        str(value.attrs["name"])
        for value in _values(mod)
        if is_q4(value, "quantize") and not value.args[0].same_as(param)
    ]


def _values(mod: tvm.IRModule) -> Iterator[Any]:
    for block in mod["main"].body.blocks:
        for binding in block.bindings:
            yield binding.value


def _is_integer(mod: tvm.IRModule) -> bool:
    from tvm_q4.ops import is_q4

    return any(is_q4(value) and not is_q4(value, "quantize") and not is_q4(value, "dequantize")
               for value in _values(mod))  # fmt: skip


def _ends_in_float(mod: tvm.IRModule) -> bool:
    """Whether a float operator other than q4.dequantize makes the network's result."""
    from tvm_q4.ops import is_q4
    from tvm_q4.relay_passes._rewrite import dataflow_bindings

    result = mod["main"].body.body
    if not str(result.ty.dtype).startswith("float"):
        return False
    values = {b.var: b.value for b in dataflow_bindings(mod["main"])}
    value = values.get(result)
    while value is not None and not hasattr(value, "op"):
        value = values.get(value)
    return not is_q4(value, "dequantize")
