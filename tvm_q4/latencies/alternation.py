"""Bits of layers that alternate, so that every boundary between two precisions is seen.

A boundary lies between a layer and a group of layers that read its result. Two configs, one the
complement of the other, show all of them where the graph of groups has two colours, as a ResNet's
has; where it has not (Inception), or where a layer has several groups of readers, each of which has
to be seen alone, further pairs of configs show what the first left out.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

Bits = dict[str, int]
"""4 or 8 by name of a layer."""

_FIXED = -1
"""Stands for all layers that stay at 8 bits."""


@dataclass(frozen=True)
class Boundary:
    """Between a layer and one group of its readers.

    Attributes
    ----------
    producer : str
    group : int
        Of `producer`; -1 where it stays at 8 bits.
    readers : int
        Group of the readers.
    others : tuple of int
        Further groups that read the producer's result.
    """

    producer: str
    group: int
    readers: int
    others: tuple[int, ...]


def boundaries(
    groups: Sequence[Sequence[str]],
    after: dict[str, tuple[int, ...]],
    fixed: Collection[str],
) -> list[Boundary]:
    """Every boundary at which bits can differ, in network order.

    Parameters
    ----------
    groups, after
        As `tvm_q4.latencies.network.Readers`.
    fixed : collection of str
        Layers that stay at 8 bits. A group that holds one stays too.
    """
    free = [not set(group) & set(fixed) for group in groups]
    of = {name: i if free[i] else _FIXED for i, group in enumerate(groups) for name in group}
    found = []
    for producer, read_by in after.items():
        open_groups = [i for i in read_by if free[i]]
        for i in open_groups:
            if i != of[producer]:
                others = tuple(j for j in open_groups if j not in (i, of[producer]))
                found.append(Boundary(producer, of[producer], i, others))
    return found


def directions(boundary: Boundary) -> list[tuple[int, int]]:
    """The pairs of bits, of the producer and of its readers, that can differ."""
    return [(8, 4)] if boundary.group == _FIXED else [(8, 4), (4, 8)]


def shows(bits: Sequence[int], boundary: Boundary, pair: tuple[int, int]) -> bool:
    """Whether groups of such bits show a boundary, and no other one of its producer."""
    own, other = pair
    return (
        _bits_of(bits, boundary.group) == own
        and bits[boundary.readers] == other
        and all(bits[i] == own for i in boundary.others)
    )


def _bits_of(bits: Sequence[int], group: int) -> int:
    return 8 if group == _FIXED else bits[group]


def alternating(count: int, found: Sequence[Boundary]) -> list[list[int]]:
    """Bits of `count` groups, as many times as it takes to show every boundary both ways.

    The first two are all 8 and all 4, which show what fixed layers do.
    """
    configs = [[8] * count, [4] * count]
    while True:
        missing = [
            b
            for b in found
            if not all(any(shows(c, b, pair) for c in configs) for pair in directions(b))
        ]
        if not missing:
            return configs
        colours = _colours(count, missing)
        configs += [colours, [12 - bits for bits in colours]]


def _colours(count: int, missing: Sequence[Boundary]) -> list[int]:
    """Bits that show the first of `missing` one way, and as many of the others as go with it."""
    links: dict[int, list[tuple[int, bool]]] = {i: [] for i in range(_FIXED, count)}
    for boundary in missing:
        wanted = [(boundary.group, boundary.readers, True)]
        wanted += [(boundary.group, i, False) for i in boundary.others]
        for a, b, differ in wanted:
            links[a].append((b, differ))
            links[b].append((a, differ))
        if _coloured(links) is None:
            for a, b, _ in wanted:
                links[a].pop()
                links[b].pop()
    coloured = _coloured(links)
    assert coloured is not None, "links that cannot hold together were taken back"
    return [coloured[i] for i in range(count)]


def _coloured(links: dict[int, list[tuple[int, bool]]]) -> dict[int, int] | None:
    """Bits of each group that keep all links, or None where there are none; fixed is at 8."""
    bits: dict[int, int] = {}
    for start in links:
        if start in bits:
            continue
        bits[start] = 8
        stack = [start]
        while stack:
            a = stack.pop()
            for b, differ in links[a]:
                want = 12 - bits[a] if differ else bits[a]
                if b not in bits:
                    bits[b] = want
                    stack.append(b)
                elif bits[b] != want:
                    return None
    return bits
