"""Random and wrong arguments in a process of their own: an error or a result, never a crash."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest
from devices import DEVICE
from lanes import slow

SECONDS = 6


def fuzz(seed: int, seconds: float, device: str) -> None:
    """Calls ops and modules with arguments that are mostly almost right."""
    import time

    import torch

    import adl_kernels as adl
    from adl_kernels.recurrent.cell_facts import CELLS

    rng = random.Random(seed)
    dtypes = [torch.float32] * 12 + [torch.float64, torch.bfloat16, torch.float16, torch.int64]
    allowed = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, NotImplementedError)

    def size(right: int) -> int:
        return right if rng.random() < 0.93 else rng.choice([0, 1, 2, 3, 7, 17, 33])

    def tensor(*shape: int) -> torch.Tensor:
        shape = tuple(size(n) for n in shape)
        if rng.random() < 0.03:
            shape = shape[1:]
        if rng.random() < 0.03:
            shape = (*shape, size(2))
        dtype = rng.choice(dtypes) if rng.random() < 0.1 else torch.float32
        t = torch.randn(shape).to(device, dtype)
        if rng.random() < 0.2 and t.dim() > 1:
            t = t.transpose(0, -1).contiguous().transpose(0, -1)
        if rng.random() < 0.1 and t.numel():
            t = t.expand(2, *t.shape)[1]
        return t.requires_grad_() if rng.random() < 0.3 and t.is_floating_point() else t

    def op() -> None:
        cell = rng.choice(list(CELLS.values()))
        D, T, B, I, H = rng.choice([1, 2]), *(rng.choice([0, 1, 2, 5, 20]) for _ in range(4))
        P = rng.choice([0, 0, 3])
        batch_sizes, rows = None, (T, B)
        if rng.random() < 0.3:
            sizes = sorted((rng.randint(1, max(B, 1)) for _ in range(T)), reverse=True)
            if rng.random() < 0.2 and sizes:
                sizes[rng.randrange(len(sizes))] = rng.choice([-1, 0, 5, 10**12])
            B = sizes[0] if sizes else B
            batch_sizes = torch.tensor(sizes, dtype=torch.int64)
            rows = (sum(n for n in sizes if 0 < n < 100),)
        per = [(cell.gates * H, I), (cell.gates * H, P or H)]
        per += [(cell.gates * H,)] * rng.choice([0, 2, 2, 1]) + [(P, H)] * (P > 0)
        weights = [tensor(*shape) for shape in per * D]
        hx = [tensor(D, B, P or H)] + [tensor(D, B, H)] * (cell.has_c or rng.random() < 0.03)
        x = tensor(*rows, I)
        outputs = rng.choice([cell.op, cell.forward_op])(x, hx, weights, batch_sizes)
        wanted = [t for t in outputs[: 1 + cell.states] if t.requires_grad]
        if wanted:
            sum(t.float().sum() for t in wanted).backward()
        if rng.random() < 0.3:
            outputs = [t.detach() for t in cell.forward_op(x, hx, weights, batch_sizes)]
            grads = [tensor(*t.shape) if rng.random() < 0.9 else None for t in outputs]
            saved = [t if rng.random() < 0.95 else tensor(*t.shape) for t in outputs]
            needs = [rng.random() < 0.7 for _ in range(size(1 + len(weights)))]
            split = 1 + cell.states
            cell.backward_op(
                grads[:split], x, hx, weights, batch_sizes, saved[0], saved[split:], needs
            )

    def module() -> None:
        cls = rng.choice([adl.LSTM, adl.GRU, adl.RNN])
        I, H = rng.choice([1, 3, 20]), rng.choice([1, 4, 20])
        layers, both = rng.choice([1, 2]), rng.random() < 0.5
        first = rng.random() < 0.5
        m = cls(I, H, layers, bidirectional=both, batch_first=first, device=device)
        T, B = rng.choice([0, 1, 5]), rng.choice([0, 1, 3])
        x = tensor(T, B, I)
        if rng.random() < 0.3 and x.dim() == 3:
            lengths = torch.tensor([rng.randint(0, 6) for _ in range(size(B))])
            x = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, first, enforce_sorted=False)
        hx = None
        if rng.random() < 0.5:
            batch = T if first else B
            hx = tensor(layers * (1 + both), batch, H)
            if cls is adl.LSTM or rng.random() < 0.05:
                hx = (hx, tensor(layers * (1 + both), batch, H))
        output, _ = m(x, hx)
        data = output.data if isinstance(x, torch.nn.utils.rnn.PackedSequence) else output
        data.float().sum().backward()

    def cell() -> None:
        cls = rng.choice([adl.LSTMCell, adl.GRUCell, adl.RNNCell])
        I, H, B = rng.choice([1, 3]), rng.choice([0, 1, 20]), rng.choice([0, 1, 3])
        hx = tensor(B, H)
        m = cls(I, H, bias=rng.random() < 0.7, device=device)
        m(tensor(B, I), rng.choice([None, hx, (hx, tensor(B, H))]))

    done = errors = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done += 1
        try:
            rng.choice([op, op, module, cell])()
        except allowed as error:
            errors += 1
            assert str(error), "an error without a message"
            assert "CUDA error" not in str(error), "a kernel did what it must not"
    if device == "cuda":
        torch.cuda.synchronize()  # what a kernel did wrong is said later
    print(f"{done} calls, {errors} refused")
    assert done > 100 and 0 < errors < done


@pytest.mark.parametrize("seed", [0, *slow(1, 2)])
def test_never_crashes(seed):
    command = [sys.executable, __file__, str(seed), str(SECONDS), DEVICE]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, f"exit {run.returncode}\n{run.stdout}\n{run.stderr[-3000:]}"


if __name__ == "__main__":
    fuzz(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3])
