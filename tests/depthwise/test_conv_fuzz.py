"""Random convolutions against torch's in double, and random wrong ones: never a crash."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest
import torch
from convs import Case, gradients, make
from devices import DEVICE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lanes import slow
from tolerance import assert_accurate

from adl_kernels.depthwise.reference import ACTIVATIONS

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
SECONDS = 6


@st.composite
def cases(draw: st.DrawFn) -> Case:
    n = draw(st.sampled_from([1, 2, 2, 3]))

    def each(values: st.SearchStrategy) -> tuple:
        return tuple(draw(values) for _ in range(n))

    most = {1: 9, 2: 7, 3: 4}[n]
    k, dilation = each(st.integers(1, most)), each(st.integers(1, 3))
    pad = each(st.tuples(st.integers(0, most), st.integers(0, most)))
    longest = {1: 70, 2: 24, 3: 9}[n]
    reach = [
        d * (a - 1) + 1 - low - high for d, a, (low, high) in zip(dilation, k, pad, strict=True)
    ]
    size = tuple(draw(st.integers(max(1, r), max(longest, r))) for r in reach)
    documents = n == 1 and draw(st.booleans())
    stride = each(st.integers(1, 3))
    if documents:  # as many outputs as inputs
        low = draw(st.integers(0, dilation[0] * (k[0] - 1)))
        pad, stride = ((low, dilation[0] * (k[0] - 1) - low),), (1,)
    return Case(
        size,
        k,
        C=draw(st.integers(1, 40)),
        B=draw(st.integers(1, 3)),
        dtype=draw(st.sampled_from([F32, F32, BF16, F16])),
        stride=stride,
        pad=pad,
        dilation=dilation,
        M=draw(st.sampled_from([1, 1, 1, 2, 3])),
        layout=draw(st.sampled_from(["first", "last", "strided"])),
        bias=draw(st.booleans()),
        residual=draw(st.booleans()),
        activation=draw(st.sampled_from([*ACTIVATIONS, *["none"] * 6])),
        documents=documents,
    )


@settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(case=cases())
def test_random_convolutions(case):
    torch.manual_seed(0)
    conv = make(case)
    three = (
        gradients(conv, type(conv).ours),
        gradients(conv, type(conv).torchs),
        gradients(conv.to(F64), type(conv).torchs),
    )
    names = ["y", *("d" + name for name in conv.names)]
    for what, mine, theirs, truth in zip(names, *three, strict=True):
        assert_accurate(mine, theirs, truth, what)


def fuzz(seed: int, seconds: float, device: str) -> None:
    """Calls ops with arguments that are mostly almost right."""
    import time

    import adl_kernels as adl

    ops = torch.ops.adl_kernels
    rng = random.Random(seed)
    allowed = (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError)
    dtypes = [F32] * 12 + [F64, BF16, F16, torch.int64]

    def size(right: int) -> int:
        return right if rng.random() < 0.95 else rng.choice([0, 1, 2, 3, 7, 17, 33])

    def numbers(right: list[int]) -> list[int]:
        found = [n if rng.random() < 0.97 else rng.choice([-1, 0, 1, 4, 2**40]) for n in right]
        return found if rng.random() < 0.97 else found[1:]

    def tensor(*shape: int) -> torch.Tensor:
        shape = tuple(size(n) for n in shape)
        if rng.random() < 0.02:
            shape = shape[1:]
        dtype = rng.choice(dtypes) if rng.random() < 0.05 else F32
        t = torch.randn(shape).to(device, dtype)
        if rng.random() < 0.4 and t.dim() > 2:
            t = t.movedim(1, -1).contiguous().movedim(-1, 1)
        if rng.random() < 0.1 and t.numel():
            t = t.expand(2, *t.shape)[1]
        return t.requires_grad_() if rng.random() < 0.3 and t.is_floating_point() else t

    def call() -> None:
        n, B, C = rng.choice([1, 2, 2, 3]), rng.choice([0, 1, 2]), rng.choice([0, 1, 3, 16, 20])
        outs = C * rng.choice([1, 1, 2])
        sizes = [rng.choice([0, 1, 5, 9, 17]) for _ in range(n)]
        kernel = [rng.choice([1, 2, 3, 5]) for _ in range(n)]
        stride = [rng.choice([1, 1, 2, 3]) for _ in range(n)]
        dilation = [rng.choice([1, 1, 2]) for _ in range(n)]
        padding = [rng.choice([0, 1, 2, 4]) for _ in range(2 * n)]
        pairs = zip(sizes, kernel, stride, dilation, padding, padding[n:], strict=False)
        out = [(s + p + q - d * (k - 1) - 1) // t + 1 for s, k, t, d, p, q in pairs]
        window = numbers(stride), numbers(padding), numbers(dilation)
        ids = None
        if rng.random() < 0.2:
            ids = torch.randint(0, 3, (size(B), size(sizes[0])), device=device)
        x, weight = tensor(B, C, *sizes), tensor(outs, 1, *kernel)
        if min(out) < 0:
            out = [max(o, 0) for o in out]
        which = rng.randrange(5)
        if which == 0:
            bias = tensor(outs) if rng.random() < 0.5 else None
            residual = tensor(B, outs, *out) if rng.random() < 0.3 else None
            activation = rng.choice(["none", "relu", "silu", "gelu"])
            y = ops.depthwise_conv(x, weight, bias, *window, ids, activation, residual)
            if y.requires_grad:
                y.float().sum().backward()
        elif which == 1:
            ops.depthwise_conv_input_grad(
                tensor(B, outs, *out), weight, numbers([B, C, *sizes]), *window, ids
            )
        elif which == 2:
            ops.depthwise_conv_weight_grad(
                tensor(B, outs, *out), x, numbers(kernel), *window, ids, rng.random() < 0.5
            )
        elif which == 3:
            pw = tensor(7, outs, *[1] * n)
            packed = ops.pack_pointwise(pw) if rng.random() < 0.5 else None
            ops.separable_conv(x, weight, None, pw, None, packed, *window)
        else:
            adl.functional.causal_conv1d(
                tensor(B, C, 9), tensor(outs, 1, 3), None, initial_state=tensor(B, C, 2)
            )

    done = errors = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done += 1
        try:
            call()
        except allowed as error:
            errors += 1
            assert str(error), "an error without a message"
            assert "CUDA error" not in str(error), "a kernel did what it must not"
    if device == "cuda":
        torch.cuda.synchronize()  # what a kernel did wrong is said later
    print(f"{done} calls, {errors} refused")
    assert done > 100 and 0 < errors < done


@pytest.mark.parametrize("seed", [0, *slow(1)])
def test_never_crashes(seed):
    command = [sys.executable, __file__, str(seed), str(SECONDS), DEVICE]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, f"exit {run.returncode}\n{run.stdout}\n{run.stderr[-3000:]}"


if __name__ == "__main__":
    fuzz(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3])
