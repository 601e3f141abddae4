"""`make gpu-kit`: everything that a first run on a GPU needs, built on a machine without one.

For a Python and a torch that the machine with the GPU has, and for its architecture alone. The
folder gpu_kit is a tree like this one with what is built in place; `gpu_kit/run OUT` does the rest.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from build_backend.target import probe  # noqa: E402 (needs the path above)

KIT = ROOT / "gpu_kit"
MOST_BYTES = 60_000_000
FOLDERS = ("adl_kernels", "tests", "bench", "build_backend", "csrc")
FILES = ("setup.py", "pyproject.toml", "README.md", "LICENSE")
# Made by running, or large and of no use there.
LEFT_OUT = ("__pycache__", ".*cache", "*.so", "_build_info.py", "results")
RUN = """\
#!/bin/sh
# `run OUT` takes {first:.0f} s, `run OUT second` {second:.0f} s: see tests/gpu/__main__.py.
exec "${{PYTHON:-python3}}" "$(dirname "$(readlink -f "$0")")/tests/gpu" "$@"
"""


def environment(python: str, torch: str) -> str:
    """The interpreter to build with: the one named, if it has that torch, or a new one's."""
    version = torch.partition("==")[2]
    code = "import torch.version as v; print(v.__version__.split('+')[0], v.cuda or '')"
    if probe(python).torch:
        said = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
        found, _, cuda = said.stdout.strip().partition(" ")
        if cuda and (not version or found == version):
            return python
    folder = ROOT / "build" / "kit-environment"
    subprocess.run([python, "-m", "venv", folder], check=True)
    new = str(folder / "bin/python")
    needed = [torch, "setuptools>=77", "ninja"]
    subprocess.run([new, "-m", "pip", "install", "--quiet", *needed], check=True)
    return new


def build(python: str, archs: str) -> None:
    """The extension and the programs, into the kit."""
    # The runtime unpacks kernels as it loads them; so packed they are a fifth as large.
    flags = {"ADL_CUDA": "1", "ADL_CUDA_ARCHS": archs, "NVCCFLAGS": "--compress-mode=size"}
    commands = (
        [python, "setup.py", "build_ext", "--build-lib", str(KIT)],
        [python, "tests/gpu/programs.py", str(KIT / "build/programs")],
    )
    for command in commands:
        subprocess.run(command, cwd=ROOT, env=os.environ | flags, check=True)
    for library in (KIT / "adl_kernels").glob("*.so"):
        subprocess.run(["strip", "--strip-unneeded", str(library)], check=True)


def copy_sources() -> None:
    ignore = shutil.ignore_patterns(*LEFT_OUT)
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, KIT / folder, ignore=ignore, dirs_exist_ok=True)
    for name in FILES:
        shutil.copy2(ROOT / name, KIT / name)
    sys.path.insert(0, str(ROOT / "tests"))
    from gpu.lines import PLANS

    script = KIT / "run"
    script.write_text(RUN.format(first=PLANS["first"][1], second=PLANS["second"][1]))
    script.chmod(0o755)


def sizes() -> dict[str, int]:
    """Bytes of each part of the kit."""
    parts: dict[str, int] = {}
    for path in KIT.rglob("*"):
        if path.is_file():
            part = path.relative_to(KIT).parts[0]
            part = "extension" if path.suffix == ".so" else part
            parts[part] = parts.get(part, 0) + path.stat().st_size
    return parts


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python tests/gpu/kit.py", description=__doc__)
    parser.add_argument("--python", required=True, help="an interpreter of the target's version")
    parser.add_argument("--torch", required=True, help="what the target has: torch==2.11.0")
    parser.add_argument("--archs", default="90a", help="as ADL_CUDA_ARCHS (default: %(default)s)")
    asked = parser.parse_args(arguments)
    start = time.monotonic()
    shutil.rmtree(KIT, ignore_errors=True)
    build(environment(asked.python, asked.torch), asked.archs)
    copy_sources()
    parts = sizes()
    total = sum(parts.values())
    for part, size in sorted(parts.items(), key=lambda item: -item[1]):
        print(f"{size / 1e6:8.2f} MB  {part}")
    print(f"{total / 1e6:8.2f} MB  {KIT}, in {time.monotonic() - start:.0f} s")
    if total > MOST_BYTES:
        print(f"the kit must be at most {MOST_BYTES / 1e6:.0f} MB")
    return int(total > MOST_BYTES)


if __name__ == "__main__":
    sys.exit(main())
