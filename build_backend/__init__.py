"""In-tree PEP 517 backend: builds adl_kernels against the torch of the environment it goes into."""
