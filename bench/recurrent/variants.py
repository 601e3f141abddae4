"""Training with what torch.nn does not have: `python -m bench variants`.

Against our plain layer with as many gates, and against a Python loop in torch, whose step is also
compiled for one case. To bench/results/cpu-variants.json.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from torch import Tensor

import adl_kernels
from bench import machine, options, report, store
from bench.goals import geometric_mean
from bench.measure import Budget, Step, race, speedup
from bench.recurrent.cases import NAMED, Case
from bench.recurrent.loops import Loop
from bench.store import Content, Row

HELP = "time cells and sequences that torch.nn has not (4 minutes)"
CASES = ("single-128", "small-128", "medium-256")
COMPILED = ("small-128", 2)  # case and threads for which the loop's step is compiled too


@dataclass(frozen=True)
class Variant:
    """A row of the table: a class, its options, the plain layer with as many gates."""

    name: str
    kind: str
    options: dict[str, Any] = field(default_factory=dict)
    plain: str = ""  # the class, where that is another
    most: float = 1.25  # the goal for our time / the plain layer's
    given: tuple[str, ...] = ()  # of forward: "lengths" or "reset"


NORM, BEFORE = 1.6, 1.5

VARIANTS = (
    Variant("RNN, sigmoid", "RNN", {"nonlinearity": "sigmoid"}),
    Variant(
        "LSTM, sigmoid and relu",
        "LSTM",
        {"cell_activation": "sigmoid", "hidden_activation": "relu"},
    ),
    Variant("LSTM, peepholes", "LSTM", {"peephole": True}),
    Variant("LSTM, coupled gates", "LSTM", {"forget_gate": "coupled"}, "GRU"),
    Variant("LSTM, no forget gate", "LSTM", {"forget_gate": "none"}, "GRU"),
    Variant("GRU, reset before", "GRU", {"reset_after": False}, most=BEFORE),
    Variant("LSTM, layer norm", "LSTM", {"layer_norm": True}, most=NORM),
    Variant("GRU, layer norm", "GRU", {"layer_norm": True}, most=NORM),
    Variant("RNN, layer norm", "RNN", {"layer_norm": True}, most=NORM),
    Variant("LSTM, zoneout", "LSTM", {"zoneout": 0.1}),
    Variant("GRU, zoneout", "GRU", {"zoneout": 0.1}),
    Variant("LSTM, recurrent dropout", "LSTM", {"recurrent_dropout": 0.2}),
    Variant("LSTM, weight dropout", "LSTM", {"weight_dropout": 0.5}),
    Variant("LSTM, bptt_steps=20", "LSTM", {"bptt_steps": 20}),
    Variant("LSTM, all states", "LSTM", {"return_all_states": True}),
    Variant("LSTM, reset", "LSTM", given=("reset",)),
    Variant("LSTM, lengths, all T", "LSTM", given=("lengths",)),
)


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--quick", action="store_true", help="a smoke run, not saved")
    options.add_steady_malloc(command)


def main(asked: argparse.Namespace) -> int:
    facts = machine.facts(asked.words)
    print(machine.line(facts))
    budget, threads = Budget(0.4, (5, 25)), (1, 2)
    if asked.quick:
        budget, threads = Budget(0.0, (1, 1)), (1,)
    found = report.printed(
        measure(budget, threads, compiled=not asked.quick),
        lambda row: (
            f"{row['variant']:26} {row['case']:12} {row['threads']} threads: "
            f"{row['to_plain']:.2f} of plain, loop / ours {row['loop_to_ours']:.1f}"
        ),
    )
    print(table(found))
    if not asked.quick:
        content = {"machine": facts, "variants": found}
        store.save(options.RESULTS / "cpu-variants.json", content)
    return 0


def measure(budget: Budget, threads: Sequence[int], compiled: bool) -> Iterator[Row]:
    with machine.threads_kept():
        for name, variant, n in product(CASES, VARIANTS, threads):
            torch.set_num_threads(n)
            yield _row(variant, NAMED[name], n, budget, compiled and (name, n) == COMPILED)


def _row(variant: Variant, case: Case, threads: int, budget: Budget, compiled: bool) -> Row:
    torch.manual_seed(0)
    ours = getattr(adl_kernels, variant.kind)(case.I, case.H, **variant.options)
    plain = getattr(adl_kernels, variant.plain or variant.kind)(case.I, case.H)
    x = torch.randn(case.T, case.B, case.I, requires_grad=True)
    given: dict[str, Tensor] = {}
    if "reset" in variant.given:
        given["reset"] = torch.rand(case.T, case.B) < 0.02
    if "lengths" in variant.given:
        given["lengths"] = torch.full((case.B,), case.T)
    check(copy.deepcopy(ours).double(), x.detach().double(), given)
    step = _step(ours, x, given)
    mine, other = race(step, _step(plain, x, {}), budget)
    row: Row = {"variant": variant.name, "case": case.name, "shape": str(case), "threads": threads}
    row |= {"to_plain": mine.median / other.median, "ours_s": mine.median, "goal": variant.most}
    row["loop_to_ours"] = speedup(step, _step(Loop(ours), x, given), budget)
    if compiled:
        try:
            loop = _step(Loop(ours, compiled=True), x, given)
            row["compiled_to_ours"] = speedup(step, loop, budget)
        except Exception as error:  # what Inductor cannot compile is a result too
            row["compiled_error"] = type(error).__name__
        torch.compiler.reset()
    return row


def check(ours: adl_kernels.LSTM, x: Tensor, given: dict[str, Tensor]) -> None:
    """Both compute the same, where nothing is random; ValueError if they do not."""
    for name in ("zoneout", "recurrent_dropout", "weight_dropout"):
        setattr(ours, name, 0.0)
    with torch.no_grad():
        mine, theirs = ours(x, **given)[0], Loop(ours)(x, **given)[0]
    if not torch.allclose(mine, theirs):
        raise ValueError(f"{ours}: the loop computes something else")


def _step(module: torch.nn.Module, x: Tensor, given: dict[str, Tensor]) -> Step:
    def step() -> None:
        y = module(x, **given)[0]
        inputs = [x, *module.parameters()]
        torch.autograd.grad(y, inputs, torch.ones_like(y), allow_unused=True)

    return step


def markdown(content: Content) -> str:
    return table(content["variants"])


def table(rows: Sequence[Row]) -> str:
    """One line per variant: worst and geometric mean over cases and threads."""
    lines = []
    for variant in VARIANTS:
        own = [row for row in rows if row["variant"] == variant.name]
        ratios = [row["to_plain"] for row in own]
        loops = [row["loop_to_ours"] for row in own]
        compiled = [row["compiled_to_ours"] for row in own if "compiled_to_ours" in row]
        line = [
            variant.name,
            f"{geometric_mean(ratios):.2f} / {max(ratios):.2f}",
            f"{variant.most}",
            "met" if max(ratios) <= variant.most else "MISSED",
            f"{geometric_mean(loops):.1f} / {min(loops):.1f}",
            f"{geometric_mean(compiled):.1f}" if compiled else "does not compile",
        ]
        lines.append(line)
    heads = ("training", "our time / plain layer's: mean / worst", "goal", "")
    return report.table([*heads, "loop / ours: mean / least", "compiled step / ours"], lines)
