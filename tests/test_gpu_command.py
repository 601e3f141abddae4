"""`make gpu` on a machine without a GPU: stages, their limits, and what is said of them."""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.cpu_only

SPEC = importlib.util.spec_from_file_location("make_gpu", Path(__file__).parent / "gpu/__main__.py")
make_gpu = importlib.util.module_from_spec(SPEC)
sys.modules["make_gpu"] = make_gpu  # dataclasses look their module up
SPEC.loader.exec_module(make_gpu)
Stage = make_gpu.Stage


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_failing_stage_does_not_stop_the_others(capfd) -> None:
    stages = [
        Stage("first", [python("print('hello')"), python("import sys; sys.exit(3)")], 20),
        Stage(
            "second",
            [python("import os; print(os.environ['MARK'])")],
            20,
            environment={"MARK": "m"},
        ),
        Stage("third", [], 20, missing="no such tool"),
    ]
    assert make_gpu.run_all([lambda left, stage=stage: stage for stage in stages], 200) == 1
    printed = capfd.readouterr().out
    assert "hello" in printed and "\nm\n" in printed
    summary = [line.split(maxsplit=3) for line in printed.split("==== summary\n")[1].splitlines()]
    assert [(line[0], line[3]) for line in summary] == [
        ("first", "exit status 3"),
        ("second", "ok"),
        ("third", "NOT RUN: no such tool"),
    ]


def test_all_good_is_status_0() -> None:
    assert make_gpu.run_all([lambda left: Stage("only", [python("")], 20)]) == 0


def test_a_stage_that_takes_too_long_is_stopped_with_its_children() -> None:
    code = "import subprocess; subprocess.run(['sleep', '60'])"
    start = time.monotonic()
    outcome = make_gpu.run(Stage("slow", [python(code)], 1.0), 100)
    assert outcome.result == "stopped after 1 s" and time.monotonic() - start < 20
    assert make_gpu.run(Stage("late", [python("")], 20), -1.0).result == "NOT RUN: out of time"


def test_stages_name_what_is_missing(monkeypatch) -> None:
    monkeypatch.setattr(make_gpu, "has", lambda module: False)
    monkeypatch.setattr(make_gpu.shutil, "which", lambda name: None)
    monkeypatch.setattr(make_gpu, "cuda_home", lambda: None)
    missing = {stage.name: stage.missing for stage in (make(300.0) for make in make_gpu.STAGES)}
    assert missing["calibrate"] == "no CUDA toolkit was found"
    assert missing["build"].endswith("has no setuptools and no ninja")
    assert missing["tests on the GPU"].endswith("has no pytest")
    assert missing["compute-sanitizer"] == "compute-sanitizer was not found"
    assert make_gpu.why_not().endswith(
        "has no torch: name the Python that has, make gpu PYTHON=..."
    )


def test_bench_takes_what_time_is_left() -> None:
    assert "'--seconds', '200'" in make_gpu.bench(400.0).commands[0][2]
    assert "'--seconds', '56'" in make_gpu.bench(100.0).commands[0][2]
    assert "'--grid', 'goals', '--seconds', '300'" in make_gpu.goals(500.0).commands[0][2]


def test_stages_can_be_chosen() -> None:
    names = [stage.__name__ for stage in make_gpu.chosen(None)]
    assert names[0] == "calibrate" and names[-2:] == ["goals", "bench"]
    asked = make_gpu.options(["--stage", "goals", "build", "--stage", "calibrate"])
    stages = make_gpu.chosen(asked.stage)
    assert stages == [make_gpu.goals, make_gpu.build, make_gpu.calibrate]
    with pytest.raises(SystemExit):
        make_gpu.options(["--stage", "nothing"])


def test_no_stage_is_longer_than_ten_minutes(monkeypatch) -> None:
    monkeypatch.setattr(make_gpu, "cuda_home", lambda: None)
    assert max(make(1e6).limit_s for make in make_gpu.STAGES) < 540


def test_time_is_kept_for_measurements(monkeypatch) -> None:
    lefts = {}

    def record(name: str):
        def make(left: float) -> Stage:
            lefts[name] = left
            return Stage(name, [], 20)

        make.__name__ = name
        return make

    make_gpu.run_all([record("tests"), record("goals"), record("bench")], 500)
    assert [round(left, -1) for left in lefts.values()] == [230, 410, 500]
