"""Uniform against mixed precision: measure configs of one network side by side (`compare`)."""

from __future__ import annotations

from tvm_q4.comparing.workflow import compare

__all__ = ["compare"]
