"""CaptureCudaGraph: beside each function of a CUDA module, one that runs its kernels as one graph.

``main_sm80`` gets a twin ``main_graph_sm80``, which TVM's ``RewriteCUDAGraph`` has capture every
kernel but those that touch the caller's tensors (the first and the last) in its first run, and
launch them at once in later ones. The plain function stays for instrumented runs.
"""

from __future__ import annotations

import tvm
from tvm import relax

from tvm_q4.relay_passes._rename import rename

GRAPH = "_graph"
_ALLOC = "cuda_graph_alloc"


def graph_name(function: str, suffix: str) -> str:
    """Name of a function's twin: ``main_graph_sm80`` of ``main_sm80``."""
    return function.removesuffix(suffix) + GRAPH + suffix


def capture_cuda_graph(mod: tvm.IRModule, suffix: str) -> tvm.IRModule:
    """Add the twins; `mod` is a module after ``PlanMemory`` whose functions end in `suffix`."""
    plain = {gv: f for gv, f in mod.functions.items() if isinstance(f, relax.Function)}
    kernels = {gv: f for gv, f in mod.functions.items() if gv not in plain}
    twins = rename(plain, {gv.name_hint: graph_name(gv.name_hint, suffix) for gv in plain})
    with tvm.transform.PassContext(config={"relax.backend.use_cuda_graph": True}):
        rewritten = relax.transform.RewriteCUDAGraph()(tvm.IRModule({**kernels, **twins}))
    graphs = rename(dict(rewritten.functions), {_ALLOC: _ALLOC + suffix})
    return tvm.IRModule({**plain, **graphs}, attrs=mod.attrs)
