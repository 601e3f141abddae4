"""Every synchronisation of the kernels is needed, and a test would notice if one were missing."""

from __future__ import annotations

import subprocess
import sys

import pytest
from cuda_on_cpu.build import HERE

# What stands in the kernels today and is noticed by the race detector.
RACES = 40


@pytest.mark.slow
def test_no_synchronisation_can_be_removed_unnoticed():
    command = [sys.executable, HERE / "mutate.py", "--seeds", "3", "--first"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("| race |") >= RACES, done.stdout
