"""Finds the Python environment that a build is for, from inside a front end's build isolation."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .errors import BuildError

# A child interpreter also follows .pth files and user site-packages, which paths alone would miss.
PROBE = """
import importlib.util, json, os, sys, sysconfig
spec = importlib.util.find_spec("torch")
origin = spec.origin if spec else None
path = [entry for entry in sys.path if entry]
if origin:  # an editable torch is found without being on the path
    path.append(os.path.dirname(os.path.dirname(origin)))
print(json.dumps({
    "torch": origin,
    "path": path,
    "ext_suffix": sysconfig.get_config_var("EXT_SUFFIX"),
}))
"""

HIDDEN_BY_ISOLATION = ("PYTHONPATH", "PYTHONNOUSERSITE", "PYTHONHOME", "__PYVENV_LAUNCHER__")

NO_TARGET = """\
the extension must be compiled against the torch it will run with, but this build runs in an \
environment of its own and cannot see the one it is for. Do one of these:
  - activate the environment that has torch, then repeat the command (pip, python -m build);
  - name its interpreter: ADL_BUILD_PYTHON=/path/to/environment/bin/python <command>;
  - switch isolation off: pip install "setuptools>=77" ninja, then add --no-build-isolation
    (python -m build: --no-isolation)."""


@dataclass(frozen=True)
class Target:
    """An interpreter, the torch/__init__.py that it would import (or None), and how it imports."""

    python: str
    torch: str | None
    path: tuple[str, ...]
    ext_suffix: str


@dataclass(frozen=True)
class Here:
    """The interpreter that runs the build."""

    python: str
    prefix: str
    ext_suffix: str
    setuptools: str  # the folder that setuptools was imported from

    @classmethod
    def now(cls) -> Here:
        import setuptools

        return cls(
            python=sys.executable,
            prefix=sys.prefix,
            ext_suffix=sysconfig.get_config_var("EXT_SUFFIX"),
            setuptools=str(Path(setuptools.__file__).parent),
        )

    @property
    def is_overlay(self) -> bool:
        """True where pip runs the target's own interpreter with other packages laid over it."""
        return not Path(self.setuptools).resolve().is_relative_to(Path(self.prefix).resolve())


def probe(python: str) -> Target:
    """Asks `python`, started without any trace of build isolation, what it can import."""
    executable = shutil.which(python)
    if executable is None:
        raise BuildError(f"the interpreter {python} is not an executable file.")
    executable = os.path.abspath(executable)
    env = {name: value for name, value in os.environ.items() if name not in HIDDEN_BY_ISOLATION}
    answer = subprocess.run(
        [executable, "-c", PROBE],
        env=env,
        cwd=os.path.dirname(executable),  # the current folder is on the path of `python -c`
        capture_output=True,
        text=True,
    )
    if answer.returncode != 0:
        raise BuildError(f"the interpreter {python} could not be asked for torch:\n{answer.stderr}")
    return Target(python=executable, **json.loads(answer.stdout.splitlines()[-1]))


def activated_python(environ: Mapping[str, str], own_prefix: str) -> str | None:
    """The interpreter of the activated environment, unless that is the build's throw-away one."""
    # uv points VIRTUAL_ENV at its throw-away environment; CONDA_PREFIX would then be a mere guess.
    prefix = environ.get("VIRTUAL_ENV") or environ.get("CONDA_PREFIX")
    if not prefix or Path(prefix).resolve() == Path(own_prefix).resolve():
        return None
    places = ("bin/python", "Scripts/python.exe", "python.exe")
    return next((str(Path(prefix, at)) for at in places if Path(prefix, at).exists()), None)


def find_target(
    environ: Mapping[str, str], here: Here, probe: Callable[[str], Target] = probe
) -> Target:
    """The environment that the build is for, or a BuildError that names the cures."""
    named = environ.get("ADL_BUILD_PYTHON")
    if named:
        target = probe(named)
        if target.torch is None:
            raise BuildError(f"ADL_BUILD_PYTHON={named} has no torch: install torch there first.")
    elif here.is_overlay:
        target = probe(here.python)
    else:
        python = activated_python(environ, here.prefix)
        if python is None:
            raise BuildError(NO_TARGET)
        target = probe(python)
    if target.ext_suffix != here.ext_suffix:
        raise BuildError(
            f"the build runs under a Python for {here.ext_suffix} modules, but {target.python} "
            f"needs {target.ext_suffix}: start the build with that Python version."
        )
    return target
