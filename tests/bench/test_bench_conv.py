"""The measurement of convolutions: its grid, its check of results, goals and files."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from lanes import slow

# bench is not installed. Appended, so that it cannot shadow an installed adl_kernels.
sys.path.append(str(Path(__file__).parents[2]))

from bench import conv, conv_blocks, conv_cases, conv_goals, run
from bench.__main__ import main

pytestmark = pytest.mark.cpu_only

TINY = [
    conv_cases.ConvCase("tiny", 4, (6, 5), 3),
    conv_cases.ConvCase("tiny-s2", 8, (9, 8), 5, stride=2),
    conv_cases.ConvCase("tiny-line", 4, (9,), 4, causal=True),
    conv_cases.ConvCase("tiny-x2-d2", 4, (9, 9), 3, dilation=2, multiplier=2),
    conv_cases.ConvCase("tiny-volume", 4, (4, 5, 6), 3),
]
QUICKLY = run.Settings((), threads=(1,), seconds=0.0, rounds=(1, 1))


@pytest.fixture(autouse=True)
def keep_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def rows_of(case, dtype="f32", layout="first"):
    jobs = [conv_cases.ConvJob(case, dtype, layout, 2)]
    return list(conv.measure(jobs, conv_cases.OPS, QUICKLY))


@pytest.mark.parametrize("case", TINY, ids=str)
@pytest.mark.parametrize("layout", [*slow("first"), "last"])
@pytest.mark.parametrize("dtype", [*slow("f32"), "bf16"])
def test_right_results_are_timed(case, layout, dtype):
    rows = rows_of(case, dtype, layout)
    assert [row["op"] for row in rows] == list(conv_cases.OPS)
    for row in rows:
        assert row["status"] == "ok", row["check"]
        assert row["ratio"] > 0 and row["case"] in conv.line(row)


def _listed(found):
    return [found] if isinstance(found, torch.Tensor) else list(found)


@pytest.mark.parametrize("op", conv_cases.OPS)
def test_a_wrong_result_gets_no_speed_up(op, monkeypatch):
    honest = conv.ours

    def slightly_wrong(problem, op):
        run = honest(problem, op)

        def spoilt():
            found = run()
            return found * 1.001 if op == "forward" else tuple(t * 1.001 for t in _listed(found))

        return spoilt

    monkeypatch.setattr(conv, "ours", slightly_wrong)
    rows = rows_of(TINY[0])
    row = next(row for row in rows if row["op"] == op)
    assert row["status"] == "WRONG" and "ratio" not in row
    assert "WRONG" in conv.line(row)


def test_the_grid_has_what_was_asked_for():
    cases = conv_cases.CASES
    assert len({case.name for case in cases}) == len(cases)
    names = " ".join(conv_cases.NAMED)
    for part in ("mobile-1024@7", "efficient-240@28-k5-s2", "convnext-96@56-k7", "k31", "volume"):
        assert part in names
    assert {case.k for case in cases if case.n == 1} == {3, 4, 31}
    for case in cases:
        x = torch.empty(1, case.C, *case.size, device="meta")
        weight = torch.empty(case.C * case.multiplier, 1, *[case.k] * case.n, device="meta")
        y = torch.ops.adl_kernels.depthwise_conv(x, weight, None, *case.window)
        assert tuple(y.shape[2:]) == case.out, case
    f16 = [job for job in conv_cases.jobs(None, ("f16",))]
    assert {job.case.name for job in f16} == {"mobile-32@112", "mobile-512@14"}
    with pytest.raises(ValueError, match="a case is one of mobile-32@112"):
        conv_cases.jobs("mobile", None)


def test_arithmetic_by_hand():
    case = conv_cases.ConvCase("", 3, (4, 6), 5, stride=2, multiplier=2)
    assert case.out == (2, 3)
    assert conv_cases.flops(case, 7, "forward") == 2 * 7 * 6 * 6 * 25
    assert conv_cases.flops(case, 7, "train") == 3 * conv_cases.flops(case, 7, "weight")
    assert conv_cases.elements(case, 7, "forward") == 7 * (3 * 24 + 6 * 6)


def row(job, op, ratio, **more):
    found = {"case": job.case.name, "dtype": job.dtype, "layout": job.layout, "B": job.B, "op": op}
    found |= {"threads": 1, "malloc": "steady", "status": "ok", "disturbed": False, "ratio": ratio}
    return found | {"ours": {"median_s": 1e-3}} | more


def test_goals_are_judged_by_the_worst_and_by_the_mean():
    goal = conv_goals.GOALS[0]
    jobs = [job for job in conv_cases.jobs(None, None, ("first",)) if goal.chooses(job.case, {})]
    assert {job.case.k for job in jobs} == {5, 7, 13, 31}
    rows = [row(job, "weight", 20.0) for job in jobs]
    rows += [row(job, "forward", 0.1) for job in jobs]
    assert conv_goals.judge(goal, "first", rows) == "20.00 / 20.00 (20) met"
    assert conv_goals.judge(goal, "last", rows) == ""
    rows[0]["ratio"], rows[1]["ratio"] = 19.0, 30.0
    assert "/ 19.00 (20) met on average" in conv_goals.judge(goal, "first", rows)
    rows[0]["ratio"] = 0.1
    assert conv_goals.judge(goal, "first", rows).endswith("MISSED")
    rows[0] |= {"disturbed": True}
    assert conv_goals.judge(goal, "first", rows).endswith(f"met, 1 of {len(jobs)} not counted")
    rows[0] |= {"status": "WRONG"}
    assert "MISSED, 1 WRONG" in conv_goals.judge(goal, "first", rows)


def test_every_goal_is_about_something():
    for goal in conv_goals.GOALS:
        for layout, bound in (("first", goal.first), ("last", goal.last)):
            jobs = conv_cases.jobs(None, None, (layout,))
            rows = [row(job, op, 3.0) for job in jobs for op in conv_cases.OPS]
            assert (conv_goals.judge(goal, layout, rows) != "") == (bound is not None), goal.label


@pytest.mark.slow
def test_blocks_and_a_body_are_timed(monkeypatch):
    small = conv_blocks.Block(8, 16, 6, 2), conv_blocks.Block(16, 16, 3)
    monkeypatch.setattr(conv_blocks, "BODY_BLOCKS", (conv_blocks.Block(32, 8, 112, 2),))
    monkeypatch.setattr(conv_blocks, "BLOCKS", small)
    monkeypatch.setattr(conv_blocks, "_compiled", lambda model: model)
    rows = list(conv_blocks.measure(QUICKLY))
    assert {row["op"] for row in rows} == {"block", "compiled", "body"}
    assert all(row["status"] == "ok" for row in rows), [row["check"] for row in rows]
    assert len(rows) == 2 * 2 * 2 * 3 + 1
    for found in rows:
        found["disturbed"] = False
    assert all(goal.label in conv_goals.goal_table(rows) for goal in conv_goals.BLOCK_GOALS)


def test_command(tmp_path, capsys):
    path = tmp_path / "conv.json"
    ask = ["--cases", "mobile-1024@7", "--dtypes", "f32", "--batches", "1", "--threads", "1"]
    assert main(["conv", "--quick", *ask, "--ops", "forward,weight", "--json", str(path)]) == 0
    content = json.loads(path.read_text())
    assert len(content["convolutions"]) == 4 and content["machine"]["command"]
    assert all(math.isfinite(row["ratio"]) for row in content["convolutions"])
    capsys.readouterr()
    assert main(["table", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "| plain | mobile-1024@7 | f32 | last | 1 | " in printed
