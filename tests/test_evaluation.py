"""Accuracy of a library."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.library import tiny
from tvm_q4.errors import InputError
from tvm_q4.evaluation import evaluate, rank_of
from tvm_q4.library import Library, load


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Library:
    return load(tiny.write(tmp_path_factory.mktemp("evaluate") / "tiny.so"))


@pytest.fixture
def labelled() -> tuple[np.ndarray, np.ndarray]:
    """Inputs, and labels of rank 0, 0, 1, 5, 0, 4, 5 by the network's own logits."""
    x = np.random.default_rng(3).normal(0, 3, (7, 3, 4, 5)).astype(np.float32)
    logits = tiny.expected(tiny.quantize(x))
    order = np.argsort(-logits, axis=1, kind="stable")
    return x, order[np.arange(7), [0, 0, 1, 5, 0, 4, 5]]


def test_known_ranks(library, labelled):
    result = evaluate(library, labelled)
    assert (result["top1"], result["top5"], result["n"], result["correct"]) == (3 / 7, 5 / 7, 7, 3)
    assert result["seconds"] > 0


def test_limit(library, labelled):
    result = evaluate(library, labelled, limit=3)
    assert (result["top1"], result["top5"], result["n"]) == (2 / 3, 1.0, 3)
    assert evaluate(library, labelled, limit=100)["n"] == 7
    with pytest.raises(InputError, match="limit is 0"):
        evaluate(library, labelled, limit=0)


def test_files_and_integers(library, labelled, tmp_path):
    x, y = labelled
    np.savez(tmp_path / "a.npz", x=tiny.quantize(x), y=y)
    assert evaluate(library.path, tmp_path / "a.npz")["correct"] == 3


def test_transform_comes_from_the_metadata(tmp_path):
    entry = tiny.metadata()["input"] | {"transform": "cifar10"}
    library = load(tiny.write(tmp_path / "a.so", input=entry))
    images = np.random.default_rng(0).integers(0, 256, (4, 4, 5, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", x=images, y=np.zeros(4, int))
    assert evaluate(library, tmp_path / "a.npz")["n"] == 4
    identity = {"mean": [0, 0, 0], "std": [1 / 255] * 3}
    small = np.random.default_rng(0).integers(0, 3, (4, 4, 5, 3), dtype=np.uint8)
    pixels = (small.astype(np.float32) / np.float32(255) - 0) / np.float32(1 / 255)
    labels = tiny.expected(tiny.quantize(pixels.transpose(0, 3, 1, 2))).argmax(1)
    np.savez(tmp_path / "b.npz", x=small, y=labels)
    assert evaluate(library, tmp_path / "b.npz", transform=identity)["top1"] == 1.0


@pytest.mark.parametrize(
    ("y", "words"),
    [
        (np.array([0, 6]), "label 6 is not among the library's 6 classes"),
        (np.array([0, -1]), "label -1"),
        (np.array([0]), "one label an image"),
    ],
)
def test_bad_labels(library, y, words):
    with pytest.raises(InputError, match=words):
        evaluate(library, (np.zeros((2, 3, 4, 5), np.float32), y))


def test_missing_labels(library, tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 3, 4, 5), np.float32))
    with pytest.raises(InputError, match="no labels"):
        evaluate(library, tmp_path / "a.npz")


def test_progress_goes_to_standard_error_only(library, labelled, capsys):
    evaluate(library, labelled, progress=True)
    captured = capsys.readouterr()
    assert captured.out == "" and "7/7" in captured.err
    evaluate(library, labelled)
    assert capsys.readouterr().err == ""


def _slow_rank(logits: np.ndarray, label: int) -> int:
    better = [k for k, v in enumerate(logits) if v > logits[label]]
    ties = [k for k, v in enumerate(logits) if v == logits[label] and k < label]
    return len(better) + len(ties)


def _cases() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    for _ in range(20):
        logits = rng.integers(-3, 4, (6, 9)).astype(np.float32)
        yield logits, rng.integers(0, 9, 6)


def test_ranks_break_ties_by_index():
    for logits, labels in _cases():
        expected = [_slow_rank(row, k) for row, k in zip(logits, labels, strict=True)]
        assert rank_of(logits, labels).tolist() == expected


def test_path_types(library: Library, labelled):
    assert evaluate(str(Path(library.path)), labelled)["n"] == 7
