"""Configs in which every boundary is seen, both ways and alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tvm_q4.latencies.alternation import (
    Boundary,
    alternating,
    boundaries,
    directions,
    shows,
)


def all_shown(configs: list[list[int]], found: list[Boundary]) -> bool:
    return all(
        any(shows(bits, b, pair) for bits in configs) for b in found for pair in directions(b)
    )


def test_a_chain_takes_two_mixed_configs() -> None:
    groups = [[name] for name in "abcd"]
    found = boundaries(groups, {"a": (1,), "b": (2,), "c": (3,), "d": ()}, set())
    assert [(b.producer, b.readers) for b in found] == [("a", 1), ("b", 2), ("c", 3)]
    assert alternating(4, found)[2:] == [[8, 4, 8, 4], [4, 8, 4, 8]]


def test_fixed_layers_change_on_one_side_only_and_need_no_mixed_config() -> None:
    groups, after = [["stem"], ["a", "b"], ["head"]], {"stem": (1,), "a": (2,), "b": (), "head": ()}
    found = boundaries(groups, after, {"stem", "head"})
    assert found == [Boundary("stem", -1, 1, ())] and directions(found[0]) == [(8, 4)]
    assert alternating(3, found) == [[8, 8, 8], [4, 4, 4]]


def test_an_odd_cycle_takes_more_configs() -> None:
    groups = [["a", "x"], ["b"], ["c"]]
    found = boundaries(groups, {"a": (1,), "x": (2,), "b": (2,), "c": ()}, set())
    configs = alternating(3, found)
    assert len(configs) == 6 and all_shown(configs, found)


def test_several_groups_of_readers_are_seen_one_at_a_time() -> None:
    found = boundaries([["a"], ["b"], ["c"]], {"a": (1, 2), "b": (), "c": ()}, set())
    assert [b.others for b in found] == [(2,), (1,)]
    assert alternating(3, found)[2:] == [[8, 4, 8], [4, 8, 4], [8, 8, 4], [4, 4, 8]]
    assert not shows([8, 4, 4], found[0], (8, 4))


@st.composite
def graphs(draw: st.DrawFn) -> tuple[int, list[Boundary]]:
    count = draw(st.integers(1, 9))
    groups = [[f"l{i}.{j}" for j in range(draw(st.integers(1, 2)))] for i in range(count)]
    after = {
        name: tuple(sorted(draw(st.sets(st.integers(i, count - 1), max_size=3))))
        for i, group in enumerate(groups)
        for name in group
    }
    fixed = draw(st.sets(st.sampled_from([name for group in groups for name in group])))
    return count, boundaries(groups, after, fixed)


@given(graphs())
def test_every_boundary_is_seen_in_any_network(graph: tuple[int, list[Boundary]]) -> None:
    count, found = graph
    configs = alternating(count, found)
    assert all_shown(configs, found)
    assert len(configs) <= 2 + 2 * len(found) and all(len(bits) == count for bits in configs)
