"""Compiles every CUDA kernel for every architecture and lists what each takes; needs no GPU.

`make cuda-check`; with ADL_CUDA_ARCHS=90a for that architecture only. A stack frame, a spilled
register or a warning is a failure. What has not changed since the last run is not compiled again.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from build_backend import choices  # noqa: E402 (needs the path above)
from build_backend.compile import NVCC_FLAGS, Plan, cuda_sources, is_cuda_source  # noqa: E402
from build_backend.torch_info import find_torch  # noqa: E402

FOLDER = ROOT / "build" / "cuda-check"
ARCHS = choices.cuda_archs(os.environ.get("ADL_CUDA_ARCHS"), [])
# torch's own builds switch these conversions off, so code that needs them is not portable.
DEFINES = [
    f"-D__CUDA_NO_{name}__"
    for name in ("HALF_OPERATORS", "HALF_CONVERSIONS", "BFLOAT16_CONVERSIONS", "HALF2_OPERATORS")
]
FLAGS = [*NVCC_FLAGS, "-Xptxas", "-v", "-Werror", "all-warnings", *DEFINES]


# What ptxas says


@dataclass(frozen=True)
class Usage:
    """What one function takes on one architecture; memory in bytes."""

    registers: int | None  # None for a function that is called by a kernel
    shared: int  # static; what a launch asks for comes on top
    stack: int
    spill: int  # stores and loads

    @property
    def good(self) -> bool:
        return self.stack == 0 and self.spill == 0

    def __str__(self) -> str:
        parts = [] if self.registers is None else [f"{self.registers} regs"]
        parts += [f"{self.shared} smem"] * (self.shared > 0)
        parts += [f"{self.stack} STACK"] * (self.stack > 0)
        parts += [f"{self.spill} SPILL"] * (self.spill > 0)
        return ", ".join(parts) or "called"


PROPERTIES = re.compile(
    r"Function properties for (?P<name>\S+)\n"
    r"\s+(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads\n"
    r"(?:ptxas info\s+: Used (?P<registers>\d+) registers(?P<rest>.*))?"
)
SHARED = re.compile(r"(\d+) bytes smem")
# wgmma that ptxas has to serialise is an "info" of its own, not a warning.
COMPLAINT = re.compile(r"warning|Potential Performance Loss", re.IGNORECASE)


def parse(text: str) -> dict[str, Usage]:
    """The functions in the output of `ptxas -v`, by mangled name."""
    found = {}
    for match in PROPERTIES.finditer(text):
        shared = SHARED.search(match["rest"] or "")
        found[match["name"]] = Usage(
            registers=int(match["registers"]) if match["registers"] else None,
            shared=int(shared[1]) if shared else 0,
            stack=int(match["stack"]),
            spill=int(match["stores"]) + int(match["loads"]),
        )
    return found


def complaints(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if COMPLAINT.search(line)]


def demangle(names: Sequence[str]) -> dict[str, str]:
    """Short names for people; the mangled ones where no demangler is installed."""
    tool = shutil.which("cu++filt") or shutil.which("c++filt")
    if tool is None or not names:
        return {name: name for name in names}
    run = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=True)
    return {name: short(line) for name, line in zip(names, run.stdout.splitlines(), strict=True)}


def short(signature: str) -> str:
    """void adl::f<adl::Lstm, __half>(int) -> adl::f<Lstm, Half>."""
    name = signature.replace("(anonymous namespace)::", "")
    depth = 0
    for k, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            name = name[:k]
            break
    head, bracket, arguments = name.partition("<")
    for long, brief in (("adl::", ""), ("__nv_bfloat16", "BFloat16"), ("__half", "Half")):
        arguments = arguments.replace(long, brief)
    return head.removeprefix("void ") + bracket + arguments


# The compiler


@dataclass(frozen=True)
class Unit:
    """One source for one architecture."""

    source: Path
    arch: str

    @property
    def name(self) -> str:
        return f"{self.source.stem}.sm_{self.arch}"

    def command(self, nvcc: Path) -> list[str]:
        # The first architecture stands for the host half, which is the same for all.
        kind = "-c" if self.arch == ARCHS[0] else "-cubin"
        target = f"-gencode=arch=compute_{self.arch},code=sm_{self.arch}"
        output = str(FOLDER / f"{self.name}.out")
        include = f"-I{ROOT / 'csrc'}"
        return [str(nvcc), *FLAGS, include, target, kind, str(self.source), "-o", output]


@dataclass(frozen=True)
class Outcome:
    unit: Unit
    good: bool  # it compiled
    text: str  # what the compiler said
    reused: bool

    @property
    def failures(self) -> list[str]:
        """Sentences, none if all is well."""
        if not self.good:
            return [f"{self.unit.source.name} does not compile:\n{self.text}"]
        usages = parse(self.text)
        names = demangle(list(usages))
        found = [f"{self.unit.name}: {line}" for line in complaints(self.text)]
        bad = ((names[name], usage) for name, usage in usages.items() if not usage.good)
        return found + [f"sm_{self.unit.arch}: {name} has {usage}" for name, usage in bad]


def sources() -> list[Path]:
    """The package's kernels, and those that calibrate the model of a step."""
    return [*cuda_sources(ROOT), *sorted(ROOT.glob("bench/gpu/*.cu"))]


def sources_digest() -> str:
    """Of everything that a kernel can include."""
    digest = hashlib.sha256()
    folders = ("csrc/*/cuda/*", "csrc/recurrent/cells/*", "bench/gpu/*.cu*")
    headers = ("csrc/*/params.h", "csrc/common/philox.h")
    for path in sorted(p for pattern in folders + headers for p in ROOT.glob(pattern)):
        if path.is_file():
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def compile_unit(unit: Unit, nvcc: Path, sources: str) -> Outcome:
    """Compiles, or reads again what the compiler said of the same sources, flags and version."""
    command = unit.command(nvcc)
    key = hashlib.sha256((sources + "\0".join(command)).encode()).hexdigest()
    kept = FOLDER / f"{unit.name}.txt"
    if kept.exists():
        first, _, text = kept.read_text().partition("\n")
        if first == key:
            return Outcome(unit, True, text, reused=True)
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    text = run.stdout + run.stderr
    if run.returncode == 0:
        kept.write_text(f"{key}\n{text}")
    return Outcome(unit, run.returncode == 0, text, reused=False)


def compile_all(units: Sequence[Unit], nvcc: Path) -> list[Outcome]:
    FOLDER.mkdir(parents=True, exist_ok=True)
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True)
    sources = sources_digest() + version.stdout
    with ThreadPoolExecutor(choices.jobs_here()) as pool:
        return list(pool.map(lambda unit: compile_unit(unit, nvcc, sources), units))


# The table


def table(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """A line per function, a column per architecture."""
    archs = [arch for arch in ARCHS if any(o.unit.arch == arch for o in outcomes)]
    rows: dict[str, dict[str, Usage]] = {}
    for outcome in outcomes:
        for name, usage in parse(outcome.text).items():
            rows.setdefault(name, {})[outcome.unit.arch] = usage
    names = demangle(list(rows))
    lines = [["", *(f"sm_{arch}" for arch in archs)]]
    for name, found in sorted(rows.items(), key=lambda row: names[row[0]]):
        lines.append([names[name], *(str(found.get(arch, "-")) for arch in archs)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        yield "  ".join(
            f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)
        ).rstrip()


def check_kernels(cuda_home: Path) -> list[str]:
    """Prints the table; returns what is wrong."""
    start = time.monotonic()
    files = sources()
    units = [Unit(source, arch) for source in files for arch in ARCHS]
    outcomes = compile_all(units, cuda_home / "bin/nvcc")
    print("\n".join(table(outcomes)))
    kernels = {name for outcome in outcomes for name in parse(outcome.text)}
    print(
        f"{len(kernels)} kernels from {len(files)} files x {len(ARCHS)} "
        f"architectures in {time.monotonic() - start:.0f} s, "
        f"{sum(outcome.reused for outcome in outcomes)} of {len(units)} reused"
    )
    return [failure for outcome in outcomes for failure in outcome.failures]


# The operators, which include torch


def check_ops(cuda_home: Path) -> list[str]:
    """Parses what is_cuda_source() finds against the headers of a CUDA torch, if there is one."""
    torch = find_torch()
    if torch is None or torch.cuda is None:
        why = "there is no torch" if torch is None else f"torch {torch.version} is a CPU build"
        print(f"the CUDA operators were not parsed: {why} ({sys.executable})")
        return []
    plan = Plan(ROOT, torch, choices.isas(), cuda_home)
    failures = []
    for item in plan.torch_objects():
        if is_cuda_source(item.source):
            command = [*choices.find_compiler(os.environ).split(), *item.flags, "-Werror"]
            command += ["-fsyntax-only", str(item.source)]
            run = subprocess.run(command, capture_output=True, text=True, check=False)
            print(f"{item.source.name} parsed with torch {torch.version}")
            failures += [run.stderr] * (run.returncode != 0)
    return failures


def main() -> int:
    cuda_home = choices.find_cuda_home(os.environ, shutil.which("nvcc"))
    if cuda_home is None:
        print("no CUDA toolkit found (set CUDA_HOME to its folder): kernels not compiled")
        return int(os.environ.get("ADL_REQUIRE_CUDA") == "1")
    if not cuda_sources(ROOT):
        print("this version has no CUDA kernels yet")
        return 0
    failures = check_kernels(cuda_home) + check_ops(cuda_home)
    for failure in dict.fromkeys(failures):  # most errors are the same for every architecture
        print(f"FAILED {failure}")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
