"""Forked processes: the threads of the parent are not there, and nothing may wait for them."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import adl_kernels

pytestmark = pytest.mark.cpu_only

SETUP = """
import os, signal, sys, threading
import torch
import adl_kernels

torch.set_num_threads(2)
kinds = [(adl_kernels.LSTM, {}), (adl_kernels.GRU, {}), (adl_kernels.RNN, {}),
         (adl_kernels.RNN, {"nonlinearity": "relu"})]
modules = [cls(64, 128, **options) for cls, options in kinds]
x, dy = torch.randn(50, 32, 64), torch.randn(50, 32, 128)

def train():  # numpy compares: torch's own operators hang in a child that has lost its team
    results = []
    for module in modules:
        y = module(x)[0]
        tensors = [y, *torch.autograd.grad(y, list(module.parameters()), dy)]
        results += [t.detach().numpy().tobytes() for t in tensors]
    return results

def in_child(check):
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # a child that hangs dies of it
        os._exit(0 if check() else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""

FORKS = """
before = train()

def in_thread():
    results = []
    thread = threading.Thread(target=lambda: results.append(train()))
    thread.start()
    thread.join()
    return results[0]

def check():
    same = train() == before and in_thread() == before
    return same and in_child(lambda: train() == before) == 0

sys.exit(in_child(check))
"""


def test_a_child_of_a_process_that_used_threads():
    """The thread that called fork, a thread of the child, a child of the child: the same bits."""
    run = [sys.executable, "-c", SETUP + FORKS]
    process = subprocess.run(run, capture_output=True, text=True, check=False)
    assert process.returncode == 0, f"{process.returncode} {process.stderr[-3000:]}"


class Encoded(Dataset):
    """Sequences, each run through a layer by the worker that loads it."""

    def __init__(self, module: torch.nn.Module):
        self.module = module

    def __len__(self) -> int:
        return 6

    def __getitem__(self, k: int) -> torch.Tensor:
        x = torch.randn(50, 32, 64, generator=torch.Generator().manual_seed(k))
        with torch.no_grad():
            return self.module(x)[0]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork")
def test_a_worker_of_a_data_loader(threads):
    threads(2)
    data = Encoded(adl_kernels.LSTM(64, 128))
    expected = [data[k] for k in range(len(data))]
    loader = DataLoader(
        data, batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60
    )
    for y, same in zip(loader, expected, strict=True):
        assert torch.equal(y, same)
