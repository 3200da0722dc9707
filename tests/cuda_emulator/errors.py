"""What the emulator raises."""

from __future__ import annotations


class EmulationError(Exception):
    """The kernel does what hardware would make wrong, or what the emulator does not model."""
