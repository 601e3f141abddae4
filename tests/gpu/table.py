"""The end of a run: what it found in at most sixty lines, and the calibration as bench reads it."""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

from gpu.runner import Outcome, Run

MOST_LINES, WIDTH = 60, 150
Row = dict[str, Any]


def write(run: Run) -> list[str]:
    """The lines, which also go to a file; whatever goes wrong, there is a table."""
    found: list[str] = []
    for part in (_head, _calibration, _status, _tiers, _times, _goals, _failures):
        try:
            found += [line[:WIDTH] for line in part(run)]
        except Exception:  # of a result that nobody expected: the others still tell something
            found.append(f"{part.__name__}: {traceback.format_exc().splitlines()[-1]}"[:WIDTH])
    found = (
        found
        if len(found) <= MOST_LINES
        else [*found[: MOST_LINES - 1], f"... more in {run.file('log.txt')}"]
    )
    run.file("table.txt").write_text("\n".join(found) + "\n")
    return found


def _of(run: Run, *lines: str) -> list[Outcome]:
    return [outcome for outcome in run.outcomes if outcome.line in lines]


def _facts(run: Run) -> Row:
    found: Row = {}
    for outcome in _of(run, "facts"):
        for row in outcome.rows:
            found |= row
    return found


def _head(run: Run) -> Iterator[str]:
    known = _facts(run)
    gpu = known.get("gpu")
    yield f"==== {run.seconds:.0f} of {run.total_s:.0f} s, results in {run.out}"
    if known and not gpu:
        yield "REHEARSAL: no GPU is present; what could ran on the CPU, and nothing is measured"
    if known:
        yield ", ".join(f"{name} {value}" for name, value in known.items() if value is not None)
    if run.environment.get("ADL_CUDA_CLUSTERS") == "0":
        yield "CLUSTERS ARE OFF: an exchange within them did not work (see wrappers in the log)"


def _calibration(run: Run) -> Iterator[str]:
    """Writes it down; the constants of the model that it gives."""
    rows, machine = [], dict[str, Any]()
    for outcome in _of(run, "calibrate"):
        program = f"calibrate_{outcome.name}"
        for row in outcome.rows:
            if "name" in row:
                rows.append({"program": program} | row)
            else:
                machine |= row
    if not any(row["value"] is not None for row in rows):
        return
    from bench import store
    from bench.gpu import calibration

    content = {"machine": machine | {"facts": _facts(run)}, "problems": [], "calibration": rows}
    store.write_json(run.out / "calibration.json", content)
    yield from calibration.cost_lines(rows)


def _status(run: Run) -> Iterator[str]:
    """A line for each line of the plan, of the tiers only how many are good."""
    names = dict.fromkeys(outcome.line for outcome in run.outcomes)
    for name in names:
        outcomes = _of(run, name)
        seconds = sum(outcome.seconds for outcome in outcomes)
        bad = [o for o in outcomes if o.result != "ok"]
        said = f"ok, {len(outcomes)} of them" if len(outcomes) > 1 else "ok"
        if bad and len(outcomes) > 1:
            kinds = dict.fromkeys(o.result for o in bad)
            said = f"{len(bad)} of {len(outcomes)} not ok: {'; '.join(kinds)}"
        elif bad:
            said = bad[0].result
        last = [o.rest[-1] for o in outcomes if o.rest][-1:]
        short = f" | {last[0].strip()}" if last and len(outcomes) == 1 else ""
        yield f"{name:<18}{seconds:6.1f} s  {said}{short}"


def _tiers(run: Run) -> Iterator[str]:
    """The error's share of what is allowed, forward and backward, by tier."""
    rows = [row for outcome in _of(run, "tiers") for row in outcome.rows]
    for tier in dict.fromkeys(row["tier"] for row in rows):
        cells = []
        for row in rows:
            if row["tier"] == tier:
                errors = "/".join(
                    f"{row[k]:.2f}" if k in row else "?" for k in ("forward", "backward")
                )
                cells.append(
                    f"{row['cell']} {row['dtype']} {errors}{'' if row['ok'] else ' WRONG'}"
                )
        yield f"{tier}: {', '.join(cells)}"


def _read(run: Run, name: str) -> Row:
    """What a benchmark wrote in this run."""
    path = run.out / f"{name}.json"
    return json.loads(path.read_text()) if _of(run, name) and path.exists() else {}


def _times(run: Run) -> Iterator[str]:
    """A line per case: µs a step, ours and torch's, and of graphs of the calls."""
    yield from _time_lines(_read(run, "times").get("rows", []))


def _time_lines(rows: Sequence[Row]) -> Iterator[str]:
    cases: dict[str, list[str]] = {}
    for row in rows:
        key = f"{row['dtype']} {row['cell']} {row['shape']}"
        cases.setdefault(key, []).append(f"{row['mode']} {_time(row)}")
    if cases:
        yield "µs a step: ours, torch's (times faster); the same replayed from graphs"
    for key, found in cases.items():
        yield f"{key:<42} {' | '.join(found)}"


def _time(row: Row) -> str:
    if row["status"] != "ok":
        return f"{row['status']} {row['check']}"
    ours, theirs = (row[side]["us_per_step"] for side in ("ours", "torch"))
    text = f"{ours:.3g} {theirs:.3g} ({row['ratio']:.2f})"
    graph = row.get("graph", {})
    if "ratio" in graph:
        text += f", {graph['ours_us']:.3g} {graph['torch_us']:.3g} ({graph['ratio']:.2f})"
    return text + " no graph" * ("problem" in graph)


def _goals(run: Run) -> Iterator[str]:
    content = _read(run, "goals")
    for label, *judged in content.get("goals", []):
        yield f"{label}: {' | '.join(judged)}"
    yield from _time_lines(content.get("rows", []))


TELLING = re.compile(r"WRONG|FAIL|rror|Timeout|timeout|NaN")


def _failures(run: Run) -> Iterator[str]:
    """The last telling lines of what went wrong."""
    for outcome in run.outcomes:
        if outcome.good or outcome.result.startswith("NOT RUN"):
            continue
        lines = [row["problem"] for row in outcome.rows if "problem" in row]
        wrong = [row for row in outcome.rows if row.get("note", "").startswith("FAILED")]
        lines += [f"{row['name']}: {row['note']}" for row in wrong]
        lines += [s for s in outcome.rest if TELLING.search(s)] or list(outcome.rest[-2:])
        for line in lines[-8 if "tests" in outcome.line else -2 :]:
            yield f"{outcome.line}, {outcome.name}: {line.strip()}"
