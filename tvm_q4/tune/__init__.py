"""Measured search for the parameters of schedule rules; its results go into tuning logs.

==================  ================================================================================
`task`              the distinct signatures of a model whose rule has parameters to choose
`search`            which candidates of a task are measured next
`cost_model`        the learned ranking of candidates, `features` what it sees of them
`scheduler`         which task gets the next batch
`proposer`          the searches of a run, and what was learned from all measurements
`session`           a run: batches until a limit, records in the log, the best measured again
`resume`            what a log holds for a task already
`candidates`        kernels and cases of the tasks: built, kept, measured, discarded
`builder`           building candidates in worker processes (`workers`, `build_job`)
`measurer`          the interface of devices, and this machine's own (`time_job`)
`rpc_measurer`      devices elsewhere, through TVM's tracker (`rpc_job`)
`bundle`            candidates for devices that no network reaches, in a folder with the program
                    that measures them (`bundle_runner`, `bundle_worker`); `bundle_results` takes
                    what it found
`case`              inputs and expected outputs, for the check that candidates are bit-exact
`workflow`          the Python form of the verb ``tune``
==================  ================================================================================
"""

from __future__ import annotations

import importlib
from typing import Any

_LAZY = {
    "import_results": "tvm_q4.tune.bundle_results",
    "list_tasks": "tvm_q4.tune.workflow",
    "tune_model": "tvm_q4.tune.workflow",
    "write_bundle": "tvm_q4.tune.bundle",
}

__all__ = ["import_results", "list_tasks", "tune_model", "write_bundle"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
