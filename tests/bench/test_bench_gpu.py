"""What surrounds a GPU run, tried without one: goals, the model of a step, calibration, picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from test_bench_recurrent import KINDS, TINY, Slightly

import adl_kernels
from bench import goals, store
from bench.__main__ import main
from bench.gpu import calibrate, calibration, grids, layers, model
from bench.recurrent import cases

pytestmark = pytest.mark.cpu_only

GOALS, FIRST = grids.GRIDS["goals"], grids.GRIDS["first"]


def made_up_row(job: cases.Job, mode: str, ratio: float) -> store.Row:
    sides = {"ours": {"us_per_step": 2.0}, "torch": {"us_per_step": 2.0 * ratio}}
    return job.row() | sides | {"mode": mode, "status": "ok", "check": "", "ratio": ratio}


def made_up_rows(ratio: float) -> list[store.Row]:
    grid = GOALS.jobs
    return [made_up_row(job, mode, ratio) for job in grid for mode in cases.MODES]


# Goals


def test_goal_shapes() -> None:
    grid = GOALS.jobs
    assert len(set(grid)) == len(grid)
    assert all(grids.NAMED[job.case.name] == job.case for job in grid)
    assert grid[0] == cases.Job("lstm", "f16", grids.BOX)
    assert all(job.case.I == job.case.H for job in grid)
    assert {str(case).split("; ")[-1] for case in grids.BOTH_WAYS} == {
        "1 bidirectional layer",
        "2 bidirectional layers",
    }
    lengths = grids.NAMED["packed-64x256"].batch_sizes
    assert lengths[101] == 64 > lengths[103] and lengths[-1] == 1  # 20 % of 512 steps is 102.4


def test_every_goal_is_about_something() -> None:
    rows = made_up_rows(3.0)
    lines = goals.judge_all(GOALS.goals, grids.COLUMNS, rows)
    assert len(lines) == len(GOALS.goals)
    assert all(cell.endswith(" met") for line in lines for cell in line[1:])
    counts = [sum(goal.about(row) for goal in GOALS.goals) for row in rows]
    assert set(counts) == {1}
    missed = goals.judge_all(GOALS.goals, grids.COLUMNS, made_up_rows(2.0))
    assert sum("MISSED" in line[1] for line in missed) == 5
    assert missed[1] == ["LSTM bf16, H 256, 512, 1024, B 16, 64", *["2.00 / 2.00 (2.00) met"] * 2]


def test_goals_command_without_a_gpu(tmp_path: Path, capsys) -> None:
    path = tmp_path / "goals.json"
    few = ["--grid", "goals", "--cases", "30x2x5x7", "--cells", "lstm", "--dtypes", "tf32"]
    command = ["gpu", "--device", "cpu", "--seconds", "0", *few, "--json", str(path)]
    assert main(command) == 0
    found = json.loads(path.read_text())
    assert [row["mode"] for row in found["rows"]] == ["infer", "train"]
    assert found["rows"][0]["tokens"] == 60 and found["goals"] == []
    assert "ours, torch in µs/step" in capsys.readouterr().out


# The model


def test_model_of_rows() -> None:
    """As docs/cuda_tiers.md has it."""
    box = {row["mode"]: row for row in made_up_rows(1.0) if row["case"] == grids.BOX.name}
    assert model.predict(box["infer"]) == pytest.approx(1.05, abs=0.006)
    assert model.predict(box["train"]) == pytest.approx(2.76, abs=0.03)
    halves = [row for row in made_up_rows(1.0) if row["dtype"] == "bf16"]
    by_case = {(row["cell"], row["case"]): row for row in halves}
    one, two, four = (by_case["lstm", f"{n}-16x512"] for n in ("layer", "two", "four"))
    times = [model.predict(row) for row in (one, two, four)]
    # Half as many steps, of which the start of a scan takes a larger share.
    assert times[1] == pytest.approx(2 * times[0], rel=0.03) and times[1] > 2 * times[0]
    assert times[2] == pytest.approx(2 * times[1])
    # Both directions side by side: dearer than one, cheaper than two.
    both = model.predict(by_case["lstm", "bi-16x512"])
    assert times[0] < both < times[1]
    assert model.predict(by_case["lstm", "packed-16x512"]) <= times[0]


def test_what_a_calibration_says() -> None:
    row = next(row for row in made_up_rows(1.0) if row["case"] == grids.BOX.name)
    latency = {"name": "exchange latency, words in L2, 1 x 64 blocks", "value": 1.0, "cycles": 1980}
    absent = {"name": "exchange rate, st.async, 16 blocks", "value": None}
    clusters = {"name": "clusters of 16 with 200 KB a block", "value": 6}
    found = model.calibrated([latency, absent, clusters])
    assert (found.costs, found.clusters) == ({"grid_latency": 1980}, {8: 15, 16: 6})
    assert found.cost("cluster_rate") == 18
    assert model.exchange_us(row, found) == 1.0
    (line,) = calibration.cost_lines([latency, absent, clusters])
    assert line == "Costs::grid_latency: measured 1980, assumed 800"


def test_constants_are_those_that_the_kernels_are_chosen_by() -> None:
    known = model.assumed()
    assert known["per_microsecond"] == 1980 and known["memory_rate"] == 4e6
    assert model.assumed_names() <= set(known)


def test_calibration_is_of_figures_that_exist() -> None:
    """By the names that the programs print, as far as these are told in one piece."""
    text = "".join(path.read_text() for path in (model.ROOT / "bench/gpu").glob("*.cu*"))
    for name in model.CALIBRATED:
        for part in ("exchange latency, ", "exchange rate, ", "mma.sync ", ", A in ", " in L2, "):
            assert part not in name or part in text


# What a run measured, put into the model


CALIBRATION = [
    {"name": "clock", "value": 1755, "unit": "MHz", "predicted": 1980},
    {
        "name": "exchange latency, words in L2, 1 x 64 blocks",
        "value": 0.7,
        "unit": "us/step",
        "predicted": 0.4,
        "cycles": 1234.4,
    },
    {"name": "exchange rate, st.async, 16 blocks", "value": -3, "unit": "B/clk/SM"},
    {"name": "exchange rate, words in L2, 2 x 64 blocks", "value": None, "unit": "B/clk/SM"},
    {"name": "clusters of 16 with 200 KB a block", "value": 6, "unit": "at a time"},
]


@pytest.fixture
def measured(tmp_path: Path, monkeypatch) -> Path:
    """OUT of a run, and a copy of tiers.h to be edited."""
    (tmp_path / "tiers.h").write_text(model.TIERS.read_text())
    monkeypatch.setattr(model, "TIERS", tmp_path / "tiers.h")
    out = tmp_path / "out"
    store.write_json(out / "calibration.json", {"machine": {}, "calibration": CALIBRATION})
    rows = [row | {"graph": {"ours_us": 1.9}} for row in made_up_rows(2.0)]
    rows[1]["status"] = "WRONG"
    store.write_json(out / "goals.json", {"rows": rows})
    first = [made_up_row(job, "infer", 2.0) for job in FIRST.jobs]
    store.write_json(out / "times.json", {"rows": first})
    return out


def test_measured_constants_go_into_the_model(measured: Path, monkeypatch, capsys) -> None:
    text, built = model.TIERS.read_text(), []
    monkeypatch.setattr(calibrate, "rebuild", lambda: built.append(True))
    twice = {key: 2 * us for key, us in calibrate.predictions(CALIBRATION).items()}
    monkeypatch.setattr(calibrate, "predictions_of_a_new_process", lambda path: twice)
    assert main(["gpu-calibrate", str(measured)]) == 0
    changed = {
        (a, b)
        for a, b in zip(text.splitlines(), model.TIERS.read_text().splitlines(), strict=True)
        if a != b
    }
    assert {b.split(";")[0].strip() for _, b in changed} == {
        "double per_microsecond = 1755",
        "double grid_latency = 1234, grid_rate = 64, grid_rate_of_all = 4500",
    }
    said = capsys.readouterr().out
    assert "Costs::cluster_rate: 18 -> -3, which is not plausible and left alone" in said
    assert "not measured, left alone: cluster_latency, cluster_rate" in said
    box = [line for line in said.splitlines() if "1024, 16, 768, 768" in line]
    assert len(box) == 2 and len(built) == 1
    infer, train = (line.partition("768 ")[2].split() for line in box)
    before, predicted, ours, ratio, graph, torch = infer[1:]
    assert (infer[0], before, ours, graph, torch) == ("infer", "1.05", "2.00", "1.90", "4.00")
    assert predicted == "2.11" and ratio == f"({2 / float(predicted):.2f}x)"
    assert train[0] == "train" and len(train) == 3  # its result was wrong
    assert main(["gpu-calibrate", str(measured)]) == 0  # nothing is left to do
    assert len(built) == 1 and "edited" not in capsys.readouterr().out


def test_every_goal_is_in_the_table(measured: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(calibrate, "rebuild", lambda: None)
    monkeypatch.setattr(
        calibrate, "predictions_of_a_new_process", lambda path: calibrate.predictions([])
    )
    main(["gpu-calibrate", str(measured)])
    lines = capsys.readouterr().out.partition("microseconds of a step\n")[2].splitlines()
    assert len(lines) == 1 + 2 * len(calibrate.grid())
    for job in (*GOALS.jobs, *FIRST.jobs):
        start = f"{job.cell:<5} {job.dtype:<5} {job.case!s:<34} infer"
        assert sum(line.startswith(start) for line in lines) == 1


def test_a_run_without_a_calibration_says_so(tmp_path: Path, capsys) -> None:
    assert main(["gpu-calibrate", str(tmp_path)]) == 2
    assert "a run on a GPU writes it (gpu_kit/run OUT)" in capsys.readouterr().err


def test_what_is_timed_first() -> None:
    found = [(job.dtype, job.cell, job.case.H, job.case.B, job.case.T) for job in FIRST.jobs]
    assert found[:4] == [("tf32", "lstm", H, 32, 128) for H in (256, 512, 1024, 650)]
    assert [(job.case.kind, job.case.T) for job in FIRST.jobs[4:8]] == [
        ("stack", 128),
        ("cell", 1),
        ("layer", 1),
        ("layer", 16),
    ]
    assert [f[:4] for f in found[8:14]] == [
        ("bf16", "lstm", H, B) for H in (256, 512, 1024) for B in (16, 64)
    ]
    assert [f[:3] for f in found[14:]] == [
        ("f16", "lstm", 768),
        ("bf16", "gru", 512),
        ("f32", "lstm", 512),
    ]
    assert FIRST.select(("gru",), ("bf16",)) == (FIRST.jobs[15],)


# Calibration

FIGURE = {"name": "a", "value": 3, "unit": "us/step", "predicted": 1.5, "cycles": 9}
ABSENT = {"name": "b", "value": None, "unit": "us", "predicted": 2, "note": "not on this GPU"}


def test_figures_beside_predictions(tmp_path: Path, capsys) -> None:
    path = tmp_path / "calibration.json"
    store.write_json(path, {"machine": {}, "calibration": [FIGURE, ABSENT]})
    assert main(["table", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == "a 3 us/step predicted 1.5 (2.00 of it)".split()
    assert lines[1].split() == "b not on this GPU".split()


# The picture


def test_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    ceilings = {"copy GB/s": 4000.0, "matmul bf16 TFLOP/s": 700.0}
    machine = {"gpu": "NVIDIA Made Up", "cpu": "a processor"}
    content = {"machine": machine, "ceilings": ceilings, "rows": made_up_rows(2.0)}
    path = tmp_path / "goals.json"
    path.write_text(json.dumps(content))
    (tmp_path / "calibration.json").write_text(json.dumps({"calibration": [FIGURE, ABSENT]}))
    assert main(["picture", str(path)]) == 0
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    for row in content["rows"]:
        row["status"] = "WRONG"
    path.write_text(json.dumps(content))
    assert main(["picture", str(path)]) == 2


def test_bounds_of_a_row() -> None:
    gpu_picture = pytest.importorskip("bench.gpu.picture", exc_type=ImportError)
    box = {row["mode"]: row for row in made_up_rows(1.0) if row["case"] == grids.BOX.name}
    ceilings = {"copy GB/s": 4000.0, "matmul f16 TFLOP/s": 500.0}
    k = model.Gpu()
    found = gpu_picture.bounds(box["infer"], ceilings, k)
    assert found["products"] == pytest.approx(2 * 2 * 4 * 768 * 768 * 16 / 500e6)
    assert found["exchange"] == pytest.approx(800 / 1980)
    assert found["floor"] == found["products"] + found["exchange"] < found["predicted"]
    assert found["from memory"] == pytest.approx(8 * 768 * 768 / 4e6)
    twice = gpu_picture.bounds(box["train"], ceilings, k)
    assert twice["exchange"] == 2 * found["exchange"]
    assert twice["products"] == pytest.approx(3 * found["products"])


# The command


TRY_GPU = ["gpu", "--device", "cpu", "--seconds", "0"]


@pytest.mark.slow
def test_gpu_command_without_a_gpu(tmp_path: Path, capsys) -> None:
    path = tmp_path / "gpu.json"
    few = ["--cases", "512x1x3x4,30x2x5x7", "--cells", "lstm,gru", "--dtypes", "f32,bf16"]
    assert main([*TRY_GPU, *few, "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "| lstm | f32 | 512, 1, 3, 4 | " in printed
    assert "| LSTM f32, H ≤ 128, T = 512 | " in printed
    found = json.loads(path.read_text())
    assert {"gpu", "torch", "command", "date"} <= set(found["machine"])
    assert {"copy GB/s", "matmul bf16 TFLOP/s", "launch µs"} <= set(found["ceilings"])
    assert len(found["rows"]) == 2 * 2 * 2 * 2
    for row in found["rows"]:
        assert row["ratio"] > 0 and row["ours"]["samples"] == 3
        assert row["ours"]["us_per_step"] == pytest.approx(1e6 * row["ours"]["median_s"] / row["T"])
    assert main(["table", str(path)]) == 0
    assert capsys.readouterr().out.strip() in printed


def test_gpu_other_kinds_and_tf32() -> None:
    jobs = cases.jobs(KINDS[:2], ("gru",), ("tf32",))
    rows = list(layers.measure(layers.Settings(jobs, "cpu", seconds=0.0, sample_s=0.0)))
    assert [row["status"] for row in rows] == ["ok"] * 4, [row["check"] for row in rows]
    assert [row["kind"] for row in rows[::2]] == ["stack", "packed"]


def test_gpu_command_says_wrong_and_failed(monkeypatch, capsys) -> None:
    monkeypatch.setattr(adl_kernels, "LSTM", Slightly)

    def fails(*_: object) -> None:
        raise RuntimeError("a kernel failed\nwith details")

    monkeypatch.setattr(adl_kernels.GRU, "forward", fails)
    quick = ["--cases", "30x2x5x7", "--cells", "lstm,gru", "--dtypes", "f32"]
    assert main([*TRY_GPU, *quick]) == 1
    printed = capsys.readouterr().out
    assert "lstm f32 30, 2, 5, 7 infer: WRONG y is off by 1.0e-03" in printed
    assert "gru f32 30, 2, 5, 7 train: FAILED a kernel failed\n" in printed


def test_gpu_command_needs_a_gpu(monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["gpu"]) == 2
    assert "finds no GPU" in capsys.readouterr().err


def test_gpu_time_runs_out(capsys) -> None:
    jobs = cases.jobs([TINY], dtypes=("f32",))
    assert list(layers.measure(layers.Settings(jobs, "cpu", seconds=1e-9))) == []
    assert "out of time: 3 of 3 jobs left out" in capsys.readouterr().out


def test_gpu_grid() -> None:
    grid = grids.GRIDS["wide"].jobs
    assert len(set(grid)) == len(grid)
    assert all(grids.NAMED[job.case.name] == job.case for job in grid)
    sizes = {(job.case.T, job.case.B, job.case.H) for job in grid}
    assert {(512, 1, 32), (512, 256, 128), (128, 32, 1024), (1024, 16, 768)} <= sizes
    assert {job.dtype for job in grid if job.case == grids.BOX} == {"f16"}
    packed = grids.NAMED["packed-128"].batch_sizes
    assert packed[101] == 64 > packed[103] and packed[-1] == 1  # 20 % of 512 steps is 102.4
    assert store.slug("NVIDIA H200") == "nvidia-h200"


def test_gpu_goals_are_judged() -> None:
    rows = [
        job.row() | {"mode": "infer", "status": "ok", "ratio": 2.0}
        for job in grids.GRIDS["wide"].jobs
    ]
    made = grids.GRIDS["wide"].goals

    def line(label: str) -> list[str]:
        lines = goals.judge_all(made, grids.COLUMNS, rows)
        (found,) = (line for line in lines if line[0].startswith(label))
        return found

    judged = goals.judge_all(made, grids.COLUMNS, rows)
    assert all(line[1].endswith(" met") and line[2] == "" for line in judged)
    assert len(judged) == len(made)
    small = next(row for row in rows if (row["cell"], row["dtype"]) == ("gru", "bf16"))
    small["ratio"] = 1.9
    assert line("GRU bf16, H ≤ 128")[1] == "1.99 / 1.90 (2.00) MISSED"
    small["status"] = "WRONG"
    assert line("GRU bf16, H ≤ 128")[1] == "2.00 / 2.00 (2.00) MISSED, 1 WRONG"
    assert all(any(goal.about(row) for goal in made) for row in rows)
