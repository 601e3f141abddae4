"""The kernels serve a cell that is one header and one row of the list: here they run without torch.

test_structure.py builds all of the package with such a cell, which takes minutes.
"""

from __future__ import annotations

import shutil
import subprocess

import pytest
from test_structure import MINIMAL, ROOT

from adl_kernels import _C
from build_backend.choices import ISA_FLAGS
from build_backend.compile import KERNEL_FLAGS

pytestmark = pytest.mark.cpu_only


def test_a_new_cell(tmp_path):
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    cells = tmp_path / "csrc/recurrent/cells"
    (cells / "minimal.h").write_text(MINIMAL)
    text = (cells / "cells.h").read_text().replace("_(RnnRelu)", "_(RnnRelu) _(Minimal)")
    (cells / "cells.h").write_text(f'#include "recurrent/cells/minimal.h"\n{text}')
    flags = ["-std=c++20", "-O0", *KERNEL_FLAGS, *ISA_FLAGS[_C.isa()], f"-I{tmp_path / 'csrc'}"]
    flags += [
        "-DADL_STD_THREADS",
        "-DADL_NUMBER=float",
        "-DADL_FACTOR=float",
        "-DADL_CHECKED(_)=_(Minimal)",
    ]
    driver = str(tmp_path / "driver")
    source = str(ROOT / "tests/cpu_driver/driver.cpp")
    for command in (["c++", *flags, source, "-o", driver], [driver]):
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert run.returncode == 0, (run.stdout + run.stderr)[:3000]
