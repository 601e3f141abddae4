"""Measurements of adl_kernels: run `python -m bench --help` in the repository root."""
