"""Making one config: quantize, compile, verify, evaluate, each unless the store has it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tvm_q4
from tvm_q4.comparing.configs import MODEL, Config
from tvm_q4.comparing.settings import Settings
from tvm_q4.comparing.store import Store, digest
from tvm_q4.errors import LibraryError, Q4Error
from tvm_q4.library import Library
from tvm_q4.variants import describe

logger = logging.getLogger(__name__)


@dataclass
class Built:
    """A config as a library.

    Parameters
    ----------
    config : Config
    library : Library
    bytes : int
        Size of the library's file.
    runs_here : bool
        Whether this machine has the target.
    why_not : str
        Why it does not run here.
    how : str
        Where the quantized model came from.
    verified : dict or None
        ``bit_exact``, ``n`` and ``first_mismatch`` of `tvm_q4.verify`; None where it cannot run.
    accuracy : dict or None
        ``top1``, ``top5``, ``n``, ``correct`` and ``how``.
    notes : list of str
    """

    config: Config
    library: Library
    bytes: int
    runs_here: bool
    why_not: str
    how: str
    verified: dict[str, Any] | None
    accuracy: dict[str, Any] | None
    notes: list[str]


class Builder:
    """Makes configs, and keeps what it made in a store."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings, self._store = settings, store
        self._versions = {
            name: version(name) for name in ("tvm-q4", "apache-tvm", "apache-tvm-ffi")
        }
        self._model, self._calibrate, self._data = (
            digest(x) for x in (settings.model, settings.calibrate, settings.data)
        )
        self._logs = [digest(x) for x in settings.log]

    def build(self, config: Config) -> Built:
        """Make everything of a config but its latency.

        Raises
        ------
        Q4Error
            If any step fails; the message begins with the config's name.
        """
        with _named(config):
            model, how = self._quantized(config)
            path = self._compiled(model, self._settings.target)
            library = tvm_q4.load(path, lazy=True)
            why_not = _why_not_here(library)
            built = Built(
                config, library, path.stat().st_size, not why_not, why_not, how, None, None, []
            )
            if built.runs_here:
                built.verified = self._verified(model, library)
            else:
                built.notes.append(f"not verified: {why_not}")
            if self._settings.data is not None:
                self._evaluate(model, built)
        return built

    def _quantized(self, config: Config) -> tuple[str, str]:
        """A quantized model of a config, and where it came from."""
        s = self._settings
        if config.kind == MODEL:
            return config.spec, "a quantized model that was given"
        if s.random_calibration:
            return f"{s.model}@{config.spec}", "post-training, random weights and images"
        assert s.calibrate is not None and config.bits is not None
        facts = {
            "what": "quantized", "model": self._model, "bits": config.bits.to_dict(),
            "calibrate": self._calibrate, "samples": s.samples, "transform": _plain(s.transform),
            "classes": digest(s.classes), "seed": s.seed, "versions": self._versions,
        }  # fmt: skip
        path = self._store.file(facts, ".pt2", lambda path: self._quantize(config, path))
        return str(path), f"post-training, {s.samples} calibration images"

    def _quantize(self, config: Config, path: Path) -> None:
        s = self._settings
        assert s.calibrate is not None and config.bits is not None
        tvm_q4.quantize_model(
            s.model, path, config=config.bits, calibrate=s.calibrate, samples=s.samples,
            transform=s.transform, classes=s.classes, seed=s.seed, progress=s.progress,
        )  # fmt: skip

    def _library_facts(self, model: str, target: Any) -> dict[str, Any]:
        s = self._settings
        size = list(s.image_size) if s.image_size else None
        return {
            "what": "library", "model": digest(model), "target": describe(target),
            "log": self._logs, "batch": s.batch, "image_size": size, "seed": s.seed,
            "versions": self._versions,
        }  # fmt: skip

    def _compiled(self, model: str, target: Any) -> Path:
        s = self._settings

        def make(path: Path) -> None:
            try:
                tvm_q4.compile(
                    model, target=target, batch=s.batch, image_size=s.image_size,
                    tuning_log=s.log, seed=s.seed, output=path,
                )  # fmt: skip
            except LibraryError:  # a CPU's library is loaded at once, and may be another CPU's
                if not path.exists():
                    raise

        return self._store.file(self._library_facts(model, target), ".so", make)

    def _verified(self, model: str, library: Library) -> dict[str, Any]:
        facts = self._library_facts(model, self._settings.target) | {"what": "verified"}
        seed = self._settings.seed
        keys = ("bit_exact", "n", "first_mismatch")

        def check() -> dict[str, Any]:
            report = tvm_q4.verify(library, model, seed=seed)
            return {key: report[key] for key in keys}

        return self._store.json(facts, check)

    def _evaluate(self, model: str, built: Built) -> None:
        """Accuracy of the library, or of one of the same integers for this CPU."""
        if built.config.kind != MODEL and self._settings.random_calibration:
            built.notes.append("no accuracy: weights and scales are random")
            return
        target, how = self._settings.target, "the compiled library"
        library = built.library
        if not built.runs_here:
            from tvm_q4.targets import cpu_target

            target, how = cpu_target(), "the same integers compiled for this CPU"
            library = tvm_q4.load(self._compiled(model, target))
        facts = self._library_facts(model, target) | {
            "what": "accuracy", "data": self._data, "transform": _plain(self._settings.transform),
            "classes": digest(self._settings.classes),
        }  # fmt: skip
        s = self._settings
        assert s.data is not None
        found = self._store.json(
            facts,
            lambda: tvm_q4.evaluate(
                library, str(s.data), transform=s.transform, classes=s.classes, progress=s.progress
            ),
        )
        built.accuracy = found | {"how": how}

    def float_accuracy(self, source: Any) -> dict[str, Any]:
        """Accuracy of the float model in PyTorch."""
        from tvm_q4.comparing.float_model import evaluate_float

        s = self._settings
        facts = {
            "what": "float accuracy", "model": self._model, "data": self._data, "seed": s.seed,
            "transform": _plain(s.transform), "classes": digest(s.classes),
            "versions": self._versions | {"torch": version("torch")},
        }  # fmt: skip
        found = self._store.json(
            facts, lambda: evaluate_float(source, str(s.data), s.transform, s.classes, s.progress)
        )
        return found | {"how": "the float model in PyTorch"}


@contextlib.contextmanager
def _named(config: Config) -> Iterator[None]:
    """Put a config's name before what goes wrong with it."""
    try:
        yield
    except Q4Error as error:
        raise type(error)(f"config '{config.name}': {error}") from error


def _why_not_here(library: Library) -> str:
    """Why a library cannot run on this machine; empty where it can."""
    try:
        library.open()
    except LibraryError as error:
        said = str(error).replace(f"library '{library.path}' ", "the library ")
        return said.removeprefix("the library cannot run here: ")
    return ""


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, (str, dict)) else repr(value)
