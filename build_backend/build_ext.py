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
from .compile import OPENMP, Plan, compile_objects, cuda_sources
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
        self.compiler.link_shared_object(
            compile_objects(self.plan.objects(), objects_folder(), self.plan.cuda_home),
            self.get_ext_fullpath(ext.name),
            libraries=self.plan.libraries(),
            library_dirs=self.plan.library_dirs(),
            extra_postargs=OPENMP,
            target_lang="c++",
        )


def objects_folder() -> Path:
    """Not build_temp: an editable install puts that into a new folder every time."""
    return ROOT / "build" / f"objects-{sys.implementation.cache_tag}"


def make_plan(torch: TorchInfo) -> Plan:
    cuda_home = choices.find_cuda_home(os.environ, shutil.which("nvcc"))
    sources = [str(path) for path in cuda_sources(ROOT)]
    with_cuda, why_not = choices.cuda_decision(
        os.environ.get("ADL_CUDA"), sources, torch.cuda, cuda_home
    )
    archs: tuple[str, ...] = ()
    if with_cuda:
        setting = os.environ.get("ADL_CUDA_ARCHS")
        archs = choices.cuda_archs(setting, [] if setting else choices.present_gpus())
        nvcc = [str(cuda_home / "bin/nvcc"), "--list-gpu-code"]
        known = subprocess.run(nvcc, capture_output=True, text=True)
        choices.check_archs(archs, known.stdout)
    line = f"CPU build ({why_not})"
    if with_cuda:
        line = f"CUDA build for {', '.join(choices.codes(archs))}"
    print(f"adl_kernels: {line}, torch {torch.version}", file=sys.stderr)
    return Plan(ROOT, torch, choices.isas(), cuda_home if with_cuda else None, archs)


def compiler_version(command: str) -> str:
    answer = subprocess.run([*command.split(), "--version"], capture_output=True, text=True)
    return (answer.stdout or answer.stderr).splitlines()[0].strip()


def build_info(version: str, plan: Plan) -> str:
    """The text of adl_kernels/_build_info.py: facts readable without loading the extension."""
    facts = {
        "VERSION": version,
        "TORCH_VERSION": plan.torch.version,
        "TORCH_CUDA": plan.torch.cuda,
        "CUDA_ARCHS": choices.codes(plan.cuda_archs),
        "ISAS": plan.isas,
        "COMPILER": compiler_version(choices.find_compiler(os.environ)),
        "PYTHON": platform.python_version(),
    }
    lines = ['"""Written by the build; do not edit."""', ""]
    return "\n".join(lines + [f"{name} = {value!r}" for name, value in facts.items()]) + "\n"
