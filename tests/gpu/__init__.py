"""Tests on a real GPU; `bodies` also runs on the emulated one, see ``tests/fake_gpu``."""
