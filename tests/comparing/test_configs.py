"""``--config`` arguments: what each is taken for, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tvm_q4.comparing.configs import parse_configs
from tvm_q4.errors import InputError
from tvm_q4.quantize.config import PRESETS


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.pt2").write_bytes(b"")
    (tmp_path / "a=b.pt2").write_bytes(b"")
    config = {"format": "tvm-q4/bit-config", "version": 1, "layers": {}}
    (tmp_path / "plan.json").write_text(json.dumps(config))
    (tmp_path / "bad.json").write_text("{}")
    return tmp_path


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("uniform8", ("uniform8", "uniform8", "preset")),
        ("base=uniform8", ("base", "uniform8", "preset")),
        ("float", ("float", "float", "float")),
        ("plan.json", ("plan", "plan.json", "bit config")),
        ("x y=plan.json", ("x y", "plan.json", "bit config")),
        ("net.pt2", ("net", "net.pt2", "model")),
        ("a=b.pt2", ("a=b", "a=b.pt2", "model")),
        ("c=a=b.pt2", ("c", "a=b.pt2", "model")),
        ("zoo:resnet18@uniform4", ("resnet18@uniform4", "zoo:resnet18@uniform4", "model")),
    ],
)
def test_what_a_config_is(text: str, expected: tuple[str, str, str]) -> None:
    (found,) = parse_configs([text])
    assert (found.name, found.spec, found.kind) == expected
    assert (found.bits is not None) == (found.kind in ("preset", "bit config"))


def test_presets_bring_their_bits() -> None:
    assert [c.bits for c in parse_configs(list(PRESETS))] == list(PRESETS.values())


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "no config"),
        (["nonsense"], "'nonsense' is neither float, a preset"),
        (["a=nonsense"], "'nonsense' is neither"),
        (["=uniform8"], "no name"),
        (["uniform8", "uniform8"], "'uniform8' is there 2 times"),
        (["uniform8", "uniform8=net.pt2"], "--config NAME=uniform8"),
        (["bad.json"], "not a bit config"),
    ],
)
def test_bad_configs(texts: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_configs(texts)
