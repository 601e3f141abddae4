"""A MobileNetV1 (Howard et al. 2017) in torch's layers, converted: the same outputs, sooner.

Its weights are random; `convert` finds the depthwise-separable chains by itself.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time

import torch
from torch import Tensor, nn

import adl_kernels

# Channels and stride of each block.
BLOCKS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *[(512, 1)] * 5,
    (1024, 2),
    (1024, 1),
)


def layers(i: int, o: int, k: int, stride: int, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(i, o, k, stride, padding=k // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(o), nn.ReLU(inplace=True)]


def mobilenet(classes: int = 1000) -> nn.Sequential:
    i, body = 32, layers(3, 32, 3, 2)
    for o, stride in BLOCKS:
        body.append(nn.Sequential(*layers(i, i, 3, stride, groups=i), *layers(i, o, 1, 1)))
        i = o
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(i, classes))


def settle(model: nn.Module, size: int) -> None:
    """Statistics of the batch norms, as training would leave them."""
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.momentum = None  # the mean of all batches
        for _ in range(2):
            model(torch.randn(8, 3, size, size))
    model.eval()


def times(models: list[nn.Module], x: Tensor, rounds: int) -> list[float]:
    """Median seconds of each, measured in turns."""
    found: list[list[float]] = [[] for _ in models]
    for k in range(rounds + 1):  # the first one warms up
        for model, seconds in zip(models, found, strict=True):
            start = time.perf_counter()
            model(x)
            if k:
                seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds) for seconds in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    parser.add_argument("--batch", type=int, default=1, help="images at once")
    parser.add_argument("--rounds", type=int, default=20, help="measurements")
    parser.add_argument("--channels-last", action="store_true", help="put channels side by side")
    options = parser.parse_args()
    torch.manual_seed(0)
    theirs = mobilenet()
    settle(theirs, options.size)
    ours = copy.deepcopy(theirs)
    x = torch.randn(options.batch, 3, options.size, options.size)
    if options.channels_last:
        x = x.to(memory_format=torch.channels_last)
        theirs, ours = (m.to(memory_format=torch.channels_last) for m in (theirs, ours))
    print(adl_kernels.convert(ours, fuse="inference", verify=x))
    with torch.no_grad():
        before, after = theirs(x), ours(x)
        seconds = times([theirs, ours], x, options.rounds)
    off = (after - before).abs().max() / before.abs().max()
    print(f"outputs differ by {off:.1e} of the largest")
    for name, s in zip(("torch.nn", "adl_kernels"), seconds, strict=True):
        print(f"{name:12} {1e3 * s:8.2f} ms")
    print(f"{seconds[0] / seconds[1]:.2f} times as fast, on {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
