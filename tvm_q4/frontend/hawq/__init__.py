"""HAWQ-V3 checkpoints: ``quantized_checkpoint.pth.tar`` and ``checkpoint.pth.tar`` of its ResNets.

``checkpoint``: the files. ``architecture``: the networks, which the files do not describe.
``bits``: bit widths, which they do not hold either. ``folding``: integers from float weights.
``arithmetic``: scales to multipliers and shifts. ``loading``: all of it, to an integer module.
"""

from tvm_q4.frontend.hawq.loading import load_hawq_model

__all__ = ["load_hawq_model"]
