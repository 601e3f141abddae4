"""Models of public libraries, in eval, converted and not: `python -m bench clients`.

Needs the libraries: `make clients`.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

import adl_kernels as adl
from bench import machine, options, store
from bench.clients.models import CLIENTS, load_those_that_others_import
from bench.measure import Budget, timed
from bench.report import printed, spread_out
from bench.store import Content, Row

HELP = "models of public libraries against themselves with torch's layers (2 minutes)"
# Of the largest output: what a few hundred roundings add up to.
MOST_WRONG = 1e-4
TRIES = 3  # of a row that other programs disturb


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--seconds-per-case", type=float, default=4.0, metavar="S")
    command.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    command.add_argument("--save", action="store_true", help="to bench/results/cpu-clients.json")


def main(asked: argparse.Namespace) -> int:
    load_those_that_others_import()
    with machine.threads_kept(), torch.no_grad():
        rows = printed(measure(asked.threads, Budget(asked.seconds_per_case)), line)
    content = {"machine": machine.facts(asked.words), "clients": rows}
    if asked.save:
        store.save(options.RESULTS / "cpu-clients.json", content)
    return 0


def measure(threads: list[int], budget: Budget) -> Iterator[Row]:
    for client in CLIENTS:
        torch.manual_seed(0)
        theirs = client.model()
        ours, args = copy.deepcopy(theirs), client.args()
        replaced = len(adl.convert(ours).replaced)
        error = _difference(_outputs(ours, args), _outputs(theirs, args))
        row = {
            "library": client.library,
            "version": importlib.metadata.version(client.library),
            "model": client.name,
            "input": " ".join(str(list(t.shape)) for t in args if t.dim() > 1),
            "replaced": replaced,
            "error": error,
            "status": "ok" if error < MOST_WRONG else "wrong result",
        }
        for count in threads:
            torch.set_num_threads(count)
            for _ in range(TRIES):
                found = timed(
                    row | {"threads": count},
                    lambda ours=ours, args=args: ours(*args),
                    lambda theirs=theirs, args=args: theirs(*args),
                    budget,
                )
                if not found.get("disturbed"):
                    break
            yield found


def _outputs(model: torch.nn.Module, args: tuple) -> list[Tensor]:
    torch.manual_seed(0)  # Tacotron2 drops out in eval too
    found = (t for t in tree_leaves(model(*args)) if isinstance(t, Tensor))
    return [t for t in found if t.is_floating_point()]


def _difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest, relative to the largest output."""
    pairs = zip(found, expected, strict=True)
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)


def line(row: Row) -> str:
    return (
        f"{row['library']:12} {row['model']:24} {row['threads']} {row['error']:.1e} {_ratio(row)}"
    )


def _ratio(row: Row) -> str:
    return f"{row['ratio']:.2f}{'*' * row['disturbed']}" if row["status"] == "ok" else row["status"]


def markdown(content: Content) -> str:
    names = ["library", "model", "input", "layers replaced", "largest difference"]
    entries = []
    for row in content["clients"]:
        key = [f"{row['library']} {row['version']}", row["model"], row["input"]]
        key += [str(row["replaced"]), f"{row['error']:.1e}"]
        threads = f"torch's time / ours, {row['threads']} thread{'s' * (row['threads'] > 1)}"
        entries.append((key, threads, _ratio(row)))
    found = spread_out(names, entries)
    if any(row.get("disturbed") for row in content["clients"]):
        found += "\n\n\\*: other programs took cores that were needed; measure again"
    return found
