"""The build_ext command: compile, link, and write down what was built."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools.command.build_ext import build_ext

from . import choices
from .compile import OPENMP, Plan, compile_all, cuda_sources
from .errors import BuildError
from .torch_info import TorchInfo, check_supported, find_torch

ROOT = Path(__file__).resolve().parent.parent


class BuildExt(build_ext):
    """Builds against the torch that this process could import.

    Not derived from torch's BuildExtension: that one gives all sources of an extension the same
    flags and needs torch to be imported, which a CUDA build of torch refuses without its libraries.
    """

    def run(self) -> None:
        torch = find_torch()
        if torch is None:
            raise BuildError("torch was not found: install torch first, then repeat.")
        check_supported(torch)
        self.plan = make_plan(torch)
        super().run()
        for extension in self.extensions:
            info = Path(self.get_ext_fullpath(extension.name)).with_name("_build_info.py")
            info.write_text(build_info(self.distribution.get_version(), self.plan))

    def build_extension(self, ext) -> None:
        # Not build_temp: an editable install puts that into a new folder every time.
        folder = ROOT / "build" / f"objects-{sys.implementation.cache_tag}"
        self.compiler.link_shared_object(
            compile_all(self.plan, folder),
            self.get_ext_fullpath(ext.name),
            libraries=self.plan.libraries(),
            library_dirs=self.plan.library_dirs(),
            extra_postargs=OPENMP,
            target_lang="c++",
        )


def make_plan(torch: TorchInfo) -> Plan:
    cuda_home = choices.find_cuda_home(os.environ, shutil.which("nvcc"))
    sources = [str(path) for path in cuda_sources(ROOT)]
    with_cuda, line = choices.cuda_decision(
        os.environ.get("ADL_CUDA"), sources, torch.cuda, cuda_home
    )
    print(f"adl_kernels: {line}, torch {torch.version}", file=sys.stderr)
    return Plan(ROOT, torch, choices.isas(), cuda_home if with_cuda else None)


def compiler_version(command: str) -> str:
    answer = subprocess.run([*command.split(), "--version"], capture_output=True, text=True)
    return (answer.stdout or answer.stderr).splitlines()[0].strip()


def build_info(version: str, plan: Plan) -> str:
    """The text of adl_kernels/_build_info.py: facts readable without loading the extension."""
    facts = {
        "VERSION": version,
        "TORCH_VERSION": plan.torch.version,
        "TORCH_CUDA": plan.torch.cuda,
        "CUDA_ARCHS": tuple(f"sm_{arch}" for arch in choices.CUDA_ARCHS) if plan.cuda_home else (),
        "ISAS": plan.isas,
        "COMPILER": compiler_version(choices.find_compiler(os.environ)),
        "PYTHON": platform.python_version(),
    }
    lines = ['"""Written by the build; do not edit."""', ""]
    return "\n".join(lines + [f"{name} = {value!r}" for name, value in facts.items()]) + "\n"
