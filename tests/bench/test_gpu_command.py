"""`make gpu` and `gpu_kit/run` on a machine without a GPU: lines, their limits, the table."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from gpu import __main__ as command
from gpu import kit, lines, table
from gpu.lines import Machine
from gpu.runner import PATIENCE_S, Line, Outcome, Run

pytestmark = pytest.mark.cpu_only


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "out", 200.0)


# One line


def test_a_failing_command_does_not_stop_the_others(run: Run) -> None:
    commands = {
        "first": python("print('hello'); import sys; sys.exit(3)"),
        "second": python("import os; print(os.environ['MARK'])"),
        "third": ["/no/such/program"],
    }
    found = run.line(Line("all", commands, 20, environment={"MARK": "m"}))
    assert [o.result for o in found[:2]] == ["exit status 3", "ok"]
    assert found[2].result.startswith("cannot be started")
    (missing,) = run.line(Line("next", {"a": python("")}, 20, needs="no such tool"))
    assert missing.result == "NOT RUN: no such tool"
    log = run.file("log.txt").read_text()
    assert "hello" in log and "\nm\n" in log and "==== all, first: exit status 3" in log
    kept = json.loads(run.file("results.json").read_text())
    assert [row["name"] for row in kept] == ["first", "second", "third", "a"]


def test_lines_of_json_are_rows(run: Run) -> None:
    code = "print('{\"a\": 1}'); print('{no'); print('text')"
    (found,) = run.line(Line("all", {"one": python(code)}, 20))
    assert found.rows == [{"a": 1}] and found.rest == ["{no", "text"]


def test_commands_run_side_by_side(run: Run) -> None:
    start = time.monotonic()
    sleep = python("import time; time.sleep(2)")
    found = run.line(Line("all", dict.fromkeys("abcd", sleep), 20, at_once=4))
    assert all(o.good for o in found) and time.monotonic() - start < 6


def test_a_late_command_gets_sigint_and_may_say_what_it_has(run: Run) -> None:
    code = "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('summary')"
    (found,) = run.line(Line("all", {"slow": python(code)}, 1.5))
    assert found.result == "stopped after 2 s" and found.rest == ["summary"]
    assert found.seconds < 1.5 + PATIENCE_S


def test_also_where_sigint_was_ignored(run: Run) -> None:
    """As of a command that a shell has put into the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        (found,) = run.line(Line("all", {"slow": ["sleep", "60"]}, 1.0))
    finally:
        signal.signal(signal.SIGINT, before)
    assert found.result == "stopped after 1 s" and found.seconds < 1 + PATIENCE_S


def test_who_does_not_listen_is_killed_with_its_children(run: Run, tmp_path: Path) -> None:
    code = (
        "import signal, subprocess; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        f"subprocess.run(['sh', '-c', 'sleep 9; touch {tmp_path}/child'])"
    )
    (found,) = run.line(Line("all", {"deaf": python(code)}, 1.0))
    assert found.result == "stopped after 1 s by SIGKILL"
    time.sleep(3.5)
    assert not (tmp_path / "child").exists()


def test_when_time_is_up_the_rest_is_not_run(tmp_path: Path) -> None:
    run = Run(tmp_path, PATIENCE_S + 2.5)
    found = run.line(Line("all", {"a": ["sleep", "30"], "b": ["true"]}, 20))
    assert [o.result for o in found] == ["stopped after 2 s", "NOT RUN: out of time"]
    assert run.seconds < run.total_s + 1


def test_much_output_is_cut(run: Run) -> None:
    (found,) = run.line(Line("all", {"a": python("print('x' * 10**7); print('end')")}, 20))
    assert found.rest[-1] == "end"
    assert run.file("log.txt").stat().st_size < 10**6


# The list


def test_order_of_worth() -> None:
    names = list(dict.fromkeys(line.name for line in lines.first(Machine())))
    assert names == ["wrappers", "calibrate", "kernels", "self-test", "tiers", "times"]
    assert [line.name for line in lines.second(Machine())] == ["gpu-tests", "goals"]
    everything = [line.name for line in lines.everything(Machine())]
    both = [line.name for line in (*lines.first(Machine()), *lines.second(Machine()))]
    assert everything[: len(both)] == both and everything[-1] == "bench"


def test_a_kit_run_fits_into_its_time() -> None:
    """Not all lines take as long as they may: those of programs need seconds."""
    first, second = lines.first(Machine()), lines.second(Machine())
    must = [line for line in first if line.name in ("tiers", "times")]
    assert lines.PLANS["first"][1] == 330 and lines.PLANS["second"][1] == 280
    assert lines.total_s(must) <= 330 - 60
    assert lines.total_s(second) <= 280 - 8
    assert max(line.limit_s for line in lines.everything(Machine())) < 540


def test_every_calibrating_program_is_run() -> None:
    names = {name.split(",")[0] for name in (*lines.CALIBRATIONS, *lines.MORE_CALIBRATIONS)}
    assert names == {p.stem.partition("_")[2] for p in lines.ROOT.glob("bench/gpu/*.cu")}


def test_tiers_are_checked_by_processes_of_their_own() -> None:
    line = lines.tiers(Machine())
    assert len(line.commands) == 30 and line.at_once == 4
    assert next(iter(line.commands)) == "block lstm bf16"


def test_tests_that_take_gigabytes_or_minutes_run_alone(monkeypatch) -> None:
    monkeypatch.setattr(lines, "has", lambda module: True)
    (words,) = lines.gpu_tests(Machine()).commands.values()
    assert " ".join(words[-3:]) == "-m not large gpu" and "thread" in words and "-n" in words
    (words,) = lines.large_tests(Machine()).commands.values()
    assert " ".join(words[-3:]) == "-m large gpu"


def test_lines_name_what_is_missing(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(lines, "has", lambda module: False)
    monkeypatch.setattr(lines.shutil, "which", lambda name: None)
    monkeypatch.setattr(lines, "cuda_home", lambda: None)
    monkeypatch.setattr(lines, "PROGRAMS", tmp_path)
    assert lines.build().needs.endswith("has no setuptools and no ninja")
    assert lines.wrappers(Machine()).needs.startswith("wrappers was not built")
    assert lines.gpu_tests(Machine()).needs.endswith("has no pytest and no numpy")
    assert lines.sanitizers(Machine()).needs == "compute-sanitizer was not found"


def test_without_a_gpu_commands_of_python_do_little() -> None:
    found = [line for line in lines.everything(Machine(gpu=False)) if line.name != "sanitizer"]
    words = [" ".join(map(str, w)) for line in found for w in line.commands.values()]
    ours = [w for w in words if w.startswith(sys.executable)]
    assert all("cpu" in w or "--collect-only" in w for w in ours)


# What depends on what came before


def exchanges(wrong: str = "") -> list[str]:
    return [f"{name}: {'WRONG' if name == wrong else 'ok'}" for name in command.EXCHANGES]


@pytest.mark.parametrize(
    "result, rest, off",
    [
        ("ok", exchanges(), False),
        ("exit status 1", [*exchanges(), "gemm: 3 of 5 are WRONG"], False),
        ("exit status 1", exchanges("exchange between 16"), True),
        ("stopped after 20 s", exchanges()[:2], True),
        ("ok", ["clusters: skipped, they need compute capability 9.0"], False),
        ("NOT RUN: wrappers was not built", [], False),
    ],
)
def test_clusters_are_off_where_their_exchanges_fail(result, rest, off) -> None:
    assert command.clusters_fail(Outcome("wrappers", "wrappers", result, 1.0, [], rest)) == off


def stand_ins(monkeypatch, importable: list[bool], said: list[str]) -> list[str]:
    """Replaces what is run; returns the names of the lines that were."""
    seen = []

    def line(self: Run, line: Line) -> list[Outcome]:
        seen.append(line.name)
        rows, rest, result = [], [], "ok"
        if line.name == "facts":
            result = "ok" if importable.pop(0) else "exit status 1"
            rows = [{"gpu": "NVIDIA Made Up"}] if result == "ok" else []
        if line.name == "wrappers":
            rest = said
        found = [Outcome(line.name, name, result, 1.0, rows, rest) for name in line.commands]
        self.outcomes += found
        return found

    monkeypatch.setattr(Run, "line", line)
    return seen


def test_what_does_not_import_is_built_in_place(monkeypatch, run: Run) -> None:
    seen = stand_ins(monkeypatch, [False, True], exchanges())
    command.run_plan(run, "first")
    assert seen[:4] == ["facts", "build", "facts", "wrappers"]
    assert "ADL_CUDA_CLUSTERS" not in run.environment
    seen = stand_ins(monkeypatch, [False, False], exchanges())
    command.run_plan(run, "first")
    assert seen == ["facts", "build", "facts"]


def test_clusters_that_fail_are_off_for_the_rest(monkeypatch, run: Run) -> None:
    stand_ins(monkeypatch, [True], exchanges("cluster_relay"))
    command.run_plan(run, "first")
    assert run.environment["ADL_CUDA_CLUSTERS"] == "0"
    assert any("CLUSTERS ARE OFF" in line for line in table.write(run))


def test_a_user_builds_from_source(monkeypatch, run: Run) -> None:
    seen = stand_ins(monkeypatch, [True], exchanges())
    command.run_plan(run, "all")
    assert seen[:4] == ["build", "programs", "facts", "wrappers"]


def test_make_gpu_says_at_once_that_there_is_none(monkeypatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setattr(Run, "line", lambda *_: pytest.fail("something was run"))
    assert command.main([str(tmp_path), "all"]) == 1
    assert capsys.readouterr().out.endswith("finds no GPU\n")
    monkeypatch.setattr(lines, "has", lambda module: False)
    assert lines.why_not().endswith("has no torch: name the Python that has, make gpu PYTHON=...")


def test_lines_can_be_chosen(monkeypatch, run: Run) -> None:
    seen = stand_ins(monkeypatch, [True], exchanges())
    command.run_plan(run, "first", ["times", "wrappers"])
    assert seen == ["facts", "wrappers", "times"]
    with pytest.raises(SystemExit):
        command.options([str(run.out), "--only", "nothing"])


def test_without_a_gpu_programs_say_what_they_need(run: Run) -> None:
    run.gpu = False
    row = json.dumps({"name": "a", "note": "FAILED: no CUDA-capable device is detected"})
    commands = {
        "text": python("print('no CUDA-capable device is detected'); exit(1)"),
        "json": python(f"print({row!r}); exit(1)"),
        "other": python("exit(2)"),
    }
    found = run.line(Line("all", commands, 20))
    assert [o.good for o in found] == [True, True, False]
    assert found[0].result == "needs a GPU: no CUDA-capable device is detected"
    run.gpu = True
    assert not any(o.good for o in run.line(Line("all", commands, 20)))
    assert any("all, json: a: FAILED: no CUDA" in line for line in table.write(run))


# The table


def made_up(run: Run) -> None:
    """More than fits: everything went wrong, and every time was measured."""
    from test_bench_gpu import made_up_row

    from bench import store
    from bench.gpu.grids import GRIDS

    latency = {"name": "exchange latency, words in L2, 1 x 64 blocks", "unit": "us/step"}
    latency |= {"value": 0.5, "predicted": 0.4, "cycles": 990}
    for name in lines.CALIBRATIONS:
        run.outcomes.append(Outcome("calibrate", name, "ok", 3.0, [latency], []))
    for name in lines.tiers(Machine()).commands:
        tier, cell, dtype = name.split()
        row = {"tier": tier, "cell": cell, "dtype": dtype, "ok": False, "problem": "x" * 300}
        run.outcomes.append(Outcome("tiers", name, "exit status 1", 3.0, [row], []))
    rows = [
        made_up_row(job, mode, 2.0) for job in GRIDS["first"].jobs for mode in ("infer", "train")
    ]
    run.outcomes.append(Outcome("times", "times", "ok", 90.0))
    store.write_json(run.out / "times.json", {"rows": rows})


def test_the_table_is_short_and_tells_what_came(run: Run) -> None:
    made_up(run)
    found = table.write(run)
    assert len(found) <= table.MOST_LINES and sum(map(len, found)) < 10_000
    text = "\n".join(found)
    assert "Costs::grid_latency: measured 990, assumed 800" in text
    assert "tiers" in text and "30 of 30 not ok" in text
    assert sum("(2.00)" in line for line in found) == 17
    content = json.loads((run.out / "calibration.json").read_text())
    assert len(content["calibration"]) == len(lines.CALIBRATIONS)
    assert run.file("table.txt").read_text() == text + "\n"


def test_there_is_a_table_whatever_was_written(run: Run) -> None:
    run.outcomes.append(Outcome("tiers", "a", "ok", 1.0, [{"tier": "block"}], []))
    run.outcomes.append(Outcome("times", "times", "ok", 1.0))
    (run.out / "times.json").write_text("{")
    found = table.write(run)
    assert any(line.startswith("_times: ") for line in found)
    assert any(line.startswith("tiers ") for line in found)


# The kit


def test_files_of_a_kit(monkeypatch, tmp_path: Path) -> None:
    """All that the lines name, without what was made here."""
    monkeypatch.setattr(kit, "KIT", tmp_path)
    kit.copy_sources()
    for line in [lines.facts(), lines.build(), *lines.everything(Machine())]:
        for words in line.commands.values():
            for word in map(str, words):
                inside = word.startswith(str(kit.ROOT)) and word.endswith(".py")
                assert not inside or (tmp_path / Path(word).relative_to(kit.ROOT)).exists()
    left = {".so", ".pyc"} & {path.suffix for path in tmp_path.rglob("*")}
    assert not left and not (tmp_path / "adl_kernels/_build_info.py").exists()
    assert sum(kit.sizes().values()) < 5e6
    assert (tmp_path / "run").stat().st_mode & 0o111


@pytest.mark.parametrize(
    "has, torch, reused",
    [
        ("2.11.0 13.0", "torch==2.11.0", True),
        ("2.11.0 13.0", "torch", True),
        ("2.13.0 13.0", "torch==2.11.0", False),
        ("2.11.0 ", "torch==2.11.0", False),  # of the CPU
        ("", "torch==2.11.0", False),
    ],
)
def test_a_kit_is_built_with_the_torch_that_is_named(
    monkeypatch, has: str, torch: str, reused: bool
) -> None:
    started = []

    def start(words, **_):
        started.append([str(word) for word in words])
        return SimpleNamespace(stdout=f"{has}\n")

    monkeypatch.setattr(kit, "probe", lambda python: SimpleNamespace(torch=has or None))
    monkeypatch.setattr(kit.subprocess, "run", start)
    found = kit.environment("/named/python", torch)
    assert (found == "/named/python") == reused
    assert (started[-1][-3:] == [torch, "setuptools>=77", "ninja"]) == (not reused)
