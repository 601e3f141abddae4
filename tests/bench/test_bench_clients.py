"""The measurement of models of public libraries, with one that needs none."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from bench import options
from bench.__main__ import main
from bench.clients import timing
from bench.clients.models import Client

pytestmark = pytest.mark.cpu_only


def made():
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4))


def image():
    return (torch.randn(1, 3, 6, 6),)


@pytest.fixture(autouse=True)
def one_client(monkeypatch, tmp_path):
    monkeypatch.setattr(timing, "CLIENTS", [Client("torch", "tiny", made, image, image, 1)])
    monkeypatch.setattr(timing, "load_those_that_others_import", lambda: None)
    monkeypatch.setattr(options, "RESULTS", tmp_path)


def test_a_file_and_its_table(tmp_path, capsys):
    words = ["clients", "--seconds-per-case", "0", "--threads", "1", "2", "--save"]
    assert main(words) == 0
    rows = json.loads((tmp_path / "cpu-clients.json").read_text())["clients"]
    assert [(r["model"], r["threads"], r["replaced"]) for r in rows] == [
        ("tiny", t, 1) for t in (1, 2)
    ]
    assert all(0 <= r["error"] < 1e-6 and r["ratio"] > 0 for r in rows)
    capsys.readouterr()
    assert main(["table", str(tmp_path / "cpu-clients.json")]) == 0
    table = capsys.readouterr().out
    assert f"| torch {torch.__version__.split('+')[0]}" in table
    assert "| tiny | [1, 3, 6, 6] | 1 |" in table and "2 threads |" in table


def test_a_wrong_result_gets_no_ratio(monkeypatch, capsys):
    monkeypatch.setattr(timing, "MOST_WRONG", -1.0)
    assert main(["clients", "--seconds-per-case", "0", "--threads", "1"]) == 0
    assert "wrong result" in capsys.readouterr().out
