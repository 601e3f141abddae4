"""Removes one synchronisation at a time from the kernels, and asks whether the emulator notices.

So it does with what a kernel does about a wait that was in vain.

    python tests/cuda_on_cpu/mutate.py [FILE ...] [--seeds N] [--jobs N]

Prints a Markdown table; the exit code is 1 if something can be removed unnoticed. A statement that
is there for another reason says so in its line: `__syncthreads();  // redundant: the reason`.

Every mutant is in the same program, which is compiled once: the environment chooses among them.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from build import HERE, ROOT, build_program

SYNCHRONISATION = re.compile(
    r"\b(?P<barrier>(__syncthreads|__syncwarp|(grid|cluster)_barrier|copy_async_commit)\([^()]*\));"
    r"|\bcopy_async_wait<(?P<groups>[^<>]*)>\(\);"
    r"|\b(?P<flag>add_release|load_acquire)\("
    r"|\b(?P<call>arrivals_(?:init|expect|wait)|(?:load|store)_relaxed|arrived|__syncthreads_or)\("
    r"|(?P<late>\b(exchange\.)?late\(\))(?! const)"
)
# What a flag becomes: the same access without the order of memory.
MUTANTS = """\
#include <cstdlib>
#include "common/cuda/device.cuh"
namespace mutant {
inline const int number = getenv("ADL_MUTANT") ? atoi(getenv("ADL_MUTANT")) : 0;
inline unsigned add_release(unsigned* p, unsigned v) {
  return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);
}
inline unsigned load_acquire(const unsigned* p) {
  return *static_cast<const volatile unsigned*>(p);
}
template <int removed>
void arrivals_init(uint64_t* barrier) {
  if (number != removed) adl::arrivals_init(barrier);
}
template <int removed, int fewer>
void arrivals_expect(uint64_t* barrier, unsigned bytes) {
  if (number != removed) adl::arrivals_expect(barrier, number == fewer ? bytes - 16 : bytes);
}
template <int removed, int other, int believed, int endless>
bool arrivals_wait(uint64_t* barrier, unsigned parity, unsigned microseconds) {
  if (number == removed) return true;
  if (number == other) parity = 1 - parity;
  if (number == endless) microseconds = ~0u;
  return adl::arrivals_wait(barrier, parity, microseconds) || number == believed;
}
template <int own, int alone>
int __syncthreads_or(int predicate) {
  if (number == own) return predicate;
  const int vote = ::__syncthreads_or(predicate);
  return number == alone ? predicate : vote;
}
template <int plain>
uint4 load_relaxed(const uint4* p) {
  return number == plain ? *p : adl::load_relaxed(p);
}
template <int plain>
void store_relaxed(uint32_t* p, uint32_t v) {
  number == plain ? void(*p = v) : adl::store_relaxed(p, v);
}
template <int always>
bool arrived(uint4 v) {
  return number == always || adl::arrived(v);
}
}
"""
# What a call of one of these templates can become.
CHANGES = {
    "arrivals_init": ["no {}"],
    "arrivals_expect": ["no {}", "{} of 16 bytes fewer"],
    "arrivals_wait": ["no {}", "{} for the other parity", "{} never in vain", "endless {}"],
    "__syncthreads_or": ["own vote for {}", "own vote after {}"],
    "load_relaxed": ["plain load for {}"],
    "store_relaxed": ["plain store for {}"],
    "arrived": ["always {}"],
}
RACE_EXIT = 66  # of racecheck.cpp


@dataclass
class Mutant:
    program: str  # that has to fail
    file: Path  # relative to the root
    line: int
    change: str
    redundant: bool
    number: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass
class Verdict:
    mutant: Mutant
    fifo: bool
    lifo: bool
    random: int
    race: str  # "race", "result" or ""

    @property
    def noticed(self) -> bool:
        return bool(self.fifo or self.lifo or self.random or self.race)


OF_TEAMS = ("exchange", "team", "weight_slice")


def program_of(file: Path) -> str:
    if file.parts[0] == "tests":
        return "wrappers"
    if file.name.startswith(OF_TEAMS):
        return "team_driver"
    return "conv_driver" if "depthwise" in file.parts else "driver"


def mutate(file: Path, mutants: list[Mutant]) -> str:
    """The text of the file with its mutants in it, which are added to the list."""
    program = program_of(file)
    lines = []
    for number, line in enumerate((ROOT / file).read_text().splitlines(), 1):
        code, comment, rest = line.partition("//")
        redundant = rest.strip().startswith("redundant:")

        def add(change: str, at: int = number, redundant: bool = redundant) -> str:
            mutants.append(Mutant(program, file, at, change, redundant, len(mutants) + 1))
            return str(len(mutants))

        def choose(change: str, add=add) -> str:
            return f"mutant::number != {add(change)}"

        def replace(match: re.Match[str], add=add, choose=choose) -> str:
            if call := match["call"]:
                numbers = [add(change.format(call)) for change in CHANGES[call]]
                return f"mutant::{call}<{', '.join(numbers)}>("
            if late := match["late"]:
                return f"({choose('never ' + late)} && {late})"
            if flag := match["flag"]:
                return f"({choose(f'{flag} without order')} ? {flag} : mutant::{flag})("
            if groups := match["groups"]:
                some, more = f"copy_async_wait<{groups}>", f"copy_async_wait<{groups} + 1>"
                removed, weaker = choose(f"no {some}"), choose(f"{more} for {some}")
                return f"{{ if ({removed}) ({weaker} ? {some} : {more})(); }}"
            return f"{{ if ({choose('no ' + match['barrier'])}) {match['barrier']}; }}"

        lines.append(SYNCHRONISATION.sub(replace, code) + comment + rest)
    return "\n".join(lines) + "\n"


def copy_sources(tree: Path) -> None:
    shutil.copytree(ROOT / "csrc", tree / "csrc")
    (tree / "tests/cuda_on_cpu").mkdir(parents=True)
    for path in HERE.iterdir():
        if path.suffix in (".cu", ".cuh"):
            shutil.copy(path, tree / "tests/cuda_on_cpu")
    (tree / "mutants.h").write_text(MUTANTS)


def exit_code(program: Path, mutant: int, schedule: str, seed: int = 0) -> int:
    settings = {"SCHEDULE": schedule, "SEED": str(seed)}
    env = {**os.environ, **{f"ADL_EMULATOR_{k}": v for k, v in settings.items()}}
    env["ADL_MUTANT"] = str(mutant)
    try:
        return subprocess.run([program], env=env, capture_output=True, timeout=300).returncode
    except subprocess.TimeoutExpired:
        return 1


def judge(mutant: Mutant, fast: Path, race: Path, seeds: int, first: bool) -> Verdict:
    code = exit_code(race, mutant.number, "fifo")
    if first and code:
        return Verdict(mutant, False, False, 0, "race" if code == RACE_EXIT else "result")
    return Verdict(
        mutant,
        fifo=exit_code(fast, mutant.number, "fifo") != 0,
        lifo=exit_code(fast, mutant.number, "lifo") != 0,
        random=sum(
            exit_code(fast, mutant.number, "random", seed) != 0 for seed in range(1, seeds + 1)
        ),
        race="race" if code == RACE_EXIT else "result" if code else "",
    )


def judge_all(files: list[Path], seeds: int, jobs: int, first: bool) -> list[Verdict]:
    """Of each mutant, and of each program as it is."""
    mutants: list[Mutant] = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        tree = Path(folder)
        copy_sources(tree)
        for file in files:
            (tree / file).write_text(mutate(file, mutants))
        # Without optimisation the race detector would not see copies of structs.
        flags = ["-O1", "-include", str(tree / "mutants.h")]
        built = {}
        for program in sorted({program_of(f) for f in files}):
            for variant in ("fast", "race"):
                output = tree / f"{program}-{variant}"
                args = (program, variant, output, tree, flags)
                built[program, variant] = pool.submit(build_program, *args, jobs=1)
            mutants.append(Mutant(program, Path(program), 0, "nothing", False, 0))

        def verdict(m: Mutant) -> Verdict:
            fast, race = (built[m.program, v].result() for v in ("fast", "race"))
            return judge(m, fast, race, seeds, first)

        for future in built.values():
            future.result()
        return list(pool.map(verdict, mutants))


def table(verdicts: list[Verdict], seeds: int) -> str:
    yes = {True: "yes", False: "-"}
    lines = [
        f"| place | change | fifo | lifo | random of {seeds} | race detector |",
        "|---|---|---|---|---|---|",
    ]
    for v in [v for v in verdicts if v.mutant.number]:
        change = f"`{v.mutant.change}`" + (" (redundant)" if v.mutant.redundant else "")
        row = [str(v.mutant), change, yes[v.fifo], yes[v.lifo], str(v.random), v.race or "-"]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def complaints(verdicts: list[Verdict]) -> list[str]:
    sentences = []
    for v in verdicts:
        if v.mutant.number == 0:
            if v.noticed:
                sentences.append(f"{v.mutant.program} fails as it is")
        elif v.noticed == v.mutant.redundant:
            problem = "needed, not redundant" if v.noticed else "nothing notices"
            sentences.append(f"{v.mutant}: {problem}: {v.mutant.change}")
    return sentences


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, help="by default every file with kernels")
    parser.add_argument("--seeds", type=int, default=20, help="of the random schedule")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "--first", action="store_true", help="no other run once the race detector has noticed"
    )
    args = parser.parse_args()
    files = [f.resolve().relative_to(ROOT) for f in args.files]
    if not files:
        kernels = sorted(p for p in ROOT.glob("csrc/*/cuda/*.cuh") if p.name != "device.cuh")
        files = [p.relative_to(ROOT) for p in [*kernels, HERE / "wrappers.cuh"]]
    verdicts = judge_all(files, args.seeds, args.jobs, args.first)
    print(table(verdicts, args.seeds))
    wrong = complaints(verdicts)
    for sentence in wrong:
        print(sentence, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
