"""PEP 517 hooks: setuptools' own, run where the torch of the target environment can be imported."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys

from .errors import BuildError
from .target import Here, find_target

try:
    from setuptools import build_meta
except ImportError:
    raise BuildError(
        "building without isolation needs setuptools and ninja in the environment: "
        'pip install "setuptools>=77" ninja'
    ) from None

TORCH_REQUIREMENT = "torch>=2.11,<2.15"

get_requires_for_build_sdist = build_meta.get_requires_for_build_sdist
build_sdist = build_meta.build_sdist


def torch_is_visible() -> bool:
    return importlib.util.find_spec("torch") is not None


def missing_requirements() -> list[str]:
    """Asks for torch only where the target has none; any other answer could replace the user's."""
    if torch_is_visible() or find_target(os.environ, Here.now()).torch:
        return []
    return [TORCH_REQUIREMENT]


def show_target_torch() -> None:
    """Lets this process import what the target environment can import."""
    if torch_is_visible():
        return
    target = find_target(os.environ, Here.now())
    if target.torch is None:
        raise BuildError(f"{target.python} has no torch: install torch there first, then repeat.")
    # Appended, not prepended: the setuptools of the build environment must stay in front.
    sys.path.extend(entry for entry in target.path if entry not in sys.path)
    importlib.invalidate_caches()


def get_requires_for_build_wheel(config_settings=None):
    return missing_requirements()


def get_requires_for_build_editable(config_settings=None):
    return missing_requirements()


def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    show_target_torch()
    return build_meta.prepare_metadata_for_build_wheel(metadata_directory, config_settings)


def prepare_metadata_for_build_editable(metadata_directory, config_settings=None):
    show_target_torch()
    return build_meta.prepare_metadata_for_build_editable(metadata_directory, config_settings)


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    show_target_torch()
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    show_target_torch()
    return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)
