"""Tuning records and published latency tables, shipped as data."""
