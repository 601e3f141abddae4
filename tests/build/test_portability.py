"""Older processors: what this build picks there and computes, under an emulator."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from adl_kernels import _build_info

pytestmark = [pytest.mark.cpu_only, pytest.mark.slow]

# oneDNN is off: its own code for float32 goes wrong in the emulator of AVX2.
CHECK = """
import sys
import torch
from torch import nn
import adl_kernels
from adl_kernels import _C

torch.set_num_threads(1)
torch.backends.mkldnn.enabled = False
isa = sys.argv[1]
assert _C.isa() == isa, f"runs {_C.isa()} instead of {isa}"
kinds = [("LSTM", {}), ("LSTM", {"proj_size": 7}), ("GRU", {}), ("RNN", {}),
         ("RNN", {"nonlinearity": "relu"})]
for kind, options in kinds:
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-13)):
        for B in (2, 9):  # few rows, and weights that are packed
            results = []
            for library in (nn, adl_kernels):
                torch.manual_seed(0)
                module = getattr(library, kind)(20, 35, bidirectional=True, dtype=dtype, **options)
                x = torch.randn(5, B, 20, dtype=dtype, requires_grad=True)
                y = module(x)[0]
                dy = torch.randn_like(y)
                results.append([y, *torch.autograd.grad(y, [x, *module.parameters()], dy)])
            for torchs, ours in zip(*results, strict=True):
                error = (ours - torchs).abs().max().item()
                bound = tolerance * torchs.abs().max().item()
                assert error <= bound, f"{kind} {options} {dtype} {B}: {error} > {bound}"
"""


@pytest.mark.skipif("avx2" not in _build_info.ISAS, reason="this build has one instruction set")
@pytest.mark.parametrize("cpu, isa", [("Haswell", "avx2"), ("SandyBridge", "default")])
def test_an_older_processor(cpu, isa):
    emulator = shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")
    if not emulator and not os.environ.get("CI"):
        pytest.skip("needs qemu-x86_64 (Debian, Ubuntu: qemu-user)")
    assert emulator, "CI needs qemu-x86_64: .ci/run installs it"
    command = [emulator, "-cpu", cpu, sys.executable, "-c", CHECK, isa]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
