"""The measurement of convolutions: its grid, its check of results, goals and files."""

from __future__ import annotations

import json
import math

import pytest
import torch
from lanes import slow

from bench import goals
from bench.__main__ import main
from bench.depthwise import blocks, cases, operators
from bench.depthwise import goals as conv_goals
from bench.measure import Budget

pytestmark = pytest.mark.cpu_only

TINY = [
    cases.ConvCase("tiny", 4, (6, 5), 3),
    cases.ConvCase("tiny-s2", 8, (9, 8), 5, stride=2),
    cases.ConvCase("tiny-line", 4, (9,), 4, causal=True),
    cases.ConvCase("tiny-x2-d2", 4, (9, 9), 3, dilation=2, multiplier=2),
    cases.ConvCase("tiny-volume", 4, (4, 5, 6), 3),
]
QUICKLY = Budget(0.0, (1, 1))


def rows_of(case, dtype="f32", layout="first"):
    jobs = [cases.ConvJob(case, dtype, layout, 2)]
    return list(operators.measure(jobs, cases.OPS, (1,), QUICKLY))


@pytest.mark.parametrize("case", TINY, ids=str)
@pytest.mark.parametrize("layout", [*slow("first"), "last"])
@pytest.mark.parametrize("dtype", [*slow("f32"), "bf16"])
def test_right_results_are_timed(case, layout, dtype):
    rows = rows_of(case, dtype, layout)
    assert [row["op"] for row in rows] == list(cases.OPS)
    for row in rows:
        assert row["status"] == "ok", row["check"]
        assert row["ratio"] > 0 and row["case"] in operators.line(row)


def _listed(found):
    return [found] if isinstance(found, torch.Tensor) else list(found)


@pytest.mark.parametrize("op", cases.OPS)
def test_a_wrong_result_gets_no_speed_up(op, monkeypatch):
    honest = operators.ours

    def slightly_wrong(problem, op):
        run = honest(problem, op)

        def spoilt():
            found = run()
            return found * 1.001 if op == "forward" else tuple(t * 1.001 for t in _listed(found))

        return spoilt

    monkeypatch.setattr(operators, "ours", slightly_wrong)
    rows = rows_of(TINY[0])
    row = next(row for row in rows if row["op"] == op)
    assert row["status"] == "WRONG" and "ratio" not in row
    assert "WRONG" in operators.line(row)


def test_the_grid_has_what_was_asked_for():
    assert len({case.name for case in cases.CASES}) == len(cases.CASES)
    names = " ".join(cases.NAMED)
    for part in ("mobile-1024@7", "efficient-240@28-k5-s2", "convnext-96@56-k7", "k31", "volume"):
        assert part in names
    assert {case.k for case in cases.CASES if case.n == 1} == {3, 4, 31}
    for case in cases.CASES:
        x = torch.empty(1, case.C, *case.size, device="meta")
        weight = torch.empty(case.C * case.multiplier, 1, *[case.k] * case.n, device="meta")
        y = torch.ops.adl_kernels.depthwise_conv(x, weight, None, *case.window)
        assert tuple(y.shape[2:]) == case.out, case
    f16 = [job for job in cases.jobs(None, ("f16",))]
    assert {job.case.name for job in f16} == {"mobile-32@112", "mobile-512@14"}
    with pytest.raises(ValueError, match="a case is one of mobile-32@112"):
        cases.jobs("mobile", None)


def test_arithmetic_by_hand():
    case = cases.ConvCase("", 3, (4, 6), 5, stride=2, multiplier=2)
    assert case.out == (2, 3)
    assert cases.flops(case, 7, "forward") == 2 * 7 * 6 * 6 * 25
    assert cases.flops(case, 7, "train") == 3 * cases.flops(case, 7, "weight")
    assert cases.elements(case, 7, "forward") == 7 * (3 * 24 + 6 * 6)


def row(job, op, ratio, **more):
    found = {"case": job.case.name, "dtype": job.dtype, "layout": job.layout, "B": job.B, "op": op}
    found |= {"threads": 1, "malloc": "steady", "status": "ok", "disturbed": False, "ratio": ratio}
    return found | {"ours": {"median_s": 1e-3}} | more


FIRST, LAST = (
    goals.Column(layout, {"layout": layout}, k) for k, layout in enumerate(cases.LAYOUTS)
)


def test_goals_are_judged_by_the_worst_and_by_the_mean():
    goal = conv_goals.GOALS[0]
    rows = [row(job, op, 20.0) for job in cases.jobs(None, None, ("first",)) for op in cases.OPS]
    about = [found for found in rows if goal.about(found)]
    assert {cases.NAMED[found["case"]].k for found in about} == {5, 7, 13, 31}
    assert {found["op"] for found in about} == {"weight"}
    for found in rows:
        found["ratio"] = 20.0 if goal.about(found) else 0.1
    assert goals.judge(goal, FIRST, rows) == "20.00 / 20.00 (20) met"
    assert goals.judge(goal, LAST, rows) == ""
    about[0]["ratio"], about[1]["ratio"] = 19.0, 30.0
    assert "/ 19.00 (20) met on average" in goals.judge(goal, FIRST, rows)
    about[0]["ratio"] = 0.1
    assert goals.judge(goal, FIRST, rows).endswith("MISSED")
    about[0] |= {"disturbed": True}
    assert goals.judge(goal, FIRST, rows).endswith(f"met, 1 of {len(about)} not counted")
    about[0] |= {"status": "WRONG"}
    assert "MISSED, 1 WRONG" in goals.judge(goal, FIRST, rows)


def test_every_goal_is_about_something():
    for goal in conv_goals.GOALS:
        for column, bound in zip((FIRST, LAST), goal.bounds, strict=True):
            jobs = cases.jobs(None, None, (column.head,))
            rows = [row(job, op, 3.0) for job in jobs for op in cases.OPS]
            assert (goals.judge(goal, column, rows) != "") == (bound is not None), goal.label


@pytest.mark.slow
def test_blocks_and_a_body_are_timed(monkeypatch):
    small = blocks.Block(8, 16, 6, 2), blocks.Block(16, 16, 3)
    monkeypatch.setattr(blocks, "BODY_BLOCKS", (blocks.Block(32, 8, 112, 2),))
    monkeypatch.setattr(blocks, "BLOCKS", small)
    monkeypatch.setattr(blocks, "_compiled", lambda model: model)
    rows = list(blocks.measure((1,), QUICKLY))
    assert {row["op"] for row in rows} == {"block", "compiled", "body"}
    assert all(row["status"] == "ok" for row in rows), [row["check"] for row in rows]
    assert len(rows) == 2 * 2 * 2 * 3 + 1
    for found in rows:
        found["disturbed"] = False
    assert all(goal.label in conv_goals.table(rows) for goal in conv_goals.BLOCK_GOALS)


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
