"""Does what concerns a part of torch once that is imported: the rules for DTensors, FLOPs."""

from __future__ import annotations

import importlib
import importlib.abc
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

DTENSOR = "torch.distributed.tensor"


class Finder(importlib.abc.MetaPathFinder):
    """Finds a module where Python would, and has something follow it."""

    def __init__(self, name: str, then: Callable[[], None]) -> None:
        self.name, self.then = name, then

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name == self.name else None
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                self.then()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def when_imported(name: str, then: Callable[[], None]) -> None:
    if name in sys.modules:
        then()
    else:
        sys.meta_path.insert(0, Finder(name, then))


def _register() -> None:
    try:
        importlib.import_module(".distributed", __package__)
    except (ImportError, AttributeError) as problem:  # parts of torch that it may change
        warnings.warn(f"adl_kernels: no layer runs on DTensors here: {problem}", stacklevel=2)


when_imported(DTENSOR, _register)
