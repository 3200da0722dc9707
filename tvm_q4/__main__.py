"""``python -m tvm_q4``: the same as the command ``tvm-q4``."""

import sys

from tvm_q4.cli import main

if __name__ == "__main__":
    sys.exit(main())
