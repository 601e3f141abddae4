"""A character model learns to complete text, once with torch.nn and once with adl_kernels.

Both sides start from the same weights, see the same batches and must end with the same knowledge;
one of them sooner. The exit status is 1 if the two do not learn the same.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

# bench is not installed. Appended, so that it cannot shadow an installed adl_kernels.
sys.path.append(str(Path(__file__).resolve().parents[1]))

import adl_kernels
from bench import machine, options, store

BLOCK = 20  # steps of one side before the other's turn
CONTROL_STEPS = 100
PROMPTS = ("The stat", "An expr", "A funct")

State = Tensor | tuple[Tensor, ...] | None


@dataclass(frozen=True)
class Corpus:
    """Python's language reference: nine tenths to learn from, the last tenth held out."""

    characters: str
    train: Tensor  # [N, B] every column is a stream of consecutive text
    valid: Tensor  # [M, B]

    @classmethod
    def read(cls, batch: int) -> Corpus:
        text = "\n".join(topics[name] for name in sorted(topics))
        characters = "".join(sorted(set(text)))
        place = {character: i for i, character in enumerate(characters)}
        codes = torch.tensor([place[character] for character in text])
        parts = codes.tensor_split([len(codes) * 9 // 10])
        rows = [len(part) // batch for part in parts]
        streams = (p[: n * batch].view(batch, n).t() for p, n in zip(parts, rows, strict=True))
        return cls(characters, *(stream.contiguous() for stream in streams))

    def encode(self, text: str) -> Tensor:
        if not text or set(text) - set(self.characters):
            raise SystemExit(f"demo: the prompt must be of characters of the text, got {text!r}")
        return torch.tensor([self.characters.index(character) for character in text])

    def decode(self, codes: list[int]) -> str:
        return "".join(self.characters[code] for code in codes)


class CharModel(nn.Module):
    """Embedding, recurrent layers, and for every position the logits of the next character."""

    def __init__(self, cell: str, characters: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, 64)
        self.rnn = {"lstm": nn.LSTM, "gru": nn.GRU}[cell](64, hidden, layers)
        self.logits = nn.Linear(hidden, characters)

    def forward(self, text: Tensor, state: State = None) -> tuple[Tensor, State]:
        y, state = self.rnn(self.embedding(text), state)  # [T, B, H]
        return self.logits(y), state

    def loss(self, text: Tensor, state: State = None) -> tuple[Tensor, State]:
        """Nats per character of a text that follows the one before; text [T + 1, B]."""
        logits, state = self(text[:-1], state)
        return F.cross_entropy(logits.flatten(0, 1), text[1:].flatten()), state


@dataclass
class Side:
    """One of those that learn: truncated BPTT, the state carried from step to step."""

    name: str
    model: CharModel
    text: Tensor  # [N, B]
    length: int  # characters of a step, T
    losses: list[float] = field(default_factory=list)  # one per step
    seconds: list[float] = field(default_factory=list)  # per step, one entry per block of steps
    faults: list[float] = field(default_factory=list)  # page faults per step, likewise
    state: State = None

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=3e-3)

    def learn(self, steps: int) -> None:
        faults, start = machine.page_faults(), time.perf_counter()
        for _ in range(steps):
            self._step()
        self.seconds.append((time.perf_counter() - start) / steps)
        self.faults.append((machine.page_faults() - faults) / steps)

    def _step(self) -> None:
        windows = (len(self.text) - 1) // self.length
        first = len(self.losses) % windows * self.length
        if first == 0:
            self.state = None  # the streams begin again
        loss, state = self.model.loss(self.text[first : first + self.length + 1], self.state)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        several = isinstance(state, tuple)
        self.state = tuple(s.detach() for s in state) if several else state.detach()
        self.losses.append(loss.item())

    @property
    def characters_per_second(self) -> float:
        """From the median block, as other work on the machine must not decide."""
        return self.length * self.text.shape[1] / statistics.median(self.seconds)

    @torch.no_grad()
    def bits_per_character(self, text: Tensor) -> float:
        return self.model.loss(text)[0].item() / math.log(2)

    @torch.no_grad()
    def complete(self, codes: Tensor, count: int, sampled: bool) -> list[int]:
        """Continue a text: the likeliest character every time, or one drawn at random."""
        generator = torch.Generator().manual_seed(0)
        x, state, found = codes[:, None], None, []
        for _ in range(count):
            logits, state = self.model(x, state)
            last = logits[-1, 0]
            if sampled:
                x = torch.softmax(last / 0.7, 0).multinomial(1, generator=generator)[None]
            else:
                x = last.argmax().view(1, 1)
            found.append(x.item())
        return found


@dataclass(frozen=True)
class Verdict:
    """Whether two trainings are the same up to rounding.

    Adam divides every gradient by its size, so one rounding error grows until the curves part,
    within tens of steps for the LSTM: no fixed tolerance on a late step means anything. Hence
    three questions. The first loss has seen no update and must agree to a few ulp. Then ours may
    stray from torch.nn at most ten times as far as torch.nn strays from itself when its first
    weights move by one ulp (the control). In the end both must have learned the same, within
    what such a control changed (0.004 bits) several times over.
    """

    first_step: float  # difference of the losses, relative
    early: float  # largest difference of the losses while the control runs, nats
    control: float  # the same for the control
    bits: float  # difference of the bits per character on held-out text

    @property
    def ok(self) -> bool:
        early = self.early <= 10 * self.control + 1e-5
        return self.first_step <= 2e-6 and early and self.bits <= 0.03

    def __str__(self) -> str:
        return (
            f"{'the two learn the same' if self.ok else 'THE TWO DO NOT LEARN THE SAME'}\n"
            f"    first loss: {self.first_step:.0e} apart, relative to its size\n"
            f"    early losses: at most {self.early:.0e} nats apart; "
            f"torch.nn with weights moved by one ulp: {self.control:.0e}\n"
            f"    held-out text: {self.bits:.4f} bits per character apart"
        )


def compare(sides: list[Side], bits: Sequence[float]) -> Verdict:
    theirs, ours, control = (side.losses for side in sides)
    early = range(len(control))
    return Verdict(
        first_step=abs(ours[0] - theirs[0]) / abs(theirs[0]),
        early=max(abs(ours[k] - theirs[k]) for k in early),
        control=max(abs(control[k] - theirs[k]) for k in early),
        bits=abs(bits[1] - bits[0]),
    )


def move_one_ulp(model: CharModel) -> CharModel:
    """A copy whose weights went one unit in the last place up, down, or nowhere."""
    generator = torch.Generator().manual_seed(1)
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for w in moved.parameters():
            way = torch.randint(-1, 2, w.shape, generator=generator)
            w.mul_(1 + way * torch.finfo(w.dtype).eps)
    return moved


def make_sides(cell: str, corpus: Corpus, asked: argparse.Namespace) -> list[Side]:
    """torch.nn, adl_kernels and the control, all from one set of weights."""
    torch.manual_seed(asked.seed)
    model = CharModel(cell, len(corpus.characters), asked.hidden, asked.layers)
    control = move_one_ulp(model)
    ours = copy.deepcopy(model)
    print(f"\n{adl_kernels.convert(ours)}")
    named = {"torch.nn": model, "adl_kernels": ours, "control": control}
    return [Side(name, m, corpus.train, asked.length) for name, m in named.items()]


def train(sides: list[Side], steps: int, label: str) -> None:
    """All sides in turns, a block of steps each, so that drift of the machine meets all alike."""
    lasts = steps, steps, min(steps, CONTROL_STEPS)
    quiet = not sys.stderr.isatty() or "CI" in os.environ
    with tqdm(total=sum(lasts), desc=label, disable=quiet, leave=False) as bar:
        for first in range(0, steps, BLOCK):
            for side, last in zip(sides, lasts, strict=True):
                if (count := min(BLOCK, last - first)) > 0:
                    side.learn(count)
                    bar.update(count)
            bar.set_postfix(loss=f"{sides[0].losses[-1]:.3f}")


def run_cell(cell: str, corpus: Corpus, asked: argparse.Namespace) -> dict[str, Any]:
    """Train, compare, print; everything measured comes back for the files."""
    sides = make_sides(cell, corpus, asked)
    others = machine.Disturbance()
    train(sides, asked.steps, cell.upper())
    disturbed = others.took_one_of(torch.get_num_threads())
    *both, control = sides
    theirs, ours = both
    bits = [side.bits_per_character(corpus.valid) for side in both]
    verdict = compare(sides, bits)
    prompts = (asked.prompt,) if asked.prompt else PROMPTS

    def completed(prompt: str) -> dict[str, str]:
        codes = corpus.encode(prompt)
        return {s.name: corpus.decode(s.complete(codes, 24, sampled=False)) for s in both}

    found = {
        "cell": cell,
        "parameters": sum(w.numel() for w in theirs.model.parameters()),
        "sides": {side.name: _figures(side, b) for side, b in zip(both, bits, strict=True)},
        "speedup": ours.characters_per_second / theirs.characters_per_second,
        "disturbed": disturbed,
        "control_losses": control.losses,
        "agree": verdict.ok,
        "agreement": asdict(verdict),
        "completions": {prompt: completed(prompt) for prompt in prompts},
        "sample": corpus.decode(ours.complete(corpus.encode(prompts[0]), 240, sampled=True)),
    }
    print(_text(found, verdict, prompts[0]), flush=True)
    return found


def _figures(side: Side, bits: float) -> dict[str, Any]:
    return {
        "loss": statistics.fmean(side.losses[-BLOCK:]),
        "bits_per_character": bits,
        "characters_per_second": side.characters_per_second,
        "page_faults": statistics.median(side.faults),
        "seconds_per_step": side.seconds,
        "losses": side.losses,
    }


def _text(found: dict[str, Any], verdict: Verdict, prompt: str) -> str:
    sides = list(found["sides"].values())
    title = f"{found['cell'].upper()}, {found['parameters']:,} parameters"
    lines = ["", f"{title:38}" + "".join(f"{name:>14}" for name in found["sides"])]
    for label, key, form in (
        ("training loss, nats per character", "loss", ".4f"),
        ("held-out text, bits per character", "bits_per_character", ".4f"),
        ("page faults per step", "page_faults", ",.0f"),
        ("speed, characters per second", "characters_per_second", ",.0f"),
    ):
        lines.append(f"  {label:36}" + "".join(f"{side[key]:14{form}}" for side in sides))
    lines[-1] += f"   {found['speedup']:.2f} times as fast"
    if found["disturbed"]:
        lines.append("  disturbed: other programs took cores that were needed; measure again")
    lines += [f"  {verdict}", "  likeliest completions"]
    for start, ends in found["completions"].items():
        lines += [f"    {name:12} {json.dumps(start + end)}" for name, end in ends.items()]
    sample = (prompt + found["sample"]).replace("\n", "\n    ")
    return "\n".join([*lines, "  a sample from adl_kernels", f"    {sample}"])


def draw(path: Path, cells: Sequence[dict[str, Any]]) -> None:
    """One column per cell: losses above; below, how far they are from those of torch.nn."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(cells), 5.2), layout="constrained")
    axes = figure.subplots(
        2, len(cells), sharex="col", sharey="row", squeeze=False, height_ratios=(2, 1)
    )
    for (above, below), cell in zip(axes.T, cells, strict=True):
        theirs, ours = (cell["sides"][name] for name in ("torch.nn", "adl_kernels"))
        for name, side, style in (
            ("torch.nn", theirs, {"color": "#9aa5b1", "linewidth": 4.0}),
            ("adl_kernels", ours, {"color": "#c2410c", "linewidth": 1.0}),
        ):
            speed = f"{side['characters_per_second'] / 1000:.0f}k characters/s"
            steps = range(1, len(side["losses"]) + 1)
            above.plot(steps, side["losses"], label=f"{name}, {speed}", **style)
        above.set_title(f"{cell['cell'].upper()}: {cell['speedup']:.2f} times as fast", loc="left")
        above.legend(frameon=False)
        for name, losses, color in (
            ("adl_kernels", ours["losses"], "#c2410c"),
            ("torch.nn, weights moved by one ulp", cell["control_losses"], "#3b6ea8"),
        ):
            # Losses that agree to the last bit lie on the floor of the logarithmic axis.
            pairs = zip(losses, theirs["losses"], strict=False)
            apart = [max(abs(a - b), 5e-8) for a, b in pairs]
            below.plot(range(1, len(apart) + 1), apart, color=color, linewidth=1.0, label=name)
        below.set(yscale="log", xlabel="training step")
    axes[1, 0].legend(frameon=False, fontsize="small", loc="lower right")
    axes[0, 0].set_ylabel("training loss, nats per character")
    axes[1, 0].set_ylabel("difference from\ntorch.nn, nats")
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.01)
        axis.grid(axis="y", color="#e5e7eb", linewidth=0.6)
        axis.set_axisbelow(True)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def parser() -> argparse.ArgumentParser:
    form = argparse.ArgumentDefaultsHelpFormatter
    found = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    add = found.add_argument
    add("--steps", type=int, default=400, metavar="N", help="training steps of each model")
    add("--hidden", type=int, default=256, metavar="H", help="units per layer")
    add("--layers", type=int, default=2, metavar="L", help="layers")
    add("--batch", type=int, default=32, metavar="B", help="streams of text read side by side")
    add("--length", type=int, default=64, metavar="T", help="characters per step and stream")
    cells = ("lstm", "gru")
    add("--cells", type=options.words(cells), default=cells, metavar="LIST", help="of lstm,gru")
    add("--threads", type=int, metavar="N", help="number of threads, else torch's choice")
    add("--seed", type=int, default=0, metavar="N", help="seed of weights and samples")
    add("--prompt", metavar="TEXT", help="text to complete, else three beginnings")
    out = Path("demo_out")
    add("--out", type=Path, default=out, metavar="DIR", help="folder for the results")
    options.add_steady_malloc(found)
    return found


def main(arguments: Sequence[str]) -> int:
    asked = parser().parse_args(arguments)
    if asked.steady_malloc:
        machine.use_steady_malloc()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    corpus = Corpus.read(asked.batch)
    facts = machine.facts(["examples/demo.py", *arguments]) | {"threads": torch.get_num_threads()}
    print(machine.line(facts) + f", {facts['threads']} threads")
    print(
        f"Python's language reference: {corpus.train.numel():,} characters to learn from, "
        f"{corpus.valid.numel():,} held out, {len(corpus.characters)} different ones"
    )
    found = [run_cell(cell, corpus, asked) for cell in asked.cells]
    path = asked.out / "demo.json"
    store.write_json(path, {"machine": facts, "cells": found})
    draw(path.with_suffix(".png"), found)
    print(f"\nwritten: {path}, {path.with_suffix('.png')}")
    return int(not all(cell["agree"] for cell in found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
