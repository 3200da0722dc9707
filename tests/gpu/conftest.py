"""The GPU, and libraries for it; tests skip with a reason where either cannot be had."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import tvm_q4
from tvm_q4.cuda_target import family_of_arch
from tvm_q4.errors import EnvironmentMismatch, LibraryError, TargetError
from tvm_q4.library.cuda_device import CudaDevice, open_device
from tvm_q4.library.nvcc import find_nvcc

Compile = Callable[..., Path]


@pytest.fixture(scope="session")
def gpu() -> CudaDevice:
    """This machine's first GPU."""
    try:
        device = open_device()
        family_of_arch(device.arch)
    except (LibraryError, TargetError) as error:
        pytest.skip(f"needs an NVIDIA GPU: {error}")
    return device


@pytest.fixture(scope="session")
def compiled(gpu: CudaDevice, tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """Function that compiles a model for archs, the GPU's own where none are given."""

    def build(model: object, *archs: int, **options: object) -> Path:
        archs = archs or (gpu.arch,)
        try:
            find_nvcc(archs)
        except (EnvironmentMismatch, TargetError) as error:
            pytest.skip(str(error))
        path = tmp_path_factory.mktemp("gpu") / "library.so"
        target = "cuda:" + ",".join(f"sm_{arch}" for arch in archs)
        return tvm_q4.compile(model, target=target, output=path, **options).path

    return build
