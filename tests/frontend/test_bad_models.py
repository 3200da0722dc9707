"""Models that cannot be read or expressed: one line that says what, where and what to do."""

from __future__ import annotations

import io
import json
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.frontend.graphs import Lambda, Q, export, fake_quantized
from tvm_q4.errors import EnvironmentMismatch, InputError, Q4Error, UnsupportedError
from tvm_q4.frontend import load_model
from tvm_q4.frontend.torch_export import import_exported
from tvm_q4.meta import model_meta


def saved(tmp_path: Path, module: nn.Module | None = None, **options: object) -> Path:
    """A ``.pt2`` file of a small network."""
    path = tmp_path / "net.pt2"
    torch.export.save(export(module or nn.Conv2d(3, 4, 3), 1, 3, 8, 8), path, **options)
    return path


def rewritten(
    path: Path, change: Callable[[str, bytes], bytes | None], added: dict[str, bytes] | None = None
) -> Path:
    """A copy of the archive with `change` applied to each file, None dropping it."""
    out = path.with_name("changed.pt2")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as new:
        root = old.namelist()[0].split("/")[0]
        for name in old.namelist():
            data = change(name, old.read(name))
            if data is not None:
                new.writestr(name, data)
        for name, data in (added or {}).items():
            new.writestr(f"{root}/{name}", data)
    return out


def message(error: pytest.ExceptionInfo[Q4Error]) -> str:
    """The error's text, checked to be one line."""
    text = str(error.value)
    assert "\n" not in text and error.value.exit_code == 2
    return text


def test_unsupported_operator_names_node_operator_line_and_count() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(x)
            y = torch.erf(y)  # the line to be named
            return torch.sin(y) + torch.erf(x)

    with pytest.raises(UnsupportedError) as error:
        import_exported(export(Net(), 1, 3, 4, 4))
    text = message(error)
    assert text.startswith(
        "3 nodes of the exported graph not supported (aten.erf.default, aten.sin.default)"
    )
    line = next(
        i
        for i, t in enumerate(Path(__file__).read_text().splitlines(), 1)
        if "the line to be named" in t
    )
    assert (
        f"the first is node 'erf' (aten.erf.default) at {__file__}:{line} `y = torch.erf(y)" in text
    )


def dynamic_quantization(_: nn.Module, x: Tensor) -> Tensor:
    scale, zero = Q.choose_qparams.tensor(x, -128, 127, 1e-6, torch.int8)
    return Q.quantize_per_tensor.tensor(x, scale, zero, -128, 127, torch.int8).float()


def per_channel(scales: list[float], zeros: list[int]) -> Callable[[nn.Module, Tensor], Tensor]:
    return lambda m, x: Q.quantize_per_channel(
        x, torch.tensor(scales), torch.tensor(zeros), 1, -128, 127, torch.int8
    ).to(torch.int8)


REFUSED = {
    "fake quantizer": (
        lambda m, x: torch.fake_quantize_per_tensor_affine(x, 0.1, 0, 0, 255),
        r"fake_quantize.*convert_pt2e"),
    "dynamic quantization": (dynamic_quantization, r"choose_qparams.*static quantization"),
    "add with alpha": (lambda m, x: torch.add(x, x, alpha=2), r"node 'add' .*alpha 2"),
    "add of a number": (lambda m, x: x + 1.0, r"adding a number"),
    "broadcasting add": (lambda m, x: x + x[:, :, :1], r"shapes \[1, 3, 8, 8\] and \[1, 3, 1, 8\]"),
    "mean over channels": (lambda m, x: x.mean(1), r"mean over dimensions \[1\]"),
    "uneven adaptive pool": (
        lambda m, x: F.adaptive_avg_pool2d(x, 3), r"from \[8, 8\] to \[3, 3\].*several sizes"),
    "divisor": (lambda m, x: F.avg_pool2d(x, 2, divisor_override=3), r"divisor_override"),
    "transposed convolution": (
        lambda m, x: torch.convolution(x, m.conv.weight, None, [1], [0], [1], True, [0], 1),
        r"transposed conv"),
    "reflection": (lambda m, x: F.pad(x, (1, 1, 1, 1), mode="reflect"), r"padding mode 'reflect'"),
    "cropping": (lambda m, x: F.pad(x, (-1, 0)), r"negative padding"),
    "batch slice": (lambda m, x: torch.cat([x, x])[:1], r"joined along dimension 0"),
    "dtype change": (lambda m, x: x.to(torch.float64), r"from float32 to torch.float64"),
    "zero scale": (lambda m, x: fake_quantized(x, 0.0, 0, 15), r"scale 0.0 is not positive"),
    "infinite scale": (lambda m, x: fake_quantized(x, float("inf"), 0, 15), r"scale inf"),
    "zero point outside": (
        lambda m, x: fake_quantized(x, 0.1, 0, 15, 16), r"zero point 16 is outside 0\.\.15"),
    "negative scale of a channel": (per_channel([0.1, -0.1, 0.1], [0, 0, 0]), r"scale -0.1"),
    "scales for other channels": (
        per_channel([0.1], [0]), r"1 scales and 1 zero points for 3 channels"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_uses_that_cannot_be_expressed_are_refused(case: str) -> None:
    function, pattern = REFUSED[case]
    with pytest.raises(UnsupportedError, match=pattern) as error:
        import_exported(export(Lambda(function, conv=nn.Conv2d(3, 3, 1)), 1, 3, 8, 8))
    assert ("node '" in message(error) and __file__ in message(error)) or "graphs.py" in message(
        error
    )


@pytest.mark.parametrize(
    ("layer", "word"), [(nn.Dropout(), "dropout"), (nn.BatchNorm2d(3), "batch_norm")]
)
def test_training_mode_is_refused(layer: nn.Module, word: str) -> None:
    program = torch.export.export(layer.train(), (torch.randn(2, 3, 4, 4),))
    with pytest.raises(
        UnsupportedError, match=rf"node '{word}'.* in training mode; call model.eval\(\)"
    ) as error:
        import_exported(program)
    message(error)


def test_models_of_several_inputs_or_outputs_are_refused() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return x + y, x

    image = torch.randn(1, 3, 4, 4)
    with pytest.raises(UnsupportedError, match="takes 2 tensors"):
        import_exported(torch.export.export(Two(), (image, image)))
    with pytest.raises(UnsupportedError, match="returns 2 values"):
        import_exported(export(Lambda(lambda m, x: (F.relu(x), x + x)), 1, 3, 4, 4))
    with pytest.raises(
        UnsupportedError, match=r"float32 \[2, 5\]; expected float32 \[N, C, H, W\]"
    ):
        import_exported(export(nn.Linear(5, 3), 2, 5))


def test_image_too_small_for_the_network_names_the_node() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 5), nn.Conv2d(4, 4, 5))
    with pytest.raises(UnsupportedError, match=r"node 'conv2d_1' .*shape \[-2, -2\].*too small"):
        import_exported(export(net, 1, 3, 12, 12), image_size=(6, 6))


def test_float_model_is_refused_only_where_it_must_be_quantized(tmp_path: Path) -> None:
    path = saved(
        tmp_path,
        extra_files={"tvm_q4.json": json.dumps({"name": "n", "classes": ["a"], "transform": "t"})},
    )
    facts = model_meta(load_model(path))
    assert (facts["name"], facts["classes"], facts["transform"]) == ("n", ["a"], "t")
    assert len(facts["sha256"]) == 64 and facts["source_tool"] == f"torch {torch.__version__}"
    with pytest.raises(
        InputError, match=r"has no quantize nodes.*tvm_q4.quantize.quantize_ptq"
    ) as error:
        load_model(path, require_quantized=True)
    assert str(path) in message(error)


def test_files_that_are_no_programs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    good = saved(tmp_path).read_bytes()
    torch.save({"weight": torch.zeros(3)}, tmp_path / "state.pt2")
    with zipfile.ZipFile(tmp_path / "zip.pt2", "w") as archive:
        archive.writestr("hello.txt", "hello")
    for name, data in {
        "text.pt2": b"hello",
        "empty.pt2": b"",
        "half.pt2": good[: len(good) // 2],
    }.items():
        (tmp_path / name).write_bytes(data)
    expected = {
        "text.pt2": "is not a .pt2 file",
        "empty.pt2": "is not a .pt2 file",
        "half.pt2": "is truncated or damaged",
        "state.pt2": "not a torch.export program",
        "zip.pt2": "not a torch.export program",
        "none.pt2": "does not exist",
    }
    capfd.readouterr()
    for name, words in expected.items():
        with pytest.raises(InputError, match=words) as error:
            load_model(tmp_path / name)
        assert name in message(error)
    assert capfd.readouterr().err == "", "nothing may stand beside the one line of the error"


@pytest.mark.parametrize("part", ["models/model.json", "weights_config.json", "weight_0"])
def test_program_with_a_missing_part_is_refused(tmp_path: Path, part: str) -> None:
    path = rewritten(saved(tmp_path), lambda name, data: None if name.endswith(part) else data)
    with pytest.raises(InputError, match=r"changed\.pt2") as error:
        load_model(path)
    message(error)


class Trap:
    """Unpickles into a call that leaves a trace."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def test_pickles_and_code_in_a_model_are_not_run(tmp_path: Path) -> None:
    path, trace = saved(tmp_path), tmp_path / "trace"
    buffer = io.BytesIO()
    torch.save(Trap(trace), buffer)
    trap = buffer.getvalue()

    def use_pickle(name: str, data: bytes) -> bytes:
        if name.endswith("weights_config.json"):
            return data.replace(b'"use_pickle": false', b'"use_pickle": true').replace(
                b'"use_pickle":false', b'"use_pickle":true'
            )
        return trap if name.endswith(("weight_0", "weight_1")) else data

    def evaluate(name: str, data: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return data
        program = json.loads(data)
        program["range_constraints"] = {}
        program["evil"] = {"expr_str": f"open({str(trace)!r}, 'w')"}
        return json.dumps(program).encode()

    changed = {
        "pickled weights": (use_pickle, {}),
        "sample inputs": (lambda n, d: trap if "sample_inputs" in n else d, {}),
        "legacy weights": (lambda n, d: d, {"data/weights/model.pt": trap}),
        "compiled code": (lambda n, d: d, {"data/aotinductor/model/a.so": b"\x7fELF"}),
        "symbolic size": (evaluate, {}),
    }
    for case, (change, added) in changed.items():
        with pytest.raises(InputError, match="for safety") as error:
            load_model(rewritten(path, change, added))
        message(error)
        assert not trace.exists(), case
    with pytest.raises(FileNotFoundError):
        trace.stat()
    pickle.loads(pickle.dumps(Trap(trace))).close()
    assert trace.exists(), "the trap itself must work"


def test_other_sources(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no graph\.json"):
        load_model(tmp_path)
    for sizes in ({"batch": 0}, {"image_size": (0, 5)}):
        with pytest.raises(InputError, match="must be"):
            load_model(saved(tmp_path), **sizes)


@pytest.mark.parametrize("spec", ["net.pt2", "zoo:resnet18"])
def test_without_torch_the_error_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str
) -> None:
    path = saved(tmp_path)
    for name in [n for n in sys.modules if n.startswith("tvm_q4.frontend.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(EnvironmentMismatch, match=r'pip install "tvm-q4\[torch\]"') as error:
        load_model(path if spec.endswith("pt2") else spec)
    message(error)
