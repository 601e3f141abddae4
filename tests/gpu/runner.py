"""Runs lines of commands, each with its own limit, and keeps what they say in one folder."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
PATIENCE_S = 5.0  # between SIGINT, at which pytest writes its summary, and SIGKILL
MOST_OUTPUT = 150_000  # bytes of one command that are kept
OUT_OF_TIME = "out of time"
NEEDS_A_GPU = "needs a GPU"

Words = Sequence[str]


@dataclass(frozen=True)
class Line:
    """Commands by name, `at_once` of them at a time; each is stopped after `limit_s`.

    needs: what is missing, so that none is run; a sentence.
    """

    name: str
    commands: Mapping[str, Words]
    limit_s: float
    at_once: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)
    cwd: Path = TESTS  # not the root, where a test runner would collect everything
    needs: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of a command: `rows` are its lines of JSON, `rest` its last other lines."""

    line: str
    name: str
    result: str  # "ok", what went wrong, or without a GPU what is needed
    seconds: float = 0.0
    rows: Sequence[dict[str, Any]] = ()
    rest: Sequence[str] = ()

    @property
    def good(self) -> bool:
        return self.result == "ok" or self.result.startswith(NEEDS_A_GPU)


def parse(text: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Lines that are objects of JSON, and the others."""
    rows, rest = [], []
    for line in filter(None, map(str.rstrip, text.splitlines())):
        row = None
        if line.startswith("{"):
            with contextlib.suppress(ValueError):
                row = json.loads(line)
        if isinstance(row, dict):
            rows.append(row)
        else:
            rest.append(line)
    return rows, rest


class _Process:
    """A command under way, in a group of its own."""

    def __init__(self, words: Words, line: Line, environment: Mapping[str, str], limit_s: float):
        self.output = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        self.start, self.limit_s = time.monotonic(), limit_s
        self.asked = False  # to stop, by SIGINT
        self.result = ""
        try:
            self.process = subprocess.Popen(
                list(words),
                cwd=line.cwd,
                env=dict(environment) | dict(line.environment),
                stdout=self.output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                # Who was started in the background has inherited that SIGINT is ignored.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        except OSError as error:
            self.process, self.result = None, f"cannot be started: {error}"

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start

    def ended(self) -> bool:
        """Looks after the process; True once nothing more is to be expected of it."""
        if self.process is None:
            return True
        code = self.process.poll()
        late = self.seconds - self.limit_s
        if code is None and late > 0 and not self.asked:
            self.asked = True
            self.process.send_signal(signal.SIGINT)
        if code is None and late <= PATIENCE_S:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # with the workers that it started
        if code is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(2.0)  # a driver that hangs holds it for longer
        self.result = "ok" if code == 0 else f"exit status {code}"
        if self.asked:
            self.result = f"stopped after {self.limit_s:.0f} s" + " by SIGKILL" * (code is None)
        return True

    def said(self) -> str:
        self.output.seek(0, os.SEEK_END)
        size = self.output.tell()
        self.output.seek(0)
        text = self.output.read()
        self.output.close()
        if size <= MOST_OUTPUT:
            return text
        half = MOST_OUTPUT // 2
        return f"{text[:half]}\n... {size - MOST_OUTPUT} bytes left out ...\n{text[-half:]}"


class Run:
    """One after the other, lines within `total_s`; what they say goes to `out`/<name>-log.txt."""

    def __init__(
        self, out: Path, total_s: float, name: str = "first", show: TextIO = sys.stdout
    ) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.out, self.name, self.show = out, name, show
        self.start, self.total_s = time.monotonic(), total_s
        self.environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(map(str, (ROOT, TESTS))),
            "PYTHONUNBUFFERED": "1",
        }
        # What the CPU computes is small; threads would wait longer than they compute.
        self.environment.setdefault("OMP_NUM_THREADS", "1")
        self.outcomes: list[Outcome] = []
        self.gpu = True  # whether there is one; without, that CUDA complains is no failure
        self.file("log.txt").write_text("")

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start

    @property
    def left_s(self) -> float:
        return self.total_s - self.seconds

    def file(self, kind: str) -> Path:
        return self.out / f"{self.name}-{kind}"

    def line(self, line: Line) -> list[Outcome]:
        """Runs what of it the time allows for; the outcomes are in the order of the commands."""
        which = ", ".join(line.commands) if len(line.commands) == 1 else ""
        print(f"{self.seconds:5.0f} s  {line.name:<12} {which}", file=self.show, flush=True)
        found: dict[str, Outcome] = {}
        waiting, under_way = list(line.commands.items()), dict[str, _Process]()
        while waiting or under_way:
            while waiting and len(under_way) < line.at_once:
                name, words = waiting.pop(0)
                limit_s = min(line.limit_s, self.left_s - PATIENCE_S)
                why_not = line.needs or (OUT_OF_TIME if limit_s < 1 else "")
                if why_not:
                    found[name] = Outcome(line.name, name, f"NOT RUN: {why_not}")
                    continue
                under_way[name] = _Process(words, line, self.environment, limit_s)
            for name, process in list(under_way.items()):
                if process.ended():
                    del under_way[name]
                    found[name] = self._finish(line, name, process)
            time.sleep(0.02)
        outcomes = [found[name] for name in line.commands]
        self.outcomes += outcomes
        self._keep()
        return outcomes

    def _finish(self, line: Line, name: str, process: _Process) -> Outcome:
        seconds, text = process.seconds, process.said()
        rows, rest = parse(text)
        notes = [row["note"] for row in rows if row.get("note")]
        result, complaint = process.result, [said for said in (*notes, *rest) if "CUDA" in said]
        if not self.gpu and result != "ok" and complaint:
            result = f"{NEEDS_A_GPU}: {complaint[-1]}"
        outcome = Outcome(line.name, name, result, seconds, rows, rest[-40:])
        with open(self.file("log.txt"), "a", errors="replace") as log:
            command = " ".join(map(str, line.commands[name]))
            log.write(f"\n==== {line.name}, {name}: {result}, {seconds:.1f} s\n")
            log.write(f"$ {command}\n{text}")
        return outcome

    def _keep(self) -> None:
        """Now, in case the next line takes the machine with it."""
        rows = [json.dumps(vars(outcome)) for outcome in self.outcomes]
        self.file("results.json").write_text("[\n" + ",\n".join(rows) + "\n]\n")
