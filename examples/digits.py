"""A small MobileNet reads handwritten digits, beside the same net in torch's layers.

The digits are 1797 images of 8 x 8 points that scikit-learn ships. Both nets start from the same
weights and see the same batches; what differs is what computes.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import adl_kernels

WIDTHS = (32, 64, 64, 128)


def ours(i: int, o: int, stride: int) -> nn.Module:
    return adl_kernels.SeparableConv2d(
        i,
        o,
        3,
        stride,
        padding=1,
        bias=False,
        dw_norm=True,
        norm=True,
        dw_activation="relu",
        activation="relu",
    )


def torchs(i: int, o: int, stride: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(i, i, 3, stride, padding=1, groups=i, bias=False),
        nn.BatchNorm2d(i),
        nn.ReLU(),
        nn.Conv2d(i, o, 1, bias=False),
        nn.BatchNorm2d(o),
        nn.ReLU(),
    )


def net(block: Any) -> nn.Sequential:
    """A convolution that makes channels, separable ones, an average, a decision."""
    layers: list[nn.Module] = [nn.Conv2d(1, WIDTHS[0], 3, padding=1, bias=False)]
    layers += [nn.BatchNorm2d(WIDTHS[0]), nn.ReLU()]
    for k, (i, o) in enumerate(itertools.pairwise(WIDTHS)):
        layers.append(block(i, o, 2 if k == 1 else 1))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTHS[-1], 10))


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images [N, 1, 8, 8] and what they show; a fifth is held out."""
    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(found.images, dtype=torch.float32)[order, None] / 8 - 1
    y = torch.tensor(found.target)[order]
    cut = len(y) * 4 // 5
    return x[:cut], y[:cut], x[cut:], y[cut:]


def shifted(x: Tensor) -> Tensor:
    """By up to one point to each side, so that the net does not learn places by heart."""
    dy, dx = torch.randint(3, (2,)).tolist()
    return F.pad(x, (1, 1, 1, 1), value=-1.0)[:, :, dy : dy + 8, dx : dx + 8]


def train(model: nn.Module, x: Tensor, y: Tensor, epochs: int) -> float:
    """Seconds."""
    torch.manual_seed(1)
    batches = epochs * (len(y) // 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=batches)
    start = time.perf_counter()
    for _ in range(epochs):
        for rows in torch.randperm(len(y))[: len(y) // 64 * 64].split(64):
            loss = F.cross_entropy(model(shifted(x[rows])), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return time.perf_counter() - start


def draw(path: Path, model: nn.Sequential, x: Tensor, y: Tensor, found: Tensor) -> None:
    """Some kernels of the first separable convolution, and digits that were misread."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 8, figsize=(10, 3), layout="constrained")
    kernels = model[3].depthwise.weight.detach()  # the first after convolution, norm and ReLU
    wrong = (found != y).nonzero().flatten().tolist()
    for k, (above, below) in enumerate(axes.T):
        above.imshow(kernels[k, 0], cmap="RdBu")
        if k < len(wrong):
            below.imshow(x[wrong[k], 0], cmap="gray_r")
            below.set_title(f"{y[wrong[k]]}, read as {found[wrong[k]]}", fontsize=8)
        above.set_axis_off(), below.set_axis_off()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=12, help="times that all images are seen")
    parser.add_argument("--picture", type=Path, help="draw kernels and mistakes to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)  # images this small keep no more than one busy
    x, y, held_x, held_y = digits()
    print(f"{len(y)} digits to learn from, {len(held_y)} held out")
    torch.manual_seed(0)
    theirs, mine = net(torchs), net(ours)
    mine.load_state_dict(theirs.state_dict())  # the blocks know the names of an nn.Sequential
    for name, model in (("torch.nn", theirs), ("adl_kernels", mine)):
        seconds = train(model, x, y, options.epochs)
        with torch.no_grad():
            found = model.eval()(held_x).argmax(1)
        share = (found == held_y).float().mean()
        print(f"{name:12} {share:.1%} of the held out digits read, {seconds:.1f} s of training")
    if options.picture:
        draw(options.picture, mine, held_x, held_y, found)


if __name__ == "__main__":
    main()
