"""Memory: the peak of a training step against torch.nn's, and none lost from step to step."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from lanes import slow

pytestmark = pytest.mark.cpu_only

SLACK = 2**21  # of an allocator's rounding, in bytes

SETUP = """
import gc, sys
import torch
from torch import nn
import adl_kernels

library, kind = {"torch": nn, "ours": adl_kernels}[sys.argv[1]], sys.argv[2]
torch.set_num_threads(1)

def status(field):
    for line in open("/proc/self/status"):
        if line.startswith(field):
            return 1024 * int(line.split()[1])

def training(T, B, I, H):
    module = getattr(library, kind)(I, H)
    x, dy = torch.randn(T, B, I, requires_grad=True), torch.ones(T, B, H)
    for tensor in (x, *module.parameters()):
        tensor.grad = torch.zeros_like(tensor)
    return lambda: module(x)[0].backward(dy)
"""

PEAK = """
training(3, 2, 4, 5)()  # what a first call sets up
step = training(100, 64, 512, 512)
gc.collect()
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
before = status("VmRSS")
step()
print(status("VmHWM") - before)
"""

GROWTH = """
step = training(100, 16, 64, 128)
def sizes():
    for _ in range(30):
        step()
        yield status("VmRSS")
windows = [list(sizes())[10:] for _ in range(4)]
# malloc keeps now more, now less of what is free, and may once take some; what leaks grows always.
print(min(min(after) - max(before) for before, after in zip(windows, windows[1:])))
"""


def measure(code: str, library: str, kind: str) -> int:
    """Bytes, in a process of its own."""
    command = [sys.executable, "-c", SETUP + code, library, kind]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return int(run.stdout)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize("kind", ["LSTM", *slow("GRU")])
def test_peak_of_a_training_step(kind):
    ours, torchs = measure(PEAK, "ours", kind), measure(PEAK, "torch", kind)
    assert ours <= torchs + SLACK, f"{ours >> 20} MiB, torch's {torchs >> 20} MiB"


@pytest.mark.parametrize("kind", ["LSTM", *slow("GRU", "RNN")])
def test_no_growth_from_step_to_step(kind):
    assert measure(GROWTH, "ours", kind) <= SLACK
