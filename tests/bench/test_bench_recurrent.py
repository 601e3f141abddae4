"""The measurements themselves: formulas, the gate that stops wrong results, and the files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lanes import slow
from torch import nn

import adl_kernels
from bench import gate, goals, machine, measure, store
from bench.__main__ import main
from bench.peak import Peak
from bench.recurrent import cases, extras, layers, limits, variants
from bench.recurrent import goals as recurrent_goals
from bench.recurrent import report as tables
from bench.recurrent.problem import build, reference, torch_errors, values

pytestmark = pytest.mark.cpu_only

TINY = cases.Case("tiny", T=3, B=2, I=5, H=7)
QUICK = ["--quick", "--cases", "3x2x5x7", "--threads", "1"]


QUICKLY = measure.Budget(0.0, (2, 2))


def measured(case: cases.Case = TINY, **asked: tuple[str, ...]) -> list[store.Row]:
    asked = {"dtypes": ("f32",)} | asked
    modes = asked.pop("modes", cases.MODES)
    settings = layers.Settings(cases.jobs([case], **asked), (1,), modes, QUICKLY)
    return list(layers.measured_rows(settings, Peak()))


def test_case_table() -> None:
    for grid in cases.GRIDS.values():
        assert len(set(grid)) == len(grid)
        assert all(cases.NAMED[job.case.name] == job.case for job in grid)
    assert all(name == case.name for name, case in cases.NAMED.items())
    assert (100, 64, 512, 512) in [(c.T, c.B, c.I, c.H) for c in cases.LAYERS]


def test_selection() -> None:
    both = ("lstm", "gru"), ("f32", "bf16")
    main_grid = cases.select("main", None, *both)
    assert len(main_grid) == 20
    assert main_grid[0] == cases.Job("lstm", "f32", cases.NAMED["single-128"])
    assert cases.select("main", None, ("lstm", "gru"), None) == main_grid
    full = cases.select("full", None, tuple(cases.CLASSES), None)
    assert set(full) == set(cases.GRIDS["full"])
    # Whoever names a case gets it, also where the grid leaves it out.
    assert cases.select("full", "large-512", ("rnn",), ("f16",)) == cases.jobs(
        [cases.NAMED["large-512"]], ("rnn",), ("f16",)
    )


def test_cases_by_name_and_by_shape() -> None:
    named, shaped = cases.parse_cases("large-512,3x2x5x7")
    assert named in cases.LAYERS
    assert shaped == cases.Case("3x2x5x7", 3, 2, 5, 7)


@pytest.mark.parametrize("word", ["huge", "3x2x5", "3x0x5x7", ""])
def test_unknown_case_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match="TxBxIxH"):
        cases.parse_cases(word)


@pytest.mark.parametrize(
    ("cell", "mode", "expected"),
    # By hand: 6 rows, 12 inputs, 28, 21 or 7 gate columns, two operations each.
    [
        ("lstm", "infer", 4032),
        ("gru", "infer", 3024),
        ("rnn", "infer", 1008),
        ("lstm", "train", 12096),
    ],
)
def test_flops(cell: str, mode: str, expected: int) -> None:
    assert cases.flops(cell, TINY, mode) == expected


def test_flops_of_other_kinds() -> None:
    stack = cases.Case("", 3, 2, 5, 7, "stack", num_layers=2, bidirectional=True)
    # Two directions, 5 + 7 inputs in the first layer and 14 + 7 in the second.
    assert cases.flops("lstm", stack, "infer") == 2 * 2 * 6 * 28 * (12 + 21)
    packed = cases.Case("", 100, 5, 5, 7, "packed")
    assert packed.batch_sizes.tolist() == [5] * 20 + [4] * 20 + [3] * 20 + [2] * 20 + [1] * 20
    assert cases.flops("rnn", packed, "infer") == 2 * 300 * 7 * 12


KINDS = [
    cases.Case("stack", 3, 2, 5, 7, "stack", num_layers=2, bidirectional=True),
    cases.Case("packed", 22, 3, 5, 7, "packed"),
    cases.Case("step", 1, 1, 7, 7, "step"),
    cases.Case("cell", 1, 1, 7, 7, "cell"),
]


@pytest.mark.slow
@pytest.mark.parametrize("case", KINDS, ids=lambda case: case.name)
def test_other_kinds_are_timed(case: cases.Case) -> None:
    rows = measured(case)
    assert [row["status"] for row in rows] == ["ok"] * 6, [row["check"] for row in rows]
    assert all(row["ratio"] > 0 and row["shape"] == str(case) for row in rows)


@pytest.mark.parametrize("case", KINDS, ids=lambda case: case.name)
def test_a_call_yields_all_gradients(case: cases.Case) -> None:
    ours, _, problem = build(cases.Job("lstm", "f32", case))
    names = set(values(ours, problem, "train"))
    assert {"h_n", "c_n", "dx"} < names
    assert ("y" in names) == (case.kind != "cell")
    assert ("dh_0" in names) == ("dc_0" in names) == (case.kind in ("step", "cell"))
    assert {"d" + name for name, _ in ours.named_parameters()} < names


@pytest.mark.parametrize("dtype", ["f32", *slow("bf16", "f64")])
def test_right_results_are_timed(dtype: str) -> None:
    rows = measured(dtypes=(dtype,))
    assert len(rows) == 6
    for row in rows:
        assert row["status"] == "ok", row["check"]
        assert row["ratio"] > 0
        assert row["ours"]["share_of_peak"] > 0
    peak = Peak()
    peak.take({"f32": {1: 1000.0}, "bf16": {1: 2000.0}, "f64": {1: 500.0}})
    peak.take({"f32": {1: 900.0}})
    layers.refer_to_peak(rows, peak)
    for row in rows:
        share = row["ours"]["gflops"] / {"f32": 1000, "bf16": 2000, "f64": 500}[dtype]
        assert row["ours"]["share_of_peak"] == pytest.approx(share)


def content(rows: list[store.Row], grid: str = "main", **more: object) -> store.Content:
    content = {"rows": rows, "grid": grid, "summary": tables.groups(rows)}
    return content | {"extras": []} | more


def test_markdown_table() -> None:
    rows = measured(cells=("lstm",))
    rows[0] |= {"ratio": 1.5, "disturbed": False}
    table, summary = tables.markdown(content(rows)).split("\n\n")
    assert table.splitlines()[2].startswith("| lstm | f32 | plain | 3, 2, 5, 7 | 1.50 (")
    assert summary.splitlines()[2].startswith("| lstm | f32 | plain | 1.50 (1.50) | ")


def row(job: cases.Job, ratio: float = 2.0, **more: object) -> store.Row:
    """A row as a run makes it, with times that need no measurement."""
    row = job.row() | {"malloc": "plain", "mode": "infer", "threads": 1}
    ours = {"median_s": 1e-3, "gflops": 100.0, "share_of_peak": 0.9}
    return row | {"status": "ok", "disturbed": False, "ratio": ratio, "ours": ours} | more


BF16 = [job for job in cases.GRIDS["full"] if (job.cell, job.dtype) == ("lstm", "bf16")]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, "1.20 / 1.20 (1.15 / 1.00) met"),
        ({"ratio": 0.999}, "1.18 / 1.00 (1.15 / 1.00) met"),  # as printed
        ({"ratio": 0.99}, "1.18 / 0.99 (1.15 / 1.00) MISSED"),
        ({"disturbed": True}, "1.20 / 1.20 (1.15 / 1.00) met, 1 of 14 not counted"),
        (
            {"status": "WRONG"},
            "1.20 / 1.20 (1.15 / 1.00) MISSED, 1 WRONG",
        ),
    ],
)
def test_goals_are_judged(change: store.Row, expected: str) -> None:
    (goal,) = (goal for goal in recurrent_goals.GOALS if goal.label == "LSTM bf16")
    infer, *_, train = (c for c in recurrent_goals.COLUMNS if c.picks["threads"] == 1)
    rows = [row(job, 1.2) for job in BF16]
    others = [row(job, 0.1) for job in cases.GRIDS["full"] if job not in BF16]
    others += [row(job, 0.1, malloc="steady") for job in BF16]
    others += [row(cases.Job("lstm", "bf16", TINY), 0.1)]
    rows[3] |= change
    assert goals.judge(goal, infer, rows + others) == expected
    assert goals.judge(goal, train, rows + others) == ""


def test_every_goal_is_about_cases_of_the_grid() -> None:
    made = recurrent_goals.GOALS
    assert len({goal.label for goal in made}) == len(made)
    both = [[row(job, malloc=m) for m in ("plain", "steady")] for job in cases.GRIDS["full"]]
    for goal in made:
        assert goal.asked == sum(goal.about(found) for rows in both for found in rows) > 0
    left = {
        (rows[0]["cell"], rows[0]["dtype"])
        for rows in both
        if not any(goal.about(found) for goal in made for found in rows)
    }
    assert left == {("rnn", "bf16")}  # measured, but without a goal


def limit(label: str) -> limits.Limit:
    (found,) = (limit for limit in limits.LIMITS if limit.label.startswith(label))
    return found


def test_share_of_peak_is_judged_where_it_was_promised() -> None:
    jobs = [job for job in cases.GRIDS["full"] if job.dtype == "f32"]
    rows = [row(job) for job in jobs]
    for found in rows:
        promised = found["B"] >= 6 and found["H"] >= 128 and found["cell"] != "rnn"
        if not promised or found["case"].startswith("packed"):
            found["ours"] = found["ours"] | {"share_of_peak": 0.1}
    name = "LSTM, GRU f32 forward, B ≥ 6, H ≥ 128: "
    goal, worst, _, mean, met = limits.judge(limit(name), content(rows))
    assert (goal, worst, mean, met) == ("≥ 88 %", "90 %", "90 %", "met")
    rows[3]["ours"]["share_of_peak"] = 0.5
    goal, worst, where, _, met = limits.judge(limit(name), content(rows))
    assert (worst, where, met) == ("50 %", "lstm f32 medium-256, forward, 1 thread", "MISSED")


def test_pairs_of_rows_are_compared() -> None:
    padded, packed = (
        row(cases.Job("gru", "f32", cases.NAMED[name])) for name in ("medium-256", "packed-256")
    )
    two = packed | {"threads": 2, "ours": {"median_s": 1.2e-3}}
    found = content([padded, packed, two])
    assert limits.judge(limit("our time with 2 threads"), found)[1:3] == (
        "1.20",
        "gru f32 packed-256, forward, plain malloc",
    )
    share = packed["ours"]["median_s"] / (0.6 * padded["ours"]["median_s"])
    assert limits.judge(limit("packed time"), found)[1] == f"{share:.2f}"


def test_what_was_not_measured_is_not_judged() -> None:
    assert all(limits.judge(limit, content([])) is None for limit in limits.LIMITS)


def test_goal_tables() -> None:
    rows = [row(job) for job in cases.GRIDS["full"]]
    extras = [{"what": "denormal", "mode": "train", "where": "gru, x", "value": 3.0}]
    text = tables.markdown(content(rows, "full", extras=extras))
    lines = text.splitlines()
    assert "| LSTM, GRU, RNN f16 | 2.00 / 2.00 (5.00) MISSED |  |  |  |" in lines
    assert (
        "| time with denormal inputs or weights / normal | ≤ 2.00 | 3.00 | gru, x | 3.00 | MISSED |"
        in lines
    )
    assert lines[-1].startswith("| rnn | f32 | plain | 1, 1, 256, 256; cell | 2.00 (100) |")


@pytest.mark.slow
def test_denormals_and_precision() -> None:
    before = torch.get_float32_matmul_precision()
    found = [*extras.denormals(TINY, QUICKLY), *extras.medium([TINY], QUICKLY)]
    assert torch.get_float32_matmul_precision() == before
    assert [extra["what"] for extra in found] == ["denormal"] * 12 + ["medium"] * 4
    assert all(extra["value"] > 0 for extra in found)


def test_denormals_are_denormal() -> None:
    weight = torch.randn(100).mul_(extras.DENORMAL)
    assert 0 < weight.abs().max() < torch.finfo(torch.float32).tiny


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_peak_memory() -> None:
    lstm = next(extras.memory([cases.Case("some", 50, 32, 128, 128)]))
    assert 0.1 < lstm["value"] < 10


@pytest.mark.slow
def test_new_process_gets_its_environment() -> None:
    assert machine.malloc() == "plain"
    steady = machine.in_new_process(machine.malloc, GLIBC_TUNABLES=machine.STEADY_MALLOC)
    assert (steady, machine.malloc()) == ("steady", "plain")


def test_checks_of_another_process_hold() -> None:
    jobs = cases.jobs([TINY, KINDS[0], KINDS[1]], ("gru",), ("f32", "f64"))
    rows = [row(jobs[0], check="off", status="WRONG"), row(jobs[1], check="")]
    steady = layers.of_both_mallocs(layers.Settings(jobs, (1,), ("infer",), QUICKLY), rows)
    assert [job.case.name for job in steady.jobs] == ["tiny", "stack"]
    found = layers.measured_rows(steady, Peak())
    assert [(row["status"], row["check"]) for row in found] == [("WRONG", "off"), ("ok", "")]


def test_slow_calls_are_not_repeated(monkeypatch) -> None:
    monkeypatch.setattr(measure, "SLOW_S", 0.0)
    calls = []
    steps = (lambda: calls.append(0)), (lambda: calls.append(1))
    measure.race(*steps, measure.Budget(0.0, (3, 3), sample_s=0.0))
    assert calls == [0, 1, 0, 1, 0, 1, 0, 1]


@pytest.mark.slow
def test_full_grid_of_named_cases(tmp_path: Path, capsys, monkeypatch) -> None:
    # Other tests run at the same time, and disturbed rows do not count.
    monkeypatch.setattr(machine.Disturbance, "took_one_of", lambda self, threads: False)
    path = tmp_path / "rnn.json"
    quick = [*QUICK, "--cases", "3x2x5x7,step-64", "--cells", "gru", "--dtypes", "f32"]
    assert main(["rnn", "--grid", "full", *quick, "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    assert [(row["case"], row["malloc"]) for row in found["rows"][::2]] == [
        ("3x2x5x7", "plain"),
        ("step-64", "plain"),
        ("3x2x5x7", "steady"),
    ]
    assert "| LSTM, GRU, RNN f32, one step | " in capsys.readouterr().out
    assert main(["table", str(path)]) == 0
    assert "| LSTM, GRU, RNN f32, one step | " in capsys.readouterr().out


def test_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "rnn.json"
    rows = [row(job, mode=mode) for job in cases.GRIDS["full"] for mode in cases.MODES]
    store.write_json(path, content(rows, "full"))
    assert main(["picture", str(path)]) == 0
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


class Slightly(nn.LSTM):
    """An LSTM whose output is a thousandth too large."""

    def forward(self, x, hx=None):  # type: ignore[override]
        y, state = super().forward(x, hx)
        return y * 1.001, state


class Scaled(torch.autograd.Function):
    """The identity with a gradient a thousandth too large."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, dx):
        return dx * 1.001


class WrongBackward(nn.LSTM):
    def forward(self, x, hx=None):  # type: ignore[override]
        return super().forward(Scaled.apply(x), hx)


class NotANumber(nn.LSTM):
    def forward(self, x, hx=None):  # type: ignore[override]
        y, state = super().forward(x, hx)
        return y * float("nan"), state


@pytest.mark.parametrize(
    ("module", "wrong"),
    [(Slightly, ["infer", "train"]), (NotANumber, ["infer", "train"]), (WrongBackward, ["train"])],
)
def test_wrong_result_gets_no_speedup(monkeypatch, module: type, wrong: list[str]) -> None:
    monkeypatch.setattr(adl_kernels, "LSTM", module)
    rows = measured(cells=("lstm",))
    assert [row["mode"] for row in rows if row["status"] == "WRONG"] == wrong
    for row in rows:
        assert (row["status"] == "WRONG") == ("ratio" not in row) == ("ours" not in row)


def test_wrong_result_is_said_and_fails(monkeypatch, capsys) -> None:
    monkeypatch.setattr(adl_kernels, "LSTM", Slightly)
    assert main(["rnn", *QUICK, "--cells", "lstm", "--dtypes", "f32"]) == 1
    printed = capsys.readouterr().out
    assert "WRONG: y is off by 1.0e-03" in printed
    assert "2 WRONG" not in printed  # one per group, infer and train
    assert printed.count("1 WRONG") == 2


def test_gate_judges_by_torch_and_by_ulp() -> None:
    truth = {"y": torch.tensor([1.0, -4.0], dtype=torch.float64)}
    found = {"y": torch.tensor([1.0, -4.0 * (1 + 1e-4)])}
    assert not gate.judge(found, truth, {"y": 4e-5}).ok
    assert gate.judge(found, truth, {"y": 6e-5}).ok
    two_ulp = {"y": torch.tensor([1.0, -4.0 * (1 + 2 * torch.finfo(torch.float32).eps)])}
    assert gate.judge(two_ulp, truth, {"y": 0.0}).ok


@pytest.mark.parametrize("times", [1.0, 1 + 1e-12])
def test_gate_in_double_allows_for_long_sums(times: float) -> None:
    long = cases.Job("gru", "f64", cases.Case("", 500, 8, 16, 16))
    ours, theirs, problem = build(long)
    truth = reference(theirs, problem)
    found = {name: times * value for name, value in values(ours, problem, "train").items()}
    allowed = torch_errors(theirs, problem, truth)
    assert gate.judge(found, truth, allowed).ok == (times == 1.0)


def test_disturbed_rows_do_not_count() -> None:
    job = cases.Job("gru", "f32", TINY)
    ratios = [(2.0, False), (8.0, False), (300.0, True)]
    (group,) = tables.groups(row(job, ratio, disturbed=d) for ratio, d in ratios)
    assert group["geometric_mean"] == pytest.approx(4.0)
    assert (group["cases"], group["disturbed"], group["minimum"]) == (2, 1, 2.0)
    assert "1 disturbed" in tables.group_table([group])


def test_json_of_a_quick_run(tmp_path: Path, capsys) -> None:
    path = tmp_path / "rnn.json"
    assert main(["rnn", *QUICK, "--dtypes", "f32", "--json", str(path)]) == 0
    content = json.loads(path.read_text())
    assert {"cpu", "cores", "torch", "adl_kernels", "isa", "malloc", "command", "date"} <= set(
        content["machine"]
    )
    assert [(row["cell"], row["mode"]) for row in content["rows"]] == [
        (cell, mode) for cell in ("lstm", "gru", "rnn") for mode in ("infer", "train")
    ]
    for side in ("ours", "torch"):
        figures = content["rows"][0][side]
        assert 0 < figures["low_s"] <= figures["median_s"] <= figures["high_s"]
        assert figures["samples"] == 3
    assert len(content["summary"]) == 6
    assert "geometric mean" in capsys.readouterr().out


def test_bad_arguments_are_sentences(capsys) -> None:
    assert main(["rnn", "--cases", "huge"]) == 2
    assert "'huge'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["rnn", "--cells", "lstn"])
    assert "'lstn' is not one of lstm, gru, rnn" in capsys.readouterr().err


def test_variants_are_what_their_loops_compute():
    """The check before each measurement, on a small shape."""
    x = torch.randn(4, 3, 6, dtype=torch.float64)
    for variant in variants.VARIANTS:
        module = getattr(adl_kernels, variant.kind)(6, 6, **variant.options, dtype=torch.float64)
        given = {"lengths": torch.tensor([4, 2, 1])} if "lengths" in variant.given else {}
        if "reset" in variant.given:
            given["reset"] = torch.rand(4, 3) < 0.3
        variants.check(module, x, given)
