"""Imports what is for DTensors once torch.distributed.tensor is imported."""

from __future__ import annotations

import importlib
import importlib.abc
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

DTENSOR = "torch.distributed.tensor"


class Finder(importlib.abc.MetaPathFinder):
    """Finds DTENSOR where Python would, and has the rules follow it."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name == DTENSOR else None
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _register()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _register() -> None:
    try:
        importlib.import_module(".distributed", __package__)
    except (ImportError, AttributeError) as problem:  # parts of torch that it may change
        warnings.warn(f"adl_kernels: no layer runs on DTensors here: {problem}", stacklevel=2)


if DTENSOR in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, Finder())
