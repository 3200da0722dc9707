"""A ``.onnx`` model in onnxruntime with its quantized tensors in view: ``verify --onnxruntime``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tvm_q4.errors import EnvironmentMismatch, InputError
from tvm_q4.library.inputs import batches

if TYPE_CHECKING:
    import tvm

_SILENT = 4


class OnnxRuntimeModel:
    """A quantized ``.onnx`` model, run by onnxruntime without any optimization of the graph.

    Parameters
    ----------
    path : Path
        The model.
    tensors : mapping of str to str
        By the name of a q4 tensor, the name of the ONNX tensor that holds its integers (the output
        of a QONNX ``Quant`` node stands for the integers inside it).
    channels_last : bool
        Whether the model takes [N, H, W, C].

    Raises
    ------
    EnvironmentMismatch
        If onnx or onnxruntime is not installed.
    InputError
        If onnxruntime cannot run the model.
    """

    def __init__(
        self, path: Path, tensors: Mapping[str, str], *, channels_last: bool = False
    ) -> None:
        onnx, self._runtime = _packages()
        from tvm_q4 import onnx_rewrite

        self.version = str(self._runtime.__version__)
        self._path, self._channels_last = path, channels_last
        self._model = onnx.load(path)
        integers = onnx_rewrite.expand_quant(self._model)
        onnx_rewrite.widen_int4(self._model)
        self._result = self._model.graph.output[0].name
        self._tensors = {name: integers.get(tensor, tensor) for name, tensor in tensors.items()}
        onnx_rewrite.expose(self._model, self._tensors.values())
        self._free = _session(self._runtime, self._model, path)
        self._dtypes = {o.name: _dtype(o.type) for o in self._free.get_outputs()}
        self._fed: tuple[Any, dict[str, str]] | None = None
        entry = self._free.get_inputs()[0]
        self._input = entry.name
        self._batch = entry.shape[0] if isinstance(entry.shape[0], int) else None

    def run_and_trace(
        self, x: NDArray[np.float32], given: Mapping[str, NDArray]
    ) -> tuple[NDArray, dict[str, NDArray]]:
        """Result of the model left to itself, and each tensor where layers read `given` integers.

        Parameters
        ----------
        x : ndarray [N, C, H, W]
            Images.
        given : mapping of str to ndarray
            Integers of q4 tensors. Those that the model has in another shape are left out.

        Returns
        -------
        logits : ndarray
        tensors : dict of str to ndarray
            By q4 tensor, integers in the dtype of what was given.
        """
        wanted = {n: t for n, t in self._tensors.items() if n in given}
        names = list(dict.fromkeys(wanted.values()))
        free = self._run(self._free, [self._result, *names], x, {})
        same = {n: t for n, t in wanted.items() if free[t].shape == given[n].shape}
        if not same:
            return free[self._result], {}
        feeds = {t: given[n].astype(self._dtypes[t]) for n, t in same.items()}
        session, inputs = self._fed_session(list(feeds))
        fed = self._run(session, list(feeds), x, {inputs[t]: v for t, v in feeds.items()})
        return free[self._result], {n: fed[t].astype(given[n].dtype) for n, t in same.items()}

    def _fed_session(self, tensors: list[str]) -> tuple[Any, dict[str, str]]:
        """Session in which `tensors` are inputs to their readers, and the names of these inputs."""
        if self._fed is None or set(self._fed[1]) != set(tensors):
            from tvm_q4 import onnx_rewrite

            model, inputs = onnx_rewrite.feed(self._model, {t: self._dtypes[t] for t in tensors})
            self._fed = _session(self._runtime, model, self._path), inputs
        return self._fed

    def _run(
        self, session: Any, names: list[str], x: NDArray, feeds: Mapping[str, NDArray]
    ) -> dict[str, NDArray]:
        """Outputs by name, in pieces of the model's own batch where that is fixed."""
        image = x.transpose(0, 2, 3, 1) if self._channels_last else x
        arrays = {self._input: image, **feeds}
        step = self._batch or len(x)
        parts = []
        for start in range(0, len(x), step):
            pieces = {k: next(batches(v[start : start + step], step)) for k, v in arrays.items()}
            count = pieces[self._input][1]
            inputs = {k: np.ascontiguousarray(v) for k, (v, _) in pieces.items()}
            try:
                values = session.run(names, inputs)
            except Exception as error:
                msg = f"onnxruntime cannot run '{self._path}': {_first_line(error)}"
                raise InputError(msg) from error
            parts.append([v[:count] for v in values])
        return {n: np.concatenate(p) for n, p in zip(names, zip(*parts, strict=True), strict=True)}


def onnxruntime_model(path: str | Path | tvm.IRModule, mod: tvm.IRModule) -> OnnxRuntimeModel:
    """The onnxruntime side of `mod`, the module that `tvm_q4.load_model` made of `path`.

    Raises
    ------
    InputError
        If `path` is no ``.onnx`` file, or the model has no quantized tensor.
    """
    from tvm_q4.meta import model_meta

    if not isinstance(path, (str, Path)) or Path(path).suffix != ".onnx":
        name = f"model '{path}'" if isinstance(path, (str, Path)) else "a module"
        raise InputError(f"onnxruntime runs .onnx files, {name} is none; leave out --onnxruntime")
    facts = model_meta(mod)
    tensors = facts.get("onnx_tensors")
    if not tensors:
        raise InputError(f"model '{path}' has no quantized tensors to compare with onnxruntime")
    channels_last = facts["source_details"].get("input") == "NHWC"
    return OnnxRuntimeModel(Path(path), tensors, channels_last=channels_last)


def _packages() -> tuple[Any, Any]:
    try:
        import onnx
        import onnxruntime
    except ModuleNotFoundError as error:
        msg = f'--onnxruntime needs {error.name}; install it with: pip install "tvm-q4[bench]"'
        raise EnvironmentMismatch(msg) from error
    return onnx, onnxruntime


def _session(runtime: Any, model: Any, path: Path) -> Any:
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = _SILENT
    try:
        return runtime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise InputError(f"onnxruntime cannot load '{path}': {_first_line(error)}") from error


def _dtype(kind: str) -> np.dtype:
    """NumPy dtype of onnxruntime's ``tensor(...)``."""
    name = kind.removeprefix("tensor(").removesuffix(")")
    return np.dtype({"float": "float32", "double": "float64"}.get(name, name))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
