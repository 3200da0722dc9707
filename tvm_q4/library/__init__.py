"""Libraries: one ``.so`` with code, packed weights and metadata; writing, reading, running them."""

from __future__ import annotations

from tvm_q4.library.export import check_writable, export_library
from tvm_q4.library.format import FORMAT, SECTION, VERSION, read_metadata
from tvm_q4.library.loading import Library, load, set_threads

__all__ = [
    "FORMAT",
    "SECTION",
    "VERSION",
    "Library",
    "check_writable",
    "export_library",
    "load",
    "read_metadata",
    "set_threads",
]
