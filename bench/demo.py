"""A character model learns to complete text, once with torch.nn and once with adl_kernels.

Both sides start from the same weights, see the same batches and must end with the same knowledge;
one of them sooner.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import sys
from dataclasses import asdict, dataclass
from typing import Any

import torch
from tqdm import tqdm

import adl_kernels
from bench import curves, machine, store
from bench.charmodel import CharModel, Corpus, Side, read_corpus

BLOCK = 20  # steps of one side before the other's turn
CONTROL_STEPS = 100
PROMPTS = ("The stat", "An expr", "A funct")


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
        return (
            self.first_step <= 2e-6 and self.early <= 10 * self.control + 1e-5 and self.bits <= 0.03
        )

    def __str__(self) -> str:
        return (
            f"{'the two learn the same' if self.ok else 'THE TWO DO NOT LEARN THE SAME'}\n"
            f"    first loss: {self.first_step:.0e} apart, relative to its size\n"
            f"    early losses: at most {self.early:.0e} nats apart; "
            f"torch.nn with weights moved by one ulp: {self.control:.0e}\n"
            f"    held-out text: {self.bits:.4f} bits per character apart"
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


def make_sides(cell: str, corpus: Corpus, options: argparse.Namespace) -> list[Side]:
    """torch.nn, adl_kernels and the control, all from one set of weights."""
    torch.manual_seed(options.seed)
    model = CharModel(cell, len(corpus.characters), options.hidden, options.layers)
    control = move_one_ulp(model)
    ours = copy.deepcopy(model)
    print(f"\n{adl_kernels.convert(ours)}")
    named = {"torch.nn": model, "adl_kernels": ours, "control": control}
    return [Side(name, m, corpus.train, options.length) for name, m in named.items()]


def train(sides: list[Side], steps: int, label: str) -> None:
    """All sides in turns, a block of steps each, so that drift of the machine meets all alike."""
    theirs, _, control = sides
    control_steps = min(steps, CONTROL_STEPS)
    quiet = not sys.stderr.isatty() or "CI" in os.environ
    with tqdm(total=2 * steps + control_steps, desc=label, disable=quiet, leave=False) as bar:
        for first in range(0, steps, BLOCK):
            for side in sides:
                last = control_steps if side is control else steps
                count = max(0, min(BLOCK, last - first))
                if count:
                    side.learn(count)
                    bar.update(count)
            bar.set_postfix(loss=f"{theirs.losses[-1]:.3f}")


def compare(sides: list[Side], bits: dict[str, float]) -> Verdict:
    theirs, ours, control = (side.losses for side in sides)
    early = range(len(control))
    return Verdict(
        first_step=abs(ours[0] - theirs[0]) / abs(theirs[0]),
        early=max(abs(ours[k] - theirs[k]) for k in early),
        control=max(abs(control[k] - theirs[k]) for k in early),
        bits=abs(bits["adl_kernels"] - bits["torch.nn"]),
    )


def run_cell(cell: str, corpus: Corpus, options: argparse.Namespace) -> dict[str, Any]:
    """Train, compare, print; everything measured comes back for the files."""
    sides = make_sides(cell, corpus, options)
    others = machine.Disturbance()
    train(sides, options.steps, cell.upper())
    disturbed = others.took_one_of(torch.get_num_threads())
    theirs, ours, control = sides
    bits = {side.name: side.bits_per_character(corpus.valid) for side in (theirs, ours)}
    verdict = compare(sides, bits)
    prompts = (options.prompt,) if options.prompt else PROMPTS
    found = {
        "cell": cell,
        "parameters": sum(w.numel() for w in theirs.model.parameters()),
        "sides": {side.name: _figures(side, bits[side.name]) for side in (theirs, ours)},
        "speedup": ours.characters_per_second / theirs.characters_per_second,
        "disturbed": disturbed,
        "control_losses": control.losses,
        "agree": verdict.ok,
        "agreement": asdict(verdict),
        "completions": {p: _complete((theirs, ours), corpus, p) for p in prompts},
        "sample": corpus.decode(ours.complete(corpus.encode(prompts[0]), 240, sampled=True)),
    }
    print(_text(found, verdict, prompts[0]), flush=True)
    return found


def _figures(side: Side, bits: float) -> dict[str, Any]:
    recent = side.losses[-BLOCK:]
    return {
        "loss": sum(recent) / len(recent),
        "bits_per_character": bits,
        "characters_per_second": side.characters_per_second,
        "page_faults": statistics.median(side.faults),
        "seconds_per_step": side.seconds,
        "losses": side.losses,
    }


def _complete(sides: tuple[Side, ...], corpus: Corpus, prompt: str) -> dict[str, str]:
    codes = corpus.encode(prompt)
    return {s.name: corpus.decode(s.complete(codes, 24, sampled=False)) for s in sides}


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


def main(options: argparse.Namespace) -> int:
    """Run the demo; the exit status is 1 if the two sides do not learn the same."""
    if options.threads:
        torch.set_num_threads(options.threads)
    corpus = read_corpus(options.batch)
    facts = machine.facts(options.arguments) | {"threads": torch.get_num_threads()}
    print(machine.line(facts) + f", {facts['threads']} threads")
    print(
        f"Python's language reference: {corpus.train.numel():,} characters to learn from, "
        f"{corpus.valid.numel():,} held out, {len(corpus.characters)} different ones"
    )
    found = [run_cell(cell, corpus, options) for cell in options.cells]
    store.write_json(options.out / "demo.json", {"machine": facts, "cells": found})
    curves.draw(options.out / "demo.png", found)
    print(f"\nwritten: {options.out / 'demo.json'}, {options.out / 'demo.png'}")
    return int(not all(cell["agree"] for cell in found))
