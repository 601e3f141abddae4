"""The CPU engine under sanitizers: data races, accesses out of bounds, undefined behaviour."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from lanes import slow

from adl_kernels import _C
from build_backend.choices import ISA_FLAGS, find_compiler
from build_backend.compile import KERNEL_FLAGS

pytestmark = pytest.mark.cpu_only

ROOT = Path(__file__).parents[2]
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


def numbers(name: str) -> list[str]:
    tensors = "float" if name == "BFloat16" else name
    return [f"-DADL_NUMBER={tensors}", f"-DADL_FACTOR={name}"]


@pytest.mark.slow
@pytest.mark.parametrize("number", ["float", "double", "BFloat16"])
@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_every_cell(sanitizer, number, tmp_path):
    """cpu_driver/driver.cpp says what runs and what it is compared with."""
    run_driver("driver.cpp", sanitizer, tmp_path, *numbers(number))


@pytest.mark.parametrize("cell", ["LstmGeneral", "GruResetBefore", "RnnTanh"])
@pytest.mark.parametrize(
    "sanitizer, number", [("thread", "float"), ("address,undefined", "BFloat16")]
)
def test_a_cell_of_each_kind(sanitizer, number, cell, tmp_path):
    run_driver("driver.cpp", sanitizer, tmp_path, *numbers(number), f"-DADL_CHECKED(_)=_({cell})")


@pytest.mark.parametrize("sanitizer", ["thread", *slow("address,undefined")])
def test_convolutions(sanitizer, tmp_path):
    """cpu_driver/conv.cpp likewise."""
    run_driver("conv.cpp", sanitizer, tmp_path, "-DADL_NUMBER=float")
