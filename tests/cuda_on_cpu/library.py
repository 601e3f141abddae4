"""The ops over emulated CUDA kernels, as a library that takes the place of the ops on the CPU.

python tests/cuda_on_cpu/library.py race    builds a variant (see build.py) and prints its path
"""

from __future__ import annotations

import fcntl
import hashlib
import sys
from pathlib import Path

import torch
from torch.utils import cpp_extension

import build

KERNELS = sorted((build.ROOT / "csrc/cuda").glob("*.cu"))
HOST = build.ROOT / "csrc/ops/cuda.cpp"


def state(variant: str) -> str:
    """Changes with whatever the library is made from."""
    digest = hashlib.sha256(f"{variant} {torch.__version__} {build.compile_flags()}".encode())
    folders = [build.ROOT / "csrc", build.HERE]
    for path in sorted(
        p for f in folders for p in f.rglob("*") if p.suffix != ".pyc" and p.is_file()
    ):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def library(variant: str) -> Path:
    """The path of the built library; builds it unless that has been done."""
    folder = build.ROOT / "build" / f"emulator-{variant}"
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / f"ops-{state(variant)}.so"
    with open(folder / "ops.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not output.exists():
            compile(variant, output)
    return output


def compile(variant: str, output: Path) -> None:
    includes = [f"-isystem{folder}" for folder in cpp_extension.include_paths()]
    torch_lib = Path(torch.__file__).parent / "lib"
    host = output.with_suffix(".host.o")
    # Not the detector's: torch's own atomics are none of its business.
    flags = [*build.compile_flags(), *build.RUNTIME_FLAGS[variant], *includes]
    build.run([*build.compiler(), *flags, "-c", str(HOST), "-o", str(host)])
    link = [str(host), f"-L{torch_lib}", "-ltorch", "-ltorch_cpu", "-lc10"]
    unfinished = output.with_suffix(".unfinished")
    build.build(variant, KERNELS, unfinished, shared=True, link=link)
    host.unlink()
    unfinished.rename(output)


def take_over(variant: str) -> None:
    """From now on, the ops on the CPU run emulated CUDA kernels."""
    from adl_kernels import _fake

    torch.ops.load_library(library(variant))
    _fake.LAYOUTS["cpu"] = _fake.LAYOUTS["cuda"]


if __name__ == "__main__":
    print(library(sys.argv[1]))
