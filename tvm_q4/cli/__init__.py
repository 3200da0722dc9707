"""The command line, ``tvm-q4 VERB``: one thin file a verb over a function of the same name."""

from tvm_q4.cli.main import main

__all__ = ["main"]
