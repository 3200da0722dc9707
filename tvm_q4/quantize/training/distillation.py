"""Distillation: learning from the float model's answers beside the labels.

Method: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2: the
divergence between answers softened by a temperature T, times T squared so that its gradient keeps
its size when T changes.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def distillation_loss(
    logits: Tensor, labels: Tensor, teacher: Tensor | None, share: float, temperature: float
) -> Tensor:
    """Return the training loss.

    Parameters
    ----------
    logits : float32 Tensor [N, K]
    labels : int64 Tensor [N]
    teacher : float32 Tensor [N, K] or None
        The float model's logits; with None the loss is the cross entropy alone.
    share : float
        Weight of the divergence from the teacher, 0 to 1; the cross entropy has the rest.
    temperature : float
    """
    if teacher is None:
        return F.cross_entropy(logits, labels)
    soft = F.log_softmax(logits / temperature, dim=1)
    target = F.log_softmax(teacher / temperature, dim=1)
    divergence = F.kl_div(soft, target, reduction="batchmean", log_target=True)
    loss = share * temperature**2 * divergence
    return loss + (1 - share) * F.cross_entropy(logits, labels) if share < 1 else loss
