"""Benchmarks of polyloop against what people use today. ``python -m benchmarks --help``."""
