"""The third-party W4A4 network: published behaviour in torch, and the frontend's reading of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from tests.models.qat_resnet10_mnist import build_exported, images, recorded_logits
from tvm_q4 import ops
from tvm_q4.frontend.torch_export import import_exported
from tvm_q4.reference import ReferenceExecutor


def test_program_has_the_published_accuracy_and_logits(data_dir: Callable[..., Path]) -> None:
    folder = data_dir("qat-resnet10-mnist").parent
    x, labels = images(folder)
    with torch.no_grad():
        logits = build_exported(folder).module()(x).numpy()
    recorded = recorded_logits(folder)
    assert (logits.argmax(1) == labels).sum() == 4910
    np.testing.assert_array_equal(logits.argmax(1), recorded.argmax(1))
    far = np.abs(logits - recorded).max(1) > 1e-3
    assert far.mean() <= 0.001, "only rounding ties of float32 may differ"


def test_stage_1_module_computes_the_same(data_dir: Callable[..., Path]) -> None:
    folder = data_dir("qat-resnet10-mnist").parent
    x, _ = images(folder, 64)
    program = build_exported(folder)
    mod = import_exported(program, batch=64)
    with torch.no_grad():
        want = program.module()(x).numpy()
    found = ReferenceExecutor(mod).run(x.numpy())
    near = np.abs(found - want).max(1) < 1e-3
    assert near.mean() >= 0.98, "only rounding ties of float32 may differ"
    calls = [b.value for b in mod["main"].body.blocks[0].bindings if ops.is_q4(b.value)]
    names = {ops.attrs_of(c)["name"] for c in calls}
    assert {"maxpool.out", "layer1.0.add", "layer4.0.conv2.weight.dq"} <= names
    assert "conv1.weight.dq" not in names, "the stem is float"
