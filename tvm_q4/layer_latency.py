"""The latency half of a layer table: each layer's time by precision, and what lies between layers.

Layers do not add up in a mixed network: where a tensor is read at other bits than its producer
has, the producer's kernel requantizes once more, or writes two results. The table says what each
such boundary costs, so that a plan's latency is the sum of its layers, of the boundaries that it
has, and of the rest. That sum is exact as long as a kernel depends on its own bits and on those of
its readers only. It is not where a layer has several groups of readers that leave its bits together
(each is seen alone), nor does it hold what kernels do to each other (caches, clocks): `compare`
measures whole networks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tvm
from tvm.target import Target

from tvm_q4.cuda_target import CudaTarget
from tvm_q4.errors import TargetError
from tvm_q4.latencies import alternation
from tvm_q4.latencies.logs import Sources
from tvm_q4.latencies.models import Network, Networks, check_same_layers
from tvm_q4.latencies.network import Kernels
from tvm_q4.latencies.timing import Timer
from tvm_q4.layer_table import PRECISIONS, Boundary, LayerRow, LayerTable
from tvm_q4.planning.limits import parse_choices
from tvm_q4.progress import ProgressBar
from tvm_q4.targets import as_target, target_arch
from tvm_q4.variants import variants


def latency(
    model: str | Path,
    *,
    target: str | Target | CudaTarget = "llvm",
    log: Sequence[str | Path] = (),
    batch: int | None = None,
    image_size: tuple[int, int] | None = None,
    quantized: Mapping[int, str | Path | tvm.IRModule] | None = None,
    seed: int = 0,
    output: str | Path | None = None,
    choices: str | Sequence[str] = ("4", "8"),
    arch: str | None = None,
) -> dict[str, Any]:
    """Times of a network's layers at each precision, as a layer table.

    Parameters
    ----------
    model : str or Path
        A float model: ``zoo:NAME``, or a ``.pt2`` file, which is quantized with random images
        (times depend on shapes and bits, not on scales).
    target : str, tvm.target.Target or CudaTarget
        As for `tvm_q4.compile`; one arch.
    log : sequence of paths
        Tuning logs, and tables of published times (`tvm_q4.tuning_logs.published`); names of those
        that come with the package will do.
    batch, image_size
        As for `tvm_q4.load_model`.
    quantized : mapping of int to path or module, optional
        The model at 8 or at 4 bits as it is deployed, to take in place of one made here. Boundaries
        are not known then, since they take models of mixed bits.
    seed : int
    output : path, optional
        File for the table.
    choices : str or sequence of str
        Precisions: "4" and "8", which are always there, and "w4a8" (weights of 4 bits, activations
        of 8) where wanted.
    arch : str, optional
        Architecture of HAWQ checkpoints among `quantized`.

    Returns
    -------
    dict
        A layer table: ``format``, ``version``, ``network``, ``batch``, ``target``;

        * ``layers`` with ``name``, ``params``, ``macs`` (of one image), ``latency_ms`` and
          ``source`` by precision. Layers that the model of 4 bits keeps at 8 (the first convolution
          and the last linear layer) are ``fixed`` and have times at 8 only.
        * ``boundaries``: ``from`` a layer ``to`` those that read its result, ``latency_ms`` that
          its kernels take longer at ``"8-4"`` and ``"4-8"`` (its activation bits, then theirs).
          What fixed readers cost is part of the layer's own time.
        * ``rest_ms`` and ``rest_source``: kernels that are no such layer, at 8 bits.
        * ``tied``: layers that read one quantized tensor.
        * ``obtained``: what the times come from: ``source``, ``device``, ``log``, ``threads``, and
          the first and last date.

        A source is "measured"; "measured, like kernel" (a record of a kernel that differs in shift
        amounts or in the halo of the residual only); "published", or "published, kernel alone";
        "predicted"; and for boundaries "predicted, scaled": a difference of predictions, as the
        layer's measured time is to its predicted one.

    Raises
    ------
    InputError
        If the model is quantized, a choice is unknown, or the models do not have the same layers.
    TargetError
        If the target has kernels of several families.
    """
    wanted = {*parse_choices(choices), "4", "8"}
    resolved = as_target(target)
    found = variants(resolved)
    if len(found) > 1:
        msg = f"{resolved} has kernels of {len(found)} families; a layer table needs one arch"
        raise TargetError(f"{msg}, such as cuda:sm_{found[0].family}")
    (variant,) = found
    sources = Sources(log, target_arch(variant.target))
    given = dict(quantized or {})
    options: dict[str, Any] = {"batch": batch, "image_size": image_size, "seed": seed}
    networks = Networks(model, given, variant, sources.exact.get, arch=arch, **options)
    uniform = {key: networks.at(key) for key in PRECISIONS if key in wanted}
    check_same_layers(list(uniform.values()))
    eight = uniform["8"]
    calls = [call for n in uniform.values() for k in n.kernels.values() for call in k.all]
    timer = Timer(variant.target, eight.name, sources, sources.published(eight.batch), calls)
    fixed = {name for name, k in uniform["4"].kernels.items() if _weight_bits(k) == 8}
    rest, rest_source = timer.total(call for k in eight.kernels.values() for call in k.rest)
    layers = tuple(_row(name, uniform, name in fixed, timer) for name in eight.kernels)
    pairs = () if given else tuple(_boundaries(networks, uniform, fixed, timer))
    tied = tuple(group for group in eight.readers.groups if len(group) > 1)
    facts = {"rest_source": rest_source, "obtained": timer.obtained()}
    table = LayerTable(layers, tied, pairs, rest / 1e3, eight.name, eight.batch, str(target), facts)
    if output is not None:
        table.write(output)
    return table.to_dict()


def _weight_bits(kernels: Kernels) -> int:
    return int(kernels.own.layer.ops[0].attrs["weight_bits"])


def _row(name: str, uniform: Mapping[str, Network], fixed: bool, timer: Timer) -> LayerRow:
    """A layer's kernel, and what its bits change in kernels that belong to it."""
    eight = uniform["8"].kernels[name]
    layer = eight.own.layer
    size = layer.ops[0].params["weight"].size
    times, source = {}, {}
    for key, network in uniform.items():
        if fixed and key != "8":
            continue
        kernels = network.kernels[name]
        us, source[key] = timer.time(kernels.own)
        if kernels.rest and key != "8":
            us += timer.total(kernels.rest)[0] - timer.total(eight.rest)[0]
        times[key] = max(us, 0.0) / 1e3
    macs = size * layer.shape[2] * layer.shape[3]
    return LayerRow(name, size, macs, {}, times, source, 8 if fixed else None)


def _boundaries(
    networks: Networks, uniform: Mapping[str, Network], fixed: set[str], timer: Timer
) -> Iterator[Boundary]:
    """What every boundary costs, from networks whose bits alternate."""
    groups = uniform["8"].readers.groups
    places = alternation.boundaries(groups, uniform["8"].readers.after, fixed)
    configs = alternation.alternating(len(groups), places)
    made = [uniform["8"], uniform["4"]]
    with ProgressBar("mixed networks", len(configs) - 2) as progress:
        for bits in configs[2:]:
            pairs = zip(groups, bits, strict=True)
            free = {name: b for group, b in pairs if not fixed & set(group) for name in group}
            made.append(networks.mixed(free))
            progress.advance()
    for place in places:
        times, source = {}, {}
        for own, other in alternation.directions(place):
            seen = next(
                network
                for network, bits in zip(made, configs, strict=True)
                if alternation.shows(bits, place, (own, other))
            )
            old = uniform[str(own)].kernels[place.producer]
            us, why = timer.change(seen.kernels[place.producer], old)
            times[f"{own}-{other}"], source[f"{own}-{other}"] = us / 1e3, why
        yield Boundary(place.producer, groups[place.readers], times, source)
