"""Hyper-parameters: what is refused, and what a checkpoint compares."""

import pytest

pytest.importorskip("torch")

from tvm_q4.errors import InputError
from tvm_q4.quantize.training.options import TrainingOptions


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("epochs", 0, "at least 1"),
        ("batch_size", 0, "at least 1"),
        ("workers", -1, "at least 0"),
        ("seed", -1, "at least 0"),
        ("learning_rate", 0.0, "above 0"),
        ("learning_rate", float("nan"), "above 0"),
        ("schedule", "step", "one of one-cycle, cosine"),
        ("augment", "mixup", "one of crop-flip, flip, none"),
        ("warmup", 1.0, "between 0 and 1"),
        ("momentum", 1.0, "below 1"),
        ("weight_decay", -1e-9, "at least 0"),
        ("distill", 1.5, "between 0 and 1"),
        ("temperature", 0.0, "above 0"),
    ],
)
def test_values_out_of_range_are_named(name, value, said):
    with pytest.raises(InputError, match=f"^{name} is .*{value}.*; it must be .*{said}"):
        TrainingOptions(**{name: value})


def test_settings_leave_out_where_a_run_happens():
    here = TrainingOptions(device="cpu", workers=0).settings()
    assert here == TrainingOptions(device="cuda", workers=4).settings()
    assert here != TrainingOptions(seed=1).settings()
    assert "device" not in here and here["learning_rate"] == 3e-4
