"""The CPU engine under sanitizers: data races, accesses out of bounds, undefined behaviour."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from adl_kernels import _C
from build_backend.choices import ISA_FLAGS, find_compiler
from build_backend.compile import KERNEL_FLAGS

pytestmark = pytest.mark.cpu_only

ROOT = Path(__file__).parent.parent
FLAGS = ["-std=c++20", "-O0", "-g1", *KERNEL_FLAGS]


def run_driver(name: str, sanitizer: str, folder: Path, *defines: str) -> None:
    driver = folder / "driver"
    compiler = find_compiler(os.environ).split()
    flags = [*FLAGS, *ISA_FLAGS[_C.isa()], f"-fsanitize={sanitizer}", "-fno-sanitize-recover"]
    flags += ["-DADL_STD_THREADS", *defines, f"-I{ROOT / 'csrc'}"]
    source = ROOT / "tests/cpu_driver" / name
    for command in ([*compiler, *flags, str(source), "-o", str(driver)], [str(driver)]):
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert run.returncode == 0, (run.stdout + run.stderr)[:3000]


@pytest.mark.parametrize("number", ["float", "double", "BFloat16"])
@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_every_cell(sanitizer, number, tmp_path):
    """cpu_driver/driver.cpp says what runs and what it is compared with."""
    tensors = "float" if number == "BFloat16" else number
    numbers = f"-DADL_NUMBER={tensors}", f"-DADL_FACTOR={number}"
    run_driver("driver.cpp", sanitizer, tmp_path, *numbers)


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_convolutions(sanitizer, tmp_path):
    """cpu_driver/conv.cpp likewise."""
    run_driver("conv.cpp", sanitizer, tmp_path, "-DADL_NUMBER=float")
