"""Training: the loop, and quantization-aware training of a float model with it."""

from tvm_q4.quantize.training.options import TrainingOptions
from tvm_q4.quantize.training.recipe import train_qat
from tvm_q4.quantize.training.trainer import EpochResult, train

__all__ = ["EpochResult", "TrainingOptions", "train", "train_qat"]
