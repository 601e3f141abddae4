"""The examples run as a reader would run them, and print what they promise."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

import adl_kernels

pytestmark = pytest.mark.cpu_only

ROOT = Path(__file__).parents[1]
DEMO = ["--steps", "4", "--hidden", "16", "--batch", "64", "--length", "16", "--threads", "1"]


def run(name: str, *options: str, processes: int = 1) -> str:
    """What an example prints."""
    # What was imported here is to be imported there, wherever it lies.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable]
    if processes > 1:  # as torchrun does
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += [ROOT / "examples" / name, *options]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def share(line: str, printed: str) -> float:
    found = re.search(rf"{line} +([0-9.]+)%", printed)
    assert found, printed
    return float(found[1]) / 100


def test_every_example_has_a_test() -> None:
    names = {path.stem for path in (ROOT / "examples").glob("*.py")}
    assert {f"test_{name}" for name in names} <= set(globals())


@pytest.mark.slow
def test_classify() -> None:
    printed = run("classify.py", "--steps", "400")
    assert "step 400: loss " in printed
    assert share("2 to 40 brackets, as in training", printed) > 0.6
    assert share("42 to 80 brackets", printed) > 0.5


@pytest.mark.slow
def test_tag() -> None:
    printed = run("tag.py", "--steps", "100", "--files", "5")
    assert "4 files to learn from, 1 held out" in printed
    tagger = share("the tagger", printed)
    assert tagger > share("the commonest tag of the character", printed)
    assert tagger > 0.6


@pytest.mark.slow
def test_adding(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "flow.png"
    printed = run("adding.py", "--steps", "10", "--length", "60", "--picture", str(picture))
    for cell in ("RNN", "LSTM", "GRU"):
        assert re.search(rf"^{cell} .*last 10 batches \d\.\d+; .* before .* after", printed, re.M)
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_digits(tmp_path) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    picture = tmp_path / "digits.png"
    printed = run("digits.py", "--epochs", "4", "--picture", str(picture))
    assert "1437 digits to learn from, 360 held out" in printed
    shares = [float(found) for found in re.findall(r"^\S+ +([0-9.]+)% of the held", printed, re.M)]
    assert len(shares) == 2 and min(shares) > 90 and abs(shares[0] - shares[1]) < 3
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_mobilenet() -> None:
    printed = run("mobilenet.py", "--size", "32", "--rounds", "2")
    assert "13 replaced, 0 left, 13 fused" in printed
    off = re.search(r"outputs differ by (\S+) of the largest", printed)
    assert off and float(off[1]) < 1e-4
    assert re.search(r"^[0-9.]+ times as fast", printed, re.M)


@pytest.mark.slow
def test_language_model() -> None:
    """The same losses whoever computes them, but for a last digit that rounding turned."""

    def losses(*options: str, processes: int = 1) -> list[float]:
        printed = run("language_model.py", *options, processes=processes)
        found = re.findall(r"^(?:step \d+|text .*): (\d\.\d{3}) nats per character$", printed, re.M)
        assert len(found) == 11, printed
        return [float(loss) for loss in found]

    alone = losses()
    assert alone[0] > 2 and alone[-1] < 0.5
    for options in (
        ("--parallel", "ddp"),
        ("--parallel", "fsdp"),
        ("--parallel", "ddp", "--compile", "reduce-overhead"),
    ):
        assert losses(*options, processes=2) == pytest.approx(alone, abs=1.5e-3), options


@pytest.mark.slow
def test_demo(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("tqdm")
    printed = run("demo.py", *DEMO, "--out", str(tmp_path))
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    content = json.loads((tmp_path / "demo.json").read_text())
    assert content["machine"]["command"].startswith("python examples/demo.py --steps 4")
    assert [cell["cell"] for cell in content["cells"]] == ["lstm", "gru"]
    for cell in content["cells"]:
        assert cell["agree"]
        assert len(cell["sides"]["adl_kernels"]["losses"]) == 4
    assert printed.count("the two learn the same") == 2


class Slightly(nn.LSTM):
    """An LSTM whose output is a thousandth too large."""

    def forward(self, x, hx=None):  # type: ignore[override]
        y, state = super().forward(x, hx)
        return y * 1.001, state


def test_demo_refuses_different_learning(monkeypatch, tmp_path, capsys) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("tqdm")

    def convert(model: nn.Module) -> None:
        model.rnn.__class__ = Slightly

    monkeypatch.setattr(adl_kernels, "convert", convert)
    monkeypatch.syspath_prepend(ROOT / "examples")
    demo = importlib.import_module("demo")
    assert demo.main([*DEMO, "--out", str(tmp_path), "--cells", "lstm"]) == 1
    assert "THE TWO DO NOT LEARN THE SAME" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="the prompt must be of characters of the text, got 'é'"):
        demo.main([*DEMO, "--out", str(tmp_path), "--cells", "lstm", "--prompt", "é"])


def test_gradient_flow(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    printed = run("gradient_flow.py", "--steps", "2", "--length", "20", "--out", str(tmp_path))
    assert (tmp_path / "gradient-flow.png").read_bytes().startswith(b"\x89PNG")
    content = json.loads((tmp_path / "gradient-flow.json").read_text())
    assert {"command", "torch", "cpu"} <= set(content["machine"])
    assert [cell["cell"] for cell in content["cells"]] == ["RNN", "LSTM", "GRU"]
    for cell in content["cells"]:
        for when in ("before", "after"):
            norms = cell[when]["gradient"]
            assert len(norms) == 20 and all(norm > 0 for norm in norms)
            assert cell[when]["first_to_last"] == pytest.approx(norms[0] / norms[-1], rel=1e-3)
            assert (cell[when]["gamma_lambda"] is None) == (cell["cell"] != "RNN")
    assert "before, " in printed
