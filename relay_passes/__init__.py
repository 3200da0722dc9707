"""Graph passes of tvm-q4 (Relax), one a file, and the pipeline that orders them."""
