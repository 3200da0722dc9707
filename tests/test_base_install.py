"""A base install: what a machine needs that only runs libraries, with neither torch nor xgboost.

The environment is a new venv with exactly the distributions that ``install_requires`` reaches,
linked from this one, so the test needs no package index and nothing else is imported by chance.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import re
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest

from tests import small_network
from tvm_q4.compiler import Options, compile_module
from tvm_q4.frontend.recipe import write_recipe
from tvm_q4.library import export_library
from tvm_q4.relay_passes.pipeline import to_integer
from tvm_q4.targets import parse_target

pytestmark = pytest.mark.slow

_SCRIPT = """
import importlib.util, json, sys
import numpy as np
import tvm_q4

library, recipe, data = sys.argv[1:]
for name in ("torch", "torchvision", "torchao", "xgboost", "scipy", "onnx"):
    assert importlib.util.find_spec(name) is None, name
loaded = tvm_q4.load(library)
with np.load(data) as file:
    x = file["x"]
result = {
    "run": loaded.run(x).tolist(),
    "bench": tvm_q4.bench(loaded, min_ms=10, layers=True),
    "inspect": tvm_q4.inspect(library),
    "verify": tvm_q4.verify(loaded, recipe),
    "evaluate": tvm_q4.evaluate(loaded, data),
}
print(json.dumps(result))
"""


def _closure(name: str) -> dict[str, importlib.metadata.Distribution]:
    """Distributions that `name` requires without extras, by normalised name."""
    found: dict[str, importlib.metadata.Distribution] = {}
    pending = [name]
    while pending:
        key = re.sub(r"[-_.]+", "-", pending.pop()).lower()
        if key in found:
            continue
        try:
            found[key] = importlib.metadata.distribution(key)
        except importlib.metadata.PackageNotFoundError:
            continue  # another platform's, by its environment marker
        for requirement in found[key].requires or []:
            if "extra ==" not in requirement:
                match = re.match(r"[A-Za-z0-9._-]+", requirement)
                assert match is not None
                pending.append(match[0])
    return found


def _link(distribution: importlib.metadata.Distribution, site: Path) -> None:
    """Links to everything that a distribution put into site-packages."""
    tops = {Path(str(file)).parts[0] for file in distribution.files or []}
    for top in sorted(tops - {"..", "__pycache__"}):
        source, target = Path(str(distribution.locate_file(top))), site / top
        if source.exists() and not target.exists():
            target.symlink_to(source.resolve())


def _link_ourselves(site: Path) -> None:
    """The package as an installed one looks, whether this one is a wheel or editable."""
    package = site / "tvm_q4"
    package.mkdir()
    for name in ("", "relay_passes", "schedules", "tuning_logs"):
        module = importlib.import_module(f"tvm_q4.{name}".rstrip("."))
        source = Path(module.__path__[0])
        if name:
            (package / name).symlink_to(source)
            continue
        for entry in source.iterdir():
            if entry.name not in ("relay_passes", "schedules", "tuning_logs", "__pycache__"):
                (package / entry.name).symlink_to(entry)


@pytest.fixture(scope="module")
def base_python(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = folder / "lib" / version / "site-packages"
    closure = _closure("tvm-q4")
    assert {"apache-tvm", "numpy", "click"} <= set(closure)
    for name, distribution in closure.items():
        if name != "tvm-q4":
            _link(distribution, site)
    _link_ourselves(site)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path, Path]:
    """A library, the recipe it was compiled from, labelled data."""
    folder = tmp_path_factory.mktemp("files")
    compiled = compile_module(small_network.quantized(), parse_target("llvm"), Options())
    library = export_library(compiled.executable, compiled.metadata, folder / "net.so")
    write_recipe(to_integer(small_network.quantized()), folder / "recipe")
    x = np.random.default_rng(0).normal(0, 1, (5, 3, 9, 7)).astype(np.float32)
    np.savez(folder / "data.npz", x=x, y=np.arange(5))
    return library, folder / "recipe", folder / "data.npz"


def test_run_bench_inspect_verify_evaluate(base_python, files):
    from tvm_q4.library import load

    library, _, data = files
    command = [base_python, "-c", _SCRIPT, *files]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=library.parent)
    result = json.loads(done.stdout)
    with np.load(data) as file:
        expected = load(library).run(file["x"])
    assert np.array_equal(np.array(result["run"], np.float32), expected)
    assert result["bench"]["median_ms"] > 0 and len(result["bench"]["layers"]) >= 4
    assert result["verify"]["bit_exact"] is True
    assert result["evaluate"]["n"] == 5
    assert result["inspect"]["metadata"]["format"] == "tvm-q4/library"


def test_command_line(base_python, files):
    command = [base_python, "-m", "tvm_q4", "bench", str(files[0]), "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=files[0].parent)
    assert json.loads(done.stdout)["median_ms"] > 0


def test_models_that_need_torch_say_so(base_python, files):
    code = "import tvm_q4\ntvm_q4.load_model('zoo:resnet18@uniform8')"
    done = subprocess.run(
        [base_python, "-c", code],
        check=False,
        stderr=subprocess.PIPE,
        cwd=files[0].parent,
        text=True,
    )
    assert done.returncode == 1
    assert 'pip install "tvm-q4[torch]"' in done.stderr.strip().splitlines()[-1]
