"""The loss: cross entropy, divergence from the teacher, and their shares."""

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402

from tvm_q4.quantize.training.distillation import distillation_loss  # noqa: E402

LOGITS = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]])
TEACHER = torch.tensor([[2.0, -1.0, 0.0], [-1.0, 2.0, 2.0]])
LABELS = torch.tensor([0, 2])


def test_without_a_teacher_it_is_the_cross_entropy():
    loss = distillation_loss(LOGITS, LABELS, None, 0.9, 4.0)
    assert torch.equal(loss, F.cross_entropy(LOGITS, LABELS))


def test_it_is_hintons_sum():
    p, q = (TEACHER / 2).softmax(1), (LOGITS / 2).softmax(1)
    divergence = (p * (p / q).log()).sum(1).mean()
    expected = 0.25 * 4 * divergence + 0.75 * F.cross_entropy(LOGITS, LABELS)
    torch.testing.assert_close(distillation_loss(LOGITS, LABELS, TEACHER, 0.25, 2.0), expected)


def test_a_student_that_answers_as_its_teacher_has_no_divergence():
    loss = distillation_loss(TEACHER, LABELS, TEACHER, 1.0, 4.0)
    torch.testing.assert_close(loss, torch.tensor(0.0))
