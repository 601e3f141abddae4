"""The examples run as a reader would run them, and print what they promise."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.cpu_only

ROOT = Path(__file__).parents[1]


def run(name: str, *options: str) -> str:
    """What an example prints."""
    # What was imported here is to be imported there, wherever it lies.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, ROOT / "examples" / name, *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
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
