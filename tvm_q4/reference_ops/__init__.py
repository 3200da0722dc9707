"""NumPy definitions of the operators that `tvm_q4.reference` runs.

``integer``: the q4 operators. ``island``: float32 operators of what stays float. ``movement``:
operators that only move values. ``windows``: padding and sliding windows for all of them.
"""
