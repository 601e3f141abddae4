"""`python tests/gpu OUT [first|second|all]`: what there is to know of a GPU, in minutes.

`gpu_kit/run` and `make gpu` call it. Every command has a limit of its own (SIGINT, then SIGKILL),
nothing is downloaded, and all results are in the folder OUT: <plan>-log.txt, <plan>-results.json,
and what the benchmarks write. A table ends it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from gpu import lines, table  # noqa: E402 (needs the paths above)
from gpu.runner import Outcome, Run  # noqa: E402

# Where the exchanges that clusters rest on fail: csrc/common/cuda_device.h then has no clusters.
NO_CLUSTERS = {"ADL_CUDA_CLUSTERS": "0"}
EXCHANGES = ("cluster_relay", *(f"exchange between {size}" for size in (4, 8, 16)))


def prepare(run: Run, from_source: bool) -> Outcome:
    """Until adl_kernels can be imported: what was built, or what can be built here."""
    if from_source:
        # Two, so that a part of the time is left for what follows.
        run.line(lines.build(limit_s=600))
        run.line(lines.build_programs())
    (found,) = run.line(lines.facts())
    if not found.good and not from_source:
        run.line(lines.build())
        (found,) = run.line(lines.facts())
    return found


def clusters_fail(found: Outcome) -> bool:
    """Whether `wrappers` has not said of every exchange within clusters that it is right."""
    if found.result.startswith("NOT RUN") or any("clusters: skipped" in s for s in found.rest):
        return False
    return not all(f"{name}: ok" in found.rest for name in EXCHANGES)


def run_plan(run: Run, plan: str, only: Sequence[str] = ()) -> None:
    facts = prepare(run, plan == "all")
    if not facts.good:
        return
    run.gpu = any(row.get("gpu") for row in facts.rows)
    machine = lines.Machine(run.gpu, run.out)
    for line in lines.PLANS[plan][0](machine):
        if only and line.name not in only:
            continue
        outcomes = run.line(line)
        if line.name == "wrappers" and machine.gpu and clusters_fail(outcomes[0]):
            run.environment.update(NO_CLUSTERS)


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python tests/gpu", description=__doc__)
    parser.add_argument("out", type=Path, help="the folder for all results")
    parser.add_argument("plan", nargs="?", choices=lines.PLANS, default="first")
    names = list(dict.fromkeys(line.name for line in lines.everything(lines.Machine())))
    parser.add_argument("--only", nargs="+", choices=names, help="these lines of the plan alone")
    parser.add_argument("--seconds", type=float, help="for all that is run")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    asked = options(arguments)
    problem = lines.why_not() if asked.plan == "all" else ""
    if problem:
        print(problem)
        return 1
    seconds = asked.seconds or lines.PLANS[asked.plan][1]
    run = Run(asked.out.resolve(), seconds, asked.plan)
    try:
        run_plan(run, asked.plan, asked.only or ())
    finally:
        print("\n".join(table.write(run)), flush=True)
    return int(not all(outcome.good for outcome in run.outcomes))


if __name__ == "__main__":
    sys.exit(main())
