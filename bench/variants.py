"""Training with what torch.nn's layers have not: against our plain layer, and against a loop."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import adl_kernels
from bench.cases import NAMED, Case
from bench.loops import Loop
from bench.run import Settings, Side, quantiles, race

CASES = ("single-128", "small-128", "medium-256")
COMPILED = (
    "small-128",
    2,
)  # the case and number of threads for which the loop's step is compiled too


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

Row = dict[str, Any]


def measure(settings: Settings, compiled: bool) -> Iterator[Row]:
    for name in CASES:
        case = NAMED[name]
        for variant in VARIANTS:
            for threads in settings.threads:
                torch.set_num_threads(threads)
                yield _row(
                    variant, case, threads, settings, compiled and (name, threads) == COMPILED
                )


def _row(variant: Variant, case: Case, threads: int, settings: Settings, compiled: bool) -> Row:
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
    one = (_step(ours, x, given), _step(plain, x, {}))
    row: Row = {"variant": variant.name, "case": case.name, "shape": str(case), "threads": threads}
    row["to_plain"], row["ours_s"] = _ratio(*one, settings)
    row["goal"] = variant.most
    loop, _ = _ratio(_step(Loop(ours), x, given), one[0], settings)
    row["loop_to_ours"] = loop
    if compiled:
        try:
            row["compiled_to_ours"], _ = _ratio(
                _step(Loop(ours, compiled=True), x, given), one[0], settings
            )
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


def _step(module: torch.nn.Module, x: Tensor, given: dict[str, Tensor]) -> Any:
    def step() -> None:
        y = module(x, **given)[0]
        inputs = [x, *module.parameters()]
        torch.autograd.grad(y, inputs, torch.ones_like(y), allow_unused=True)

    return step


def _ratio(a: Any, b: Any, settings: Settings) -> tuple[float, float]:
    """Median time of a / of b, sampled in turns; and that of a."""
    sides = Side(a), Side(b)
    race(*sides, settings)
    medians = [quantiles(side.seconds)[1] for side in sides]
    return medians[0] / medians[1], medians[0]


def markdown(rows: list[Row]) -> str:
    """One line per variant: worst and geometric mean over cases and threads."""
    lines = [
        "| training | our time / plain layer's: mean / worst | goal | | loop / ours: mean / least "
        "| compiled step / ours |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for variant in VARIANTS:
        own = [row for row in rows if row["variant"] == variant.name]
        ratios = [row["to_plain"] for row in own]
        loops = [row["loop_to_ours"] for row in own]
        compiled = [row["compiled_to_ours"] for row in own if "compiled_to_ours" in row]
        verdict = "met" if max(ratios) <= variant.most else "MISSED"
        lines.append(
            f"| {variant.name} | {_mean(ratios):.2f} / {max(ratios):.2f} | {variant.most} | "
            f"{verdict} | {_mean(loops):.1f} / {min(loops):.1f} | "
            f"{f'{_mean(compiled):.1f}' if compiled else 'does not compile'} |"
        )
    return "\n".join(lines)


def _mean(values: list[float]) -> float:
    return torch.tensor(values, dtype=torch.float64).log().mean().exp().item()
