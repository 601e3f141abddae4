"""Builds adl_kernels._C; the decisions are in build_backend/, the metadata in pyproject.toml."""

import sys
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

from build_backend.backend import TORCH_REQUIREMENT  # noqa: E402 (needs the path above)
from build_backend.build_ext import BuildExt  # noqa: E402
from build_backend.torch_info import find_torch  # noqa: E402

torch = find_torch()

setup(
    # build_ext lists the sources itself; MANIFEST.in puts them into the sdist.
    ext_modules=[Extension("adl_kernels._C", sources=[])],
    cmdclass={"build_ext": BuildExt},
    install_requires=[torch.requirement if torch else TORCH_REQUIREMENT],
)
