"""tvm-q4: quantization-aware-trained ResNets to integer-only libraries, on Apache TVM."""

__version__ = "0.1.0"
