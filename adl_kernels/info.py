"""`python -m adl_kernels.info`: what was built, and what runs here."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator

import torch

from . import _C
from . import _build_info as build
from ._build_check import runs_on


def facts() -> Iterator[tuple[str, str]]:
    """Pairs of a name and its value, in the order in which they are printed."""
    yield "adl_kernels", build.VERSION
    yield "torch", f"{torch.__version__} (built against {build.TORCH_VERSION})"
    yield "python", f"{platform.python_version()} (built with {build.PYTHON})"
    yield "compiler", build.COMPILER
    yield "platform", f"{platform.system()} {platform.machine()}"
    yield "instruction sets", f"{', '.join(build.ISAS)}; running: {_C.isa()}{forced_isa()}"
    yield "CPU threads", str(torch.get_num_threads())
    yield "CUDA architectures", ", ".join(build.CUDA_ARCHS) or "none: CPU build"
    yield "CUDA tiers", tiers()
    yield "devices", ", ".join(devices())
    yield "cells", ", ".join(cell["name"] for cell in _C.cells())
    yield "ops", ", ".join(ops())


def forced_isa() -> str:
    forced = os.environ.get("ADL_ISA")
    return f" (ADL_ISA={forced})" if forced else ""


def tiers() -> str:
    """The kernels that may serve a recurrent layer on a GPU, see docs/cuda_tiers.md."""
    forced = os.environ.get("ADL_CUDA_TIER")
    names = [name if name != "cudnn" else f"cudnn ({cudnn_version()})" for name in _C.tiers]
    return ", ".join(names) + (f"; forced: {forced} (ADL_CUDA_TIER)" if forced else "")


def cudnn_version() -> str:
    version = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
    return "not available" if version is None else str(version)


def devices() -> list[str]:
    found = ["cpu"]
    for index in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(index)
        name = f"{torch.cuda.get_device_name(index)} ({capability[0]}.{capability[1]})"
        served = not build.CUDA_ARCHS or runs_on(build.CUDA_ARCHS, capability)
        cure = f"built for none such: build with ADL_CUDA_ARCHS={capability[0]}{capability[1]}"
        found.append(name if served else f"{name}, {cure}")
    return found


def ops() -> list[str]:
    """Names below torch.ops.adl_kernels."""
    prefix = "adl_kernels::"
    names = torch._C._dispatch_get_all_op_names()
    return sorted(name.removeprefix(prefix) for name in names if name.startswith(prefix))


def main() -> None:
    rows = list(facts())
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
    print(
        "\nADL_ISA=default|avx2|avx512|avx512bf16 chooses a lower instruction set when adl_kernels "
        "loads."
    )


if __name__ == "__main__":
    main()
