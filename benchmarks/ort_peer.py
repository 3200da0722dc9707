"""ONNX Runtime as the peer: float and int8 QDQ models of a ResNet, and their sessions."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from torch import nn
from torch_to_onnx import torch_to_onnx

from tvm_q4.frontend.zoo import build_network

CALIBRATION_IMAGES = 4
IMAGE_SIZE = 224
FLOAT_COMPUTE = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "Add", "Relu", "MaxPool")
"""Operators that do arithmetic; in an int8 graph they may not work on float32."""


class RandomImages(CalibrationDataReader):
    """Standard normal images, as the zoo's own calibration uses."""

    def __init__(self, shape: tuple[int, int, int, int], count: int, seed: int) -> None:
        generator = np.random.default_rng(seed)
        images = generator.standard_normal((count, *shape)).astype(np.float32)
        self._feeds = iter([{"input": image} for image in images])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Next feed, None at the end."""
        return next(self._feeds, None)


@torch.no_grad()
def float_network(name: str, seed: int = 0, image_size: int = IMAGE_SIZE) -> nn.Module:
    """Network of the zoo with random weights and batch norm statistics that keep variances at one.

    Parameters
    ----------
    name : str
        Such as ``resnet18``.
    seed : int
        Seed of weights and statistics.
    image_size : int
        Height and width of the images that the statistics come from.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_network(name)
        norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 1.0
        network.train()(torch.randn(2, 3, image_size, image_size))
    return network.eval()


def write_models(
    network: nn.Module, batch: int, folder: Path, image_size: int = IMAGE_SIZE
) -> tuple[Path, Path]:
    """Write ``fp32.onnx`` and ``int8.onnx`` (QDQ) of the network.

    The int8 model has per-channel int8 weights and uint8 activations, batch norms folded before
    quantization: on a CPU with VNNI that is ONNX Runtime's fast path.

    Returns
    -------
    (Path, Path)
        The float and the int8 file.
    """
    shape = (batch, 3, image_size, image_size)
    float_path, int8_path = folder / "fp32.onnx", folder / "int8.onnx"
    onnx.save(torch_to_onnx(network, shape), float_path)
    logging.getLogger().addFilter(_no_preprocessing_remark)
    quantize_static(
        float_path,
        int8_path,
        RandomImages(shape, max(1, CALIBRATION_IMAGES // batch), seed=1),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return float_path, int8_path


def _no_preprocessing_remark(record: logging.LogRecord) -> bool:
    """Drop quantize_static's advice to pre-process: folding is done and shapes are static."""
    return "pre-processing" not in record.getMessage()


def open_session(model: Path, threads: int, optimized: Path | None = None) -> ort.InferenceSession:
    """CPU session with all graph optimisations and `threads` threads.

    Parameters
    ----------
    model : Path
        ONNX file.
    threads : int
        Threads of one operator; operators run one after another.
    optimized : Path, optional
        File that gets the graph as ONNX Runtime executes it.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def executed_operators(optimized: Path) -> Counter[str]:
    """Operator types of an optimized graph, with their counts."""
    return Counter(node.op_type for node in onnx.load(optimized).graph.node)


def check_integer_kernels(operators: Counter[str], layers: int) -> None:
    """Make sure that the peer computes in integers, or the comparison would flatter us.

    Parameters
    ----------
    operators : Counter of str
        From `executed_operators`.
    layers : int
        Number of convolutions and linear layers of the network.

    Raises
    ------
    RuntimeError
        If a convolution or linear layer runs in float32.
    """
    integer = sum(operators[op] for op in ("QLinearConv", "QGemm", "QLinearMatMul"))
    floating = {op: operators[op] for op in FLOAT_COMPUTE if operators[op] and op != "MaxPool"}
    if integer != layers or floating:
        raise RuntimeError(
            f"ONNX Runtime runs {integer} of {layers} layers in integers, in float {floating}; "
            f"operators: {dict(operators)}"
        )


def bound_call(session: ort.InferenceSession, x: np.ndarray) -> Callable[[], np.ndarray]:
    """Function of no arguments that runs the session from `x` to a preallocated array.

    Parameters
    ----------
    session : onnxruntime.InferenceSession
        From `open_session`.
    x : ndarray
        Float32 NCHW images of the session's static shape; read in place, so keep it unchanged.

    Returns
    -------
    callable
        Returns the float32 logits, the same array at every call.
    """
    logits = np.zeros(session.get_outputs()[0].shape, np.float32)
    images = ort.OrtValue.ortvalue_from_numpy(x)
    binding = session.io_binding()
    binding.bind_ortvalue_input("input", images)
    binding.bind_output("logits", "cpu", 0, np.float32, list(logits.shape), logits.ctypes.data)

    def call() -> np.ndarray:
        # The binding holds addresses, this closure the arrays behind them.
        session.run_with_iobinding(binding)
        return logits

    return call
