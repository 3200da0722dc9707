"""TensorIR schedules of tvm-q4: one rule a file, by backend."""
