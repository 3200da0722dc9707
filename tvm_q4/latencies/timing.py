"""How long a kernel takes: measured, else published, else predicted, and labelled so.

A measured time is the lower quartile of a record's samples, as tuning compares them: what other
processes add is not the kernel's.
"""

from __future__ import annotations

import logging
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from tvm.target import Target

from tvm_q4.latencies.logs import Sources, describe_published, describe_records
from tvm_q4.latencies.network import LAYER_KINDS, Kernels
from tvm_q4.relay_passes.lower_to_tir import LoweredCall
from tvm_q4.targets import target_arch
from tvm_q4.tuning_logs.published import Geometry, PublishedTimes
from tvm_q4.tuning_logs.records import Record

MEASURED, LIKE = "measured", "measured, like kernel"
PUBLISHED, PREDICTED, SCALED = "published", "predicted", "predicted, scaled"
_NOMINAL_MHZ = 3000.0
"""Cycles of a microsecond where no record tells how fast a CPU is."""

logger = logging.getLogger(__name__)
Timed = tuple[float, str]
"""Microseconds and where they come from."""


class Timer:
    """Times of kernels on one target, and an account of what they come from.

    Parameters
    ----------
    target : tvm.target.Target
    network : str
        Name of the network, whose own published times are preferred.
    sources : Sources
    published : sequence of PublishedTimes
    calls : iterable of LoweredCall
        Kernels of which some may be measured: they tell how long a unit of predicted cost is.
    """

    def __init__(
        self,
        target: Target,
        network: str,
        sources: Sources,
        published: Sequence[PublishedTimes],
        calls: Iterable[LoweredCall],
    ) -> None:
        self._target, self._network = target, network
        self._sources, self._published = sources, published
        self._costs: dict[str, float] = {}
        self._records: dict[str, dict[int, Record]] = {MEASURED: {}, LIKE: {}}
        self._tables: dict[str, PublishedTimes] = {}
        self._predicts = False
        self._unit_us = self._unit([c for c in calls if c.layer.kind in LAYER_KINDS])

    def time(self, call: LoweredCall) -> Timed:
        """A kernel's time."""
        return self._measure(call) or self._publish(call) or (self._predict(call), PREDICTED)

    def total(self, calls: Iterable[LoweredCall]) -> Timed:
        """Time of several kernels; where they differ, the sources are named together."""
        times = [self.time(call) for call in calls]
        return sum(us for us, _ in times), " and ".join(sorted({source for _, source in times}))

    def change(self, new: Kernels, old: Kernels) -> Timed:
        """What `new` takes longer than `old`, both measured or both predicted.

        Where not all of them are measured, the difference of predictions is scaled as the old
        kernel's measured time is to its predicted one, if it was measured.
        """
        before = Counter(call.signature for call in old.all)
        after = Counter(call.signature for call in new.all)
        added = _instances(new.all, after - before)
        dropped = _instances(old.all, before - after)
        if not added and not dropped:
            return 0.0, self.time(old.own)[1].replace(PUBLISHED, PREDICTED)
        times = [self._measure(call) for call in (*added, *dropped)]
        if all(times):
            known = [t for t in times if t is not None]
            us = sum(t for t, _ in known[: len(added)]) - sum(t for t, _ in known[len(added) :])
            return us, MEASURED if {source for _, source in known} == {MEASURED} else LIKE
        us = sum(map(self._predict, added)) - sum(map(self._predict, dropped))
        measured = self._measure(old.own)
        if measured is None:
            return us, PREDICTED
        return us * measured[0] / self._predict(old.own), SCALED

    def obtained(self) -> list[dict[str, Any]]:
        """Where the times that were asked for come from: an entry a source, device and log."""
        out = []
        for source, records in self._records.items():
            out += describe_records(source, records.values(), self._sources)
        out += [describe_published(source, table) for source, table in self._tables.items()]
        if self._predicts:
            out.append({"source": PREDICTED, "device": target_arch(self._target)})
        return out

    def _measure(self, call: LoweredCall) -> Timed | None:
        record = self._sources.find(call.signature)
        if record is None:
            return None
        source = MEASURED if record.signature == call.signature else LIKE
        self._records[source][id(record)] = record
        return record.low_us, source

    def _publish(self, call: LoweredCall) -> Timed | None:
        if call.layer.kind not in LAYER_KINDS:
            return None
        bits, geometry = _bits(call), _geometry(call)
        for table in self._published:
            found = geometry and table.microseconds(self._network, geometry, bits)
            if found:
                us, kind = found
                source = PUBLISHED if kind == "layer" else f"{PUBLISHED}, {kind} alone"
                self._tables[source] = table
                return us, source
        return None

    def _predict(self, call: LoweredCall) -> float:
        self._predicts = True
        return self._cost(call) * self._unit_us

    def _cost(self, call: LoweredCall) -> float:
        """Predicted cost of the parameters that would be chosen without a log."""
        if call.signature not in self._costs:
            rule, layer = call.choice.rule, call.layer
            if call.choice.source == "measured":
                cost = min(rule.costs(layer, self._target, rule.space(layer, self._target)))
            else:
                cost = rule.predict(layer, self._target, call.choice.params)
            self._costs[call.signature] = cost
        return self._costs[call.signature]

    def _unit(self, calls: Sequence[LoweredCall]) -> float:
        """Microseconds of a unit of predicted cost: on CPUs those are cycles of unknown length."""
        if self._target.kind.name == "cuda":
            return 1.0
        exact = self._sources.exact
        known = (c for c in calls if c.signature in exact)
        ratios = [exact[c.signature].low_us / self._cost(c) for c in known]
        if ratios:
            return statistics.median(ratios)
        logger.warning(
            "no layer is in the log; predicted times assume one core at %.0f MHz", _NOMINAL_MHZ
        )
        return 1 / _NOMINAL_MHZ


def _instances(calls: Sequence[LoweredCall], counts: Counter[str]) -> list[LoweredCall]:
    """`counts` of the calls, by signature."""
    left = counts.copy()
    out = []
    for call in calls:
        if left[call.signature] > 0:
            left[call.signature] -= 1
            out.append(call)
    return out


def _bits(call: LoweredCall) -> str:
    """Bits of weights and activations, as text, where both have as many, else nothing."""
    data = call.layer.data.range
    if data is None:
        return ""
    activation = 4 if data.bits <= 4 else 8
    return str(activation) if call.layer.ops[0].attrs["weight_bits"] == activation else ""


def _geometry(call: LoweredCall) -> Geometry | None:
    """What published times go by; None for what no table states: groups, dilation, rectangles."""
    _, ci, height, width = call.layer.data.shape
    attrs, weight = call.layer.ops[0].attrs, call.layer.ops[0].params["weight"]
    if call.layer.kind == "dense":
        return "dense", (1, 1), 1, ci, weight.shape[0], 1
    (sh, sw), (kh, kw) = attrs["strides"], weight.shape[2:]
    same = list(attrs["padding"]) == [kh // 2, kw // 2] * 2
    plain = attrs["groups"] == 1 and list(attrs["dilation"]) == [1, 1] and same
    if not plain or sh != sw or height != width:
        return None
    return "conv2d", (kh, kw), sh, ci, weight.shape[0], height
