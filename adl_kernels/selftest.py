"""`python -m adl_kernels.selftest`: a small check of every op on one device, in seconds."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from . import _C
from . import _build_info as build
from ._devices import DEVICES
from .depthwise import reference as conv_reference
from .recurrent import engine, reference
from .recurrent.cell_facts import CELLS, Cell
from .recurrent.options import StackOptions

BOUNDS = {torch.float64: 1e-11, torch.float32: 1e-4, torch.bfloat16: 0.06, torch.float16: 0.01}
# C, multiplier, spatial sizes, kernel, stride; channels first and last.
CONVS = [
    (33, 1, (9, 20), (3, 3), (1, 1)),
    (16, 2, (15, 8), (5, 2), (2, 1)),
    (20, 1, (40,), (7,), (1,)),
]
Size = tuple[int, int, int, int, int]
TF32_BOUND = 0.02
SIZES = [(5, 3, 7, 20, 1), (9, 40, 33, 65, 2), (60, 1, 16, 48, 1)]  # T, B, I, H, directions
# On a GPU each tier besides, whatever would be chosen: a layer that one does not serve is no check.
TIERS = {
    "block": SIZES[:2],
    "cluster": [(6, 5, 9, 200, 2)],
    "grid": [(6, 5, 16, 512, 1)],
    "streaming": [(5, 3, 7, 20, 2), (3, 4, 8, 264, 1)],
    "cudnn": [(5, 3, 7, 20, 2)],
}
ADVICE = """\
{failures} of {checks} checks failed. The results of this build cannot be trusted on {device}.
- Does it also fail with ADL_ISA=default set? If not, the instruction set {isa} is at fault.
- Was torch changed since adl_kernels was built? Reinstall it: pip install --force-reinstall \
--no-deps --no-cache-dir <folder or URL of adl_kernels>.
- Otherwise report a bug with these lines and the output of `python -m adl_kernels.info`."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m adl_kernels.selftest", description=__doc__)
    parser.add_argument("--device", default="cpu", help="where to run, such as cpu or cuda:0")
    parser.add_argument("--tf32", action="store_true", help="let a GPU round float32 to tf32")
    asked = parser.parse_args(argv)
    device, tf32 = torch.device(asked.device), asked.tf32
    print(
        f"adl_kernels {build.VERSION}, torch {torch.__version__}, {device}, "
        f"instruction set {_C.isa()}, {torch.get_num_threads()} threads"
    )
    torch.backends.cudnn.allow_tf32 = tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    if device.type not in DEVICES:
        print(f"There are no kernels for {device.type} in this version: torch's own layers run.")
    start = time.perf_counter()
    failures = checks = 0
    tiers = TIERS if device.type == "cuda" else {}
    for name, error, bound in results(device, tiers, tf32):
        good = error <= bound
        checks += 1
        failures += not good
        print(f"{'ok  ' if good else 'FAIL'} {name:<28} error {error:.1e}, bound {bound:.0e}")
    if failures:
        print(ADVICE.format(failures=failures, checks=checks, device=device, isa=_C.isa()))
        return 1
    print(f"all {checks} checks passed in {time.perf_counter() - start:.1f} s")
    return 0


def results(
    device: torch.device, tiers: Mapping[str, Sequence[Size]], tf32: bool
) -> Iterator[tuple[str, float, float]]:
    """A name, the largest relative error of outputs and gradients, and what is allowed."""
    torch.manual_seed(0)
    asked: list[tuple[str | None, Sequence[Size]]] = [(None, SIZES), *tiers.items()]
    before = os.environ.pop("ADL_CUDA_TIER", None)
    for cell in CELLS.values():
        for dtype, bound in BOUNDS.items():
            # Rounding turns signs before the ReLU, here and in torch.nn: much for a single element.
            rounded = tf32 and dtype == torch.float32
            turns = cell.name == "rnn_relu" and (rounded or dtype == torch.bfloat16)
            bound = TF32_BOUND if rounded else bound
            for tier, sizes in asked:
                if tier:
                    os.environ["ADL_CUDA_TIER"] = tier
                name = f"{cell.name}, {str(dtype).removeprefix('torch.')}"
                try:
                    error = max(check(cell, dtype, device, turns, *size) for size in sizes)
                    yield (
                        f"{name}, {tier}" if tier else name,
                        error,
                        3 * BOUNDS[torch.bfloat16] if turns else bound,
                    )
                except RuntimeError as problem:
                    if "does not serve" not in str(problem):
                        raise
                finally:
                    os.environ.pop("ADL_CUDA_TIER", None)
    if before is not None:
        os.environ["ADL_CUDA_TIER"] = before

    for dtype, bound in BOUNDS.items():
        error = max(check_conv(dtype, device, last, *conv) for conv in CONVS for last in (0, 1))
        yield f"depthwise_conv, {str(dtype).removeprefix('torch.')}", error, bound


def check_conv(
    dtype: torch.dtype,
    device: torch.device,
    last: int,
    channels: int,
    multiplier: int,
    sizes: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
) -> float:
    """A depthwise convolution and its backward, against torch's in double."""
    shapes = (2, channels, *sizes), (channels * multiplier, 1, *kernel), (channels * multiplier,)
    tensors = [torch.randn(s, device="cpu").to(device, dtype) for s in shapes]
    if last:
        tensors[0] = tensors[0].movedim(1, -1).contiguous().movedim(-1, 1)
    window = (stride, [k // 2 for k in kernel] * 2, [1] * len(kernel))
    tensors = [t.requires_grad_() for t in tensors]
    exact = [t.detach().cpu().double().requires_grad_() for t in tensors]
    x, weight, bias = tensors
    ours = [torch.ops.adl_kernels.depthwise_conv(x, weight, bias, *window)]
    x, weight, bias = exact
    truth = [conv_reference.depthwise_conv(x, weight, bias, *window)]
    dy = torch.randn_like(truth[0])
    ours += torch.autograd.grad(ours, tensors, [dy.to(device, dtype)])
    truth += torch.autograd.grad(truth, exact, [dy])
    return max(relative_error(a, b, False) for a, b in zip(ours, truth, strict=True))


def check(
    cell: Cell,
    dtype: torch.dtype,
    device: torch.device,
    whole: bool,
    *sizes: int,
) -> float:
    """Runs one layer and its backward, and compares with the definition in double."""
    T, B, I, H, D = sizes
    shapes: list[tuple[int, ...]] = [(T, B, I), *[(D, B, H)] * cell.states]
    shapes += [(cell.gates * H, I), (cell.gates * H, H), (cell.gates * H,), (cell.gates * H,)] * D
    scales = [1.0] * (1 + cell.states) + [H**-0.5] * (4 * D)
    exact = [torch.randn(s, device="cpu") * scale for s, scale in zip(shapes, scales, strict=True)]
    tensors = [t.to(device, dtype).requires_grad_() for t in exact]
    exact = [t.detach().cpu().double().requires_grad_() for t in tensors]
    x, hx, weights = tensors[0], tensors[1 : 1 + cell.states], tensors[1 + cell.states :]
    ours = engine.run(cell, x, hx, weights, StackOptions(bidirectional=D == 2))
    x, hx, weights = exact[0], exact[1 : 1 + cell.states], exact[1 + cell.states :]
    truth = reference.layer(cell.name, x, hx, weights)
    cotangents = [torch.randn_like(t) for t in truth]
    ours += torch.autograd.grad(ours, tensors, [c.to(device, dtype) for c in cotangents])
    truth += torch.autograd.grad(truth, exact, cotangents)
    return max(relative_error(a, b, whole) for a, b in zip(ours, truth, strict=True))


def relative_error(value: Tensor, exact: Tensor, whole: bool) -> float:
    """Relative to the largest magnitude, or of all elements together; infinite for a NaN."""
    exact = exact.detach()
    difference = value.detach().cpu().double() - exact
    error = (
        difference.norm() / exact.norm() if whole else difference.abs().max() / exact.abs().max()
    )
    return float("inf") if error.isnan() else error.item()


if __name__ == "__main__":
    sys.exit(main())
