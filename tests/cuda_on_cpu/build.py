"""Compiles programs and libraries that run CUDA kernels on the CPU.

Three variants: `fast`; `asan`, with the address and undefined behaviour sanitizers; `race`, with
the detector of racecheck.cpp. `build("fast", [Path("tests/cuda_on_cpu/wrappers.cu")], output)`

What is made stays in its folder until a file that it was made from has changed, and several
processes may ask for it at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

RUNTIME = ["arrivals", "collectives", "cuda_on_cpu", "fibers", "log", "schedule", "tensor_cores"]
# Kernels look at a float's bits, and say `#pragma unroll`. Messages name lines, no variables.
FLAGS = "-std=c++20 -g1 -fPIC -Wall -Wextra -fno-strict-aliasing -Wno-unknown-pragmas".split()
ASAN = "-fsanitize=address,undefined -fno-sanitize-recover=undefined".split()
RUNTIME_FLAGS = {"fast": ["-O2"], "asan": ["-O1", *ASAN], "race": ["-O2", "-DADL_EMULATOR_RACE"]}
# The optimiser needs minutes for what the sanitizers make of unrolled kernels.
KERNEL_FLAGS = {"fast": ["-O2"], "asan": ["-O0", *ASAN], "race": ["-O1", "-fsanitize=thread"]}
LINK_FLAGS = {"fast": [], "asan": ["-fsanitize=address,undefined"], "race": []}
VARIANTS = list(RUNTIME_FLAGS)


@dataclass(frozen=True)
class Program:
    """Needs no torch, and checks what it runs. Sources are relative to the root."""

    kernels: list[str]
    host: list[str] = field(default_factory=list)


RECURRENT = sorted(path.stem for path in ROOT.glob("csrc/recurrent/cuda/*.cu"))
PROGRAMS = {
    "wrappers": Program(["tests/cuda_on_cpu/wrappers.cu"]),
    "faults": Program(["tests/cuda_on_cpu/faults.cpp", "tests/cuda_on_cpu/store_faults.cpp"]),
    "driver": Program(
        [
            *(f"csrc/recurrent/cuda/{name}.cu" for name in RECURRENT),
        ],
        ["tests/cuda_on_cpu/driver.cu"],
    ),
    "team_driver": Program(
        [
            *(f"csrc/recurrent/cuda/{name}.cu" for name in RECURRENT),
        ],
        ["tests/cuda_on_cpu/team_driver.cu"],
    ),
    "conv_driver": Program(
        [f"csrc/depthwise/cuda/{name}.cu" for name in ("filter", "separable", "weight_grad")],
        ["tests/cuda_on_cpu/conv_driver.cu"],
    ),
    **{
        f"calibrate_{name}": Program([f"bench/gpu/calibrate_{name}.cu"])
        for name in ("cluster", "l2", "mma", "step")
    },
}


def compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "g++"))


def cuda_headers() -> Path | None:
    """The toolkit's, whose types are the real ones; types_on_cpu.h stands in for them."""
    named = [Path(os.environ[v]) for v in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(v)]
    folders = [p / "include" for p in [*named, *sorted(Path("/usr/local").glob("cuda*"))]]
    return next((f for f in folders if (f / "cuda_bf16.h").exists()), None)


def compile_flags(csrc: Path = ROOT / "csrc", headers: bool = True) -> list[str]:
    """What every source that sees the emulator is compiled with, in any variant."""
    flags = [*FLAGS, f"-I{csrc}", f"-I{HERE}", "-DADL_CUDA_ON_CPU"]
    if headers and (toolkit := cuda_headers()):
        return [*flags, "-isystem", str(toolkit)]
    return [*flags, "-DADL_NO_CUDA_HEADERS"]


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)}\n{done.stdout}{done.stderr}")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time: the tests run in several."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def fingerprint(command: list[str], files: list[str]) -> tuple[list[str], dict[str, int]]:
    return (command, {f: os.stat(f).st_mtime_ns if os.path.exists(f) else 0 for f in files})


def made(command: list[str], output: Path, files: Callable[[], list[str]]) -> Path:
    """The output of a command, which is run when that is out of date.

    `files` says afterwards what it was made from.
    """
    stamp = output.with_name(f"{output.name}.stamp")
    with locked(output.with_name(f"{output.name}.lock")):
        if output.exists() and stamp.exists():
            before = tuple(json.loads(stamp.read_text()))
            if before == fingerprint(command, list(before[1])):
                return output
        # Whoever has the old one open keeps it.
        unfinished = output.with_name(f"{output.name}.unfinished")
        start = time.time_ns()
        run([*command, "-o", str(unfinished)])
        unfinished.rename(output)
        now = fingerprint(command, files())
        if max(now[1].values()) < start:  # nobody has edited a file meanwhile
            stamp.write_text(json.dumps(now))
    return output


def compiled(source: Path, flags: list[str], folder: Path) -> Path:
    """The object of a source, shared by all that compile it in the same way to the same folder."""
    command = [*compiler(), *flags, "-x", "c++", "-c", str(source)]
    name = f"{source.stem}-{hashlib.sha256(shlex.join(command).encode()).hexdigest()[:12]}"
    rules = folder / f"{name}.d"

    def files() -> list[str]:
        return rules.read_text().replace("\\\n", " ").split(": ", 1)[1].split()

    # System headers too: the toolkit's and torch's change.
    return made([*command, "-MD", "-MF", str(rules)], folder / f"{name}.o", files)


def runtime_sources(variant: str) -> list[Path]:
    names = [*RUNTIME, "racecheck"] if variant == "race" else RUNTIME
    return [HERE / f"{name}.cpp" for name in names]


def build(
    variant: str,
    sources: list[Path],
    output: Path,
    flags: list[str] | None = None,
    shared: bool = False,
    link: list[str] | None = None,
    csrc: Path = ROOT / "csrc",
    headers: bool = True,
    host: list[Path] | None = None,
    host_flags: list[str] | None = None,
    jobs: int = 2,
) -> Path:
    """A program, or with `shared` a library, from sources with kernels in them.

    `flags` are added when compiling, `link` when linking. `csrc` is where cuda/device.cuh is found.
    `host` are sources that see the emulator but have no kernels: the race detector leaves them out.
    """
    own = ROOT / "build" / f"emulator-{variant}"
    common = compile_flags(csrc, headers)
    kernel_flags = [*common, *KERNEL_FLAGS[variant], *(flags or [])]
    # The runtime first, or the race detector would look at its own vectors: of two instances of a
    # template the linker takes the first. It knows vectors and dim3 of CUDA only, which are the
    # same with the toolkit's headers and without.
    to_runtime = [*compile_flags(headers=False), *RUNTIME_FLAGS[variant]]
    todo = [(source, to_runtime, own) for source in runtime_sources(variant)]
    todo += [(source, kernel_flags, output.parent) for source in sources]
    to_host = [*common, *RUNTIME_FLAGS[variant], *(host_flags or [])]
    todo += [(source, to_host, output.parent) for source in host or []]
    with ThreadPoolExecutor(jobs) as pool:
        objects = [str(o) for o in pool.map(lambda args: compiled(*args), todo)]
    # Two libraries in one process must not share an emulator, nor its CUDA functions with torch's.
    kind = ["-shared", "-Wl,-Bsymbolic"] if shared else ["-rdynamic"]
    command = [*compiler(), *kind, *LINK_FLAGS[variant], *objects, "-ldl", *(link or [])]
    return made(command, output, lambda: objects)


def build_program(
    name: str,
    variant: str,
    output: Path,
    root: Path = ROOT,
    flags: list[str] | None = None,
    headers: bool = True,
    jobs: int = 2,
) -> Path:
    """One of PROGRAMS, from the sources under `root`."""
    program = PROGRAMS[name]
    return build(
        variant,
        [root / source for source in program.kernels],
        output,
        flags,
        csrc=root / "csrc",
        headers=headers,
        host=[root / source for source in program.host],
        host_flags=["-O0", *(flags or [])],
        jobs=jobs,
    )
