"""Benchmarks against other tools, one command per table of RESULTS.md. Not part of the wheel."""
