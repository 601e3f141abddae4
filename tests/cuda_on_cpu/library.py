"""The ops over emulated CUDA kernels, as a library that takes the place of the ops on the CPU.

python tests/cuda_on_cpu/library.py race    builds a variant (see build.py) and prints its path
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch.utils import cpp_extension

import build

sys.path.insert(0, str(build.ROOT))

from build_backend.compile import cuda_sources, is_cuda_source, torch_sources

KERNELS = cuda_sources(build.ROOT)
# The operators for CUDA, and what they share with those for the CPU.
SHARED = [build.ROOT / "csrc/recurrent" / name for name in ("layer.cpp", "ops.cpp")]
HOST = [*SHARED, *(path for path in torch_sources(build.ROOT) if is_cuda_source(path))]


def library(variant: str) -> Path:
    """The path of the library, which is built if it is out of date."""
    torch_lib = Path(torch.__file__).parent / "lib"
    return build.build(
        variant,
        KERNELS,
        build.ROOT / "build" / f"emulator-{variant}" / "ops.so",
        shared=True,
        link=[f"-L{torch_lib}", "-ltorch", "-ltorch_cpu", "-lc10"],
        host=HOST,
        # Without optimisation: torch's headers take most of the time, the calls next to none.
        host_flags=["-O0", *(f"-isystem{folder}" for folder in cpp_extension.include_paths())],
    )


def take_over(variant: str) -> None:
    """From now on, the ops on the CPU run emulated CUDA kernels."""
    from adl_kernels.recurrent import fakes

    torch.ops.load_library(library(variant))
    fakes.LAYOUTS["cpu"] = fakes.LAYOUTS["cuda"]


if __name__ == "__main__":
    print(library(sys.argv[1]))
