"""Benchmarks: measured figures, each beside what was predicted. Speed is measured here and never in the tests."""
