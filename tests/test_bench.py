"""The measurements themselves: formulas, the gate that stops wrong results, and the files."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import adl_kernels

# bench is not installed. Appended, so that it cannot shadow an installed adl_kernels.
sys.path.append(str(Path(__file__).parents[1]))

from bench import cases, gate, report, run
from bench.__main__ import main

TINY = cases.Case("tiny", T=3, B=2, I=5, H=7)
QUICK = ["--quick", "--cases", "3x2x5x7", "--threads", "1"]


@pytest.fixture(autouse=True)
def keep_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def measure(**asked: object) -> list[run.Row]:
    settings = run.Settings(cases=(TINY,), threads=(1,), seconds=0.0, rounds=(2, 2), **asked)
    return list(run.rows(settings, {1: 100.0}))


def test_case_table() -> None:
    table = [case for grid in cases.GRIDS.values() for case in grid]
    assert len({case.name for case in table}) == len(table)
    assert all(min(case.T, case.B, case.I, case.H) > 0 for case in table)
    assert (100, 64, 512, 512) in [(c.T, c.B, c.I, c.H) for c in cases.GRIDS["main"]]
    assert cases.parse_cases(None, "main") == cases.GRIDS["main"]


def test_cases_by_name_and_by_shape() -> None:
    named, shaped = cases.parse_cases("large-512,3x2x5x7", "main")
    assert named in cases.GRIDS["main"]
    assert shaped == cases.Case("3x2x5x7", 3, 2, 5, 7)


@pytest.mark.parametrize("word", ["huge", "3x2x5", "3x0x5x7", ""])
def test_unknown_case_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match="TxBxIxH"):
        cases.parse_cases(word, "main")


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


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f64"])
def test_right_results_are_timed(dtype: str) -> None:
    rows = measure(dtypes=(dtype,))
    assert len(rows) == 6
    for row in rows:
        assert row["status"] == "ok", row["check"]
        assert row["ratio"] > 0
        assert 0 < row["ours"]["share_of_peak"] <= row["ours"]["gflops"] / 100
    run.refer_to_peak(rows, {1: 1000.0, 2: 2000.0})
    for row in rows:
        share = row["ours"]["gflops"] / (1000 * row["threads"])
        assert row["ours"]["share_of_peak"] == pytest.approx(share)


def test_markdown_table() -> None:
    rows = measure(cells=("lstm",), dtypes=("f32",))
    rows[0] |= {"ratio": 1.5, "disturbed": False}
    text = report.markdown({"rows": rows, "summary": report.groups(rows)})
    table, summary = text.split("\n\n")
    assert table.splitlines()[2].startswith("| lstm | f32 | 3, 2, 5, 7 | 1.50 (")
    assert summary.splitlines()[2].startswith("| lstm | f32 | 1.50 (1.50) | ")


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
    rows = measure(cells=("lstm",), dtypes=("f32",))
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


def test_disturbed_rows_do_not_count() -> None:
    shared = {"cell": "gru", "dtype": "f32", "mode": "infer", "threads": 2, "status": "ok"}
    ratios = [(2.0, False), (8.0, False), (300.0, True)]
    (group,) = report.groups(shared | {"ratio": r, "disturbed": d} for r, d in ratios)
    assert group["geometric_mean"] == pytest.approx(4.0)
    assert (group["cases"], group["disturbed"], group["minimum"]) == (2, 1, 2.0)
    assert "1 disturbed" in report.group_table([group])


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


def demo(folder: Path, *more: str) -> int:
    pytest.importorskip("matplotlib")
    pytest.importorskip("tqdm")
    size = ["--steps", "4", "--hidden", "16", "--batch", "64", "--length", "16", "--threads", "1"]
    return main(["demo", *size, "--out", str(folder), *more])


def test_demo_writes_curves_and_numbers(tmp_path: Path, capsys) -> None:
    assert demo(tmp_path) == 0
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    content = json.loads((tmp_path / "demo.json").read_text())
    assert [cell["cell"] for cell in content["cells"]] == ["lstm", "gru"]
    for cell in content["cells"]:
        assert cell["agree"]
        assert len(cell["sides"]["adl_kernels"]["losses"]) == 4
    assert capsys.readouterr().out.count("the two learn the same") == 2


def test_demo_refuses_different_learning(monkeypatch, tmp_path: Path, capsys) -> None:
    def convert(model: nn.Module) -> None:
        model.rnn.__class__ = Slightly

    monkeypatch.setattr(adl_kernels, "convert", convert)
    assert demo(tmp_path, "--cells", "lstm") == 1
    assert "THE TWO DO NOT LEARN THE SAME" in capsys.readouterr().out
