"""Benchmarks: one module a question, one command for all, ``python -m benchmarks``."""
