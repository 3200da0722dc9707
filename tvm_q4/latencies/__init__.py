"""The parts of `tvm_q4.latency`: what runs, how long it takes, what changes between precisions."""
