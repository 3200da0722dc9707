"""``zoo:`` models: networks by name, with random weights, for latency work as benchmarks do it.

``zoo:NAME`` is float, ``zoo:NAME@CONFIG`` quantized, CONFIG a preset or a bit config's file. The
networks are torchvision's own definitions and our CIFAR ResNet-20. Weights come from the seed as
the network's constructor draws them; batch normalisation takes the statistics of one random batch,
so that activations have unit variance and no channel is dead; post-training quantization calibrates
on another. All of that happens at the network's usual image size with one thread, so a seed gives
the same integers on one machine whatever the batch, the image size and the number of cores.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import tvm
from torch import nn
from torch.export import ExportedProgram

from tvm_q4.errors import InputError
from tvm_q4.frontend.torch_export import import_exported
from tvm_q4.quantize.config import BitConfig, load_bit_config
from tvm_q4.quiet import quiet_torch

_BATCH = 2


@dataclass(frozen=True)
class ZooEntry:
    """One network: its usual image size and input transform, and how torchvision names it."""

    size: int
    transform: str
    torchvision: str | None


ZOO = {
    "resnet18": ZooEntry(224, "imagenet", "resnet18"),
    "resnet34": ZooEntry(224, "imagenet", "resnet34"),
    "resnet50": ZooEntry(224, "imagenet", "resnet50"),
    "resnext50_32x4d": ZooEntry(224, "imagenet", "resnext50_32x4d"),
    "inception_v3": ZooEntry(299, "imagenet", "inception_v3"),
    "resnet20-cifar": ZooEntry(32, "cifar10", None),
}


def parse_spec(spec: str) -> tuple[str, str | None]:
    """Split ``zoo:NAME[@CONFIG]`` into name and config.

    Raises
    ------
    InputError
        If there is no such network.
    """
    name, _, config = spec.removeprefix("zoo:").partition("@")
    if name not in ZOO:
        raise InputError(f"zoo model '{name}' does not exist; there are {', '.join(ZOO)}")
    if "@" in spec and not config:
        raise InputError(
            f"'{spec}' names no bit config after @; use uniform8, uniform4, w4a8 or a file"
        )
    return name, config or None


def load_zoo(
    spec: str,
    *,
    batch: int | None = None,
    image_size: tuple[int, int] | None = None,
    seed: int = 0,
    require_quantized: bool = False,
) -> tvm.IRModule:
    """Build a zoo model as a module of stage "qdq"; the parameters of `tvm_q4.frontend.load_model`.

    Raises
    ------
    InputError
        If the network or the bit config does not exist, or the model is float where it must not be.
    """
    name, config = parse_spec(spec)
    if require_quantized and config is None:
        raise InputError(
            f"'{spec}' is a float model; name a bit config, for example {spec}@uniform8"
        )
    program = build_program(name, None if config is None else load_bit_config(config), seed)
    facts = {"source_format": "zoo", "transform": ZOO[name].transform, "spec": spec, "seed": seed}
    full_name = name if config is None else f"{name}@{config}"
    return import_exported(program, batch=batch, image_size=image_size, name=full_name, facts=facts)


def build_program(name: str, config: BitConfig | None, seed: int = 0) -> ExportedProgram:
    """Exported program of the zoo network `name`, with a dynamic batch.

    Parameters
    ----------
    name : str
        A key of `ZOO`.
    config : BitConfig or None
        Bits of each layer; None leaves the network float.
    seed : int
        Seed of weights, statistics and calibration data.
    """
    size = ZOO[name].size
    with _one_thread(), torch.random.fork_rng(devices=[]), quiet_torch():
        torch.manual_seed(seed)
        network = build_network(name)
        _settle_statistics(network, torch.randn(_BATCH, 3, size, size))
        example = torch.randn(_BATCH, 3, size, size)
        if config is None:
            dynamic = ({0: torch.export.Dim.AUTO},)
            return torch.export.export(network.eval(), (example,), dynamic_shapes=dynamic)
        from tvm_q4.quantize.ptq import quantize_ptq

        return quantize_ptq(
            network,
            (example,),
            [example],
            config,
            weight_observer="minmax",
            activation_observer="minmax",
            bias_correction=False,
        )


def build_network(name: str) -> nn.Module:
    """Float network with weights drawn from torch's current random state."""
    entry = ZOO[name]
    if entry.torchvision is None:
        from tvm_q4.models.resnet_cifar import resnet20

        return resnet20("B")
    options = {"aux_logits": False, "init_weights": True} if name == "inception_v3" else {}
    return getattr(torchvision_models(), entry.torchvision)(weights=None, **options)


def torchvision_models() -> Any:
    """Module ``torchvision.models``, also where torchvision's C++ part does not fit the torch.

    Without that part ``import torchvision`` fails on ``torchvision::nms``; declaring the schema is
    enough for classification networks, which call no such operator.
    """
    try:
        return importlib.import_module("torchvision.models")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _KEPT.append(library)
    return importlib.import_module("torchvision.models")


_KEPT: list[Any] = []
"""Declarations live as long as their library object."""


def _settle_statistics(network: nn.Module, images: torch.Tensor) -> None:
    """Give every batch norm the statistics of `images`."""
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        network.train()(images)
    for norm in norms:
        norm.momentum = 0.1


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Sums in one order, whatever the number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
