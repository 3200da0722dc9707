"""What is packaged: every folder, every data file, the pins; and that wheels work by themselves."""

from __future__ import annotations

import configparser
import importlib
import json
import os
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tvm_q4
from tvm_q4 import _compat

ROOT = Path(__file__).resolve().parents[1]
SKIP_WITHOUT_SOURCE = pytest.mark.skipif(
    not (ROOT / "setup.cfg").is_file(), reason="runs outside the source tree"
)
CIFAR = "zoo:resnet20-cifar@uniform8"
pytestmark = SKIP_WITHOUT_SOURCE


@pytest.fixture(scope="module")
def config() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]


def package_dirs(config: configparser.ConfigParser) -> dict[str, Path]:
    """Folder of each top-level entry of ``package_dir``."""
    pairs = (line.split("=") for line in lines(config["options"]["package_dir"]))
    return {name.strip(): ROOT / folder.strip() for name, folder in pairs}


def test_every_folder_of_code_is_listed(config: configparser.ConfigParser) -> None:
    found = {
        ".".join([name, *init.parent.relative_to(folder).parts])
        for name, folder in package_dirs(config).items()
        for init in folder.rglob("__init__.py")
    }
    assert sorted(found) == sorted(lines(config["options"]["packages"]))


def test_every_folder_with_modules_is_a_package(config: configparser.ConfigParser) -> None:
    folders = {p.parent for d in package_dirs(config).values() for p in d.rglob("*.py")}
    assert [str(f) for f in folders if not (f / "__init__.py").is_file()] == []


def test_every_data_file_has_a_packaged_suffix(config: configparser.ConfigParser) -> None:
    patterns = {p.strip() for p in config["options.package_data"]["*"].split(",")}
    files = [p for d in package_dirs(config).values() for p in d.rglob("*") if p.is_file()]
    data = {f"*{p.suffix}" for p in files if p.suffix not in (".py", ".pyc", ".so")}
    assert data <= patterns


def test_pins_are_the_pair_that_the_import_check_accepts(config: configparser.ConfigParser) -> None:
    pins = dict(p.split("==") for p in lines(config["options"]["install_requires"]) if "==" in p)
    assert _compat.pair_problem(pins[_compat.TVM_PACKAGE], pins[_compat.FFI_PACKAGE]) is None


def test_all_is_every_extra_but_bench_and_dev(config: configparser.ConfigParser) -> None:
    extras = dict(config["options.extras_require"])
    names = re.fullmatch(r"tvm-q4\[(.*)\]", extras.pop("all").strip())
    assert names is not None
    assert set(names[1].split(",")) == set(extras) - {"bench", "dev"}


def test_the_readme_has_the_install_line_that_ci_runs(config: configparser.ConfigParser) -> None:
    found = re.findall(r'^    pip install -e "\.\[(.*)\]"$', (ROOT / "README.md").read_text(), re.M)
    assert len(found) == 1
    assert set(found[0].split(",")) <= set(config["options.extras_require"])


def test_no_module_has_the_name_of_a_public_function() -> None:
    modules = {m.name for m in pkgutil.iter_modules(tvm_q4.__path__)}
    assert modules & set(tvm_q4.__all__) == set()


@pytest.mark.parametrize("name", sorted(set(tvm_q4.__all__) - {"compile"}))
def test_public_names_resolve_to_things_that_can_be_called(name: str) -> None:
    assert callable(getattr(tvm_q4, name))


def test_public_names_stay_functions_when_their_modules_are_imported() -> None:
    for module, _ in tvm_q4._LAZY.values():
        importlib.import_module(module)
    assert tvm_q4.compile.__module__ == "tvm_q4.compiler"
    assert callable(tvm_q4.verify)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = tvm_q4.nonsense


def run(*command: str | Path, cwd: Path) -> str:
    """Output of a command that must succeed, away from this checkout's environment."""
    hidden = ("PYTHONPATH", "VIRTUAL_ENV", "PYTEST_ADDOPTS")
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    done = subprocess.run(
        [str(c) for c in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the tree, so that nothing is left behind in it."""
    folder = tmp_path_factory.mktemp("wheel")
    names = (*(d.name for d in ROOT.iterdir() if (d / "__init__.py").is_file()), "setup.cfg")
    for name in (*names, "pyproject.toml", "README.md", "LICENSE"):
        source, copy = ROOT / name, folder / "source" / name
        copy.parent.mkdir(exist_ok=True)
        shutil.copytree(source, copy) if source.is_dir() else shutil.copy(source, copy)
    build = ("-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, folder / "source")
    run(sys.executable, *build, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def bare_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of a new environment with the wheel and what it requires, without extras."""
    folder = tmp_path_factory.mktemp("bare")
    run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", wheel, cwd=folder)
    return python


@pytest.fixture(scope="module")
def cifar_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library compiled here, where torch is installed."""
    pytest.importorskip("torch")
    output = tmp_path_factory.mktemp("library") / "resnet20.so"
    return tvm_q4.compile(CIFAR, output=output).path


@pytest.mark.slow
def test_the_base_install_runs_benches_and_verifies_a_library(
    bare_python: Path, cifar_library: Path, tmp_path: Path
) -> None:
    missing = "import importlib.util as u; print([u.find_spec(n) for n in ('torch', 'xgboost')])"
    assert run(bare_python, "-c", missing, cwd=tmp_path) == "[None, None]\n"
    tool = bare_python.with_name("tvm-q4")
    image = ROOT / "examples" / "data" / "images" / "test_00000.png"
    top = run(tool, "run", cifar_library, "--image", image, "--json", cwd=tmp_path)
    assert '"top"' in top
    assert '"median_ms"' in run(tool, "bench", cifar_library, "--json", cwd=tmp_path)
    assert '"metadata"' in run(tool, "inspect", cifar_library, "--json", cwd=tmp_path)
    tvm_q4.inspect(CIFAR, recipe=tmp_path / "recipe")
    verified = run(tool, "verify", cifar_library, tmp_path / "recipe", "--json", cwd=tmp_path)
    assert json.loads(verified)["bit_exact"] is True


@pytest.mark.slow
def test_the_wheel_passes_the_tests_from_outside_the_checkout(
    bare_python: Path, wheel: Path, tmp_path: Path
) -> None:
    run(bare_python, "-m", "pip", "install", f"{wheel}[torch,onnx,bench,dev]", cwd=tmp_path)
    for name in ("tests", "examples", "benchmarks"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    where = run(bare_python, "-c", "import tvm_q4; print(tvm_q4.__file__)", cwd=tmp_path)
    assert str(ROOT) not in where
    print(run(bare_python, "-m", "pytest", "-q", cwd=tmp_path)[-2000:])
