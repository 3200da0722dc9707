"""Samples: what a pass is, when it is enough, and going on from a checkpoint, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchao")

from tvm_q4.errors import InputError  # noqa: E402
from tvm_q4.sensitivities.sampling import draw_samples  # noqa: E402

BATCHES = [(torch.full((n, 1), float(n)), torch.zeros(n, dtype=torch.int64)) for n in (3, 1, 2)]


class Fake:
    """One layer, one column; `stop` interrupts before the batch of that number."""

    def __init__(self, per_image: bool, stop: int | None = None, passes: int = 9) -> None:
        self.sums: dict[str, tuple[str, ...]] = {}
        self.per_image, self.stop, self.passes, self.measured = per_image, stop, passes, 0

    def measure(self, x, y, generator):
        if self.measured == self.stop:
            raise KeyboardInterrupt
        self.measured += 1
        noise = torch.rand(len(x) if self.per_image else 1, 1, 1, generator=generator).double()
        return x[:1, :, None].double() + noise

    def enough(self, samples) -> bool:
        return self.per_image or len(samples) >= self.passes

    def parts(self, samples) -> dict[str, Any]:
        return {}

    def details(self, samples) -> list[dict[str, Any]]:
        return []


def _draw(metric: Fake, **options: Any):
    return draw_samples(metric, BATCHES, **{"passes": 4, "seed": 5, **options})


def test_an_image_is_a_sample_or_a_pass_is() -> None:
    images = _draw(Fake(True), passes=1)
    assert images.shape == (6, 1, 1)
    assert images.floor().flatten().tolist() == [3, 3, 3, 1, 2, 2]
    passes = _draw(Fake(False))
    assert passes.shape == (4, 1, 1)
    mean = (3 * 3 + 1 * 1 + 2 * 2) / 6
    assert ((passes >= mean) & (passes < mean + 1)).all()
    assert len(passes.unique()) == 4


def test_it_stops_when_there_is_enough() -> None:
    assert len(_draw(Fake(False, passes=2))) == 2
    assert len(_draw(Fake(False, passes=9))) == 4


@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize("stop", [1, 2])
def test_an_interrupted_run_ends_where_another_does(
    tmp_path: Path, per_image: bool, stop: int
) -> None:
    path, settings = tmp_path / "c.pt", {"metric": "x", "seed": 5}
    wanted = _draw(Fake(per_image), passes=2 - per_image)
    options = {"checkpoint": path, "settings": settings, "passes": 2 - per_image}
    with pytest.raises(KeyboardInterrupt):
        _draw(Fake(per_image, stop), **options)
    rest = Fake(per_image)
    assert torch.equal(_draw(rest, **options), wanted)
    assert rest.measured == 3 * (2 - per_image) - stop
    again = Fake(per_image, stop=0)
    assert torch.equal(_draw(again, **options), wanted)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    _draw(Fake(False), checkpoint=path, settings={"images": 6})
    with pytest.raises(InputError, match="was made with images 6, this run has 7"):
        _draw(Fake(False), checkpoint=path, settings={"images": 7})


def test_seeds_differ() -> None:
    assert not torch.equal(_draw(Fake(False)), _draw(Fake(False), seed=6))
