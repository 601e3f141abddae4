"""Compares the torch that is running with the one the extension was compiled for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

CURE = "Rebuild it in this environment: pip install --force-reinstall --no-deps --no-cache-dir "
NOT_BUILT = """\
adl_kernels was imported from {folder}, where its C++ extension has not been built. To use an \
installed adl_kernels, start Python in another folder; to work in this one, run `pip install -e .` \
in {root}."""


def check(torch_version: str, torch_cuda: str | None) -> None:
    """Raises ImportError where the extension cannot work with the running torch.

    torch_version, torch_cuda: torch.__version__ and torch.version.cuda of the running torch.
    """
    try:
        from . import _build_info as build
    except ImportError:
        folder = Path(__file__).resolve().parent
        raise ImportError(NOT_BUILT.format(folder=folder, root=folder.parent)) from None
    problem = mismatch(
        build.TORCH_VERSION, build.TORCH_CUDA, bool(build.CUDA_ARCHS), torch_version, torch_cuda
    )
    if problem:
        raise ImportError(f"{problem} {CURE}<folder or URL of adl_kernels>")


def mismatch(
    built_torch: str,
    built_cuda: str | None,
    has_kernels_for_cuda: bool,
    torch_version: str,
    torch_cuda: str | None,
) -> str | None:
    """The sentence that says why this build cannot run under this torch, or None if it can."""
    if minor(built_torch) != minor(torch_version):
        return (
            f"adl_kernels was compiled for torch {built_torch}, but torch {torch_version} is "
            "running, and torch's C++ interface differs between them."
        )
    if has_kernels_for_cuda and major(built_cuda) != major(torch_cuda):
        running = f"CUDA {torch_cuda}" if torch_cuda else "no CUDA"
        return (
            f"adl_kernels was compiled for torch {built_torch} with CUDA {built_cuda}, but torch "
            f"{torch_version} with {running} is running."
        )
    return None


def runs_on(archs: Sequence[str], capability: tuple[int, int]) -> bool:
    """Whether a build with code for sm_80, sm_90a, compute_120, .. serves a GPU of 9.0, say."""
    own = 10 * capability[0] + capability[1]
    for kind, _, name in (arch.partition("_") for arch in archs):
        number = int(name.rstrip("af"))
        exact = name.endswith("a")  # code with a letter runs on nothing else
        newer = kind == "compute" or number // 10 == own // 10
        if number == own or (number < own and newer and not exact):
            return True
    return False


def minor(version: str) -> list[str]:
    """2.13.0+cpu -> ["2", "13"]"""
    return version.split(".")[:2]


def major(cuda: str | None) -> str | None:
    """13.0 -> "13"; libraries of one CUDA major version work together."""
    return cuda.split(".")[0] if cuda else None
