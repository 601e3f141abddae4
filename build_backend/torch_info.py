"""Facts about the torch to build against, read from its files: importing it would take seconds."""

from __future__ import annotations

import importlib.util
import re
import runpy
import sys
from dataclasses import dataclass
from pathlib import Path

from .errors import BuildError

OLDEST, NEWEST = (2, 11), (2, 14)


@dataclass(frozen=True)
class TorchInfo:
    folder: Path
    version: str  # with its local part: 2.13.0+cpu
    cuda: str | None  # the CUDA version it was built with: 13.0

    @property
    def minor(self) -> tuple[int, int]:
        major, minor = re.match(r"(\d+)\.(\d+)", self.version).groups()
        return int(major), int(minor)

    @property
    def include_dirs(self) -> list[Path]:
        include = self.folder / "include"
        return [include, include / "torch" / "csrc" / "api" / "include"]

    @property
    def nvidia_include_dirs(self) -> list[Path]:
        """Of the wheels that a CUDA build from PyPI depends on: nvidia/cu13, nvidia/cublas, ..."""
        return sorted((self.folder.parent / "nvidia").glob("*/include"))

    @property
    def requirement(self) -> str:
        """The pin for the wheel: torch's C++ interface changes with every minor version."""
        return "torch=={}.{}.*".format(*self.minor)


def find_torch() -> TorchInfo | None:
    """The torch that this process could import; None where there is none."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent
    facts = runpy.run_path(str(folder / "version.py"))
    return TorchInfo(folder, str(facts["__version__"]), facts["cuda"])


def check_supported(torch: TorchInfo) -> None:
    """Refuses a torch that is too old; a newer one may well work, so it only gets a warning."""
    if torch.minor < OLDEST:
        raise BuildError(
            "needs torch {}.{} to {}.{}, found torch ".format(*OLDEST, *NEWEST)
            + f"{torch.version} in {torch.folder.parent}: install a newer one first."
        )
    if torch.minor > NEWEST:
        print(
            f"adl_kernels: torch {torch.version} is newer than any that this version was tried "
            "with ({}.{})".format(*NEWEST),
            file=sys.stderr,
        )
