"""Compiles programs and libraries that run CUDA kernels on the CPU.

Three variants: `fast`; `asan`, with the address and undefined behaviour sanitizers; `race`, with
the detector of racecheck.cpp. `build("fast", [Path("tests/cuda_on_cpu/wrappers.cu")], output)`
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shlex
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

RUNTIME = ["collectives", "cuda_on_cpu", "fibers", "log", "schedule", "tensor_cores"]
# Kernels look at a float's bits, and say `#pragma unroll`.
FLAGS = "-std=c++20 -g -fPIC -Wall -Wextra -fno-strict-aliasing -Wno-unknown-pragmas".split()
ASAN = "-O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined".split()
RUNTIME_FLAGS = {"fast": ["-O2"], "asan": ASAN, "race": ["-O2", "-DADL_EMULATOR_RACE"]}
KERNEL_FLAGS = {"fast": ["-O2"], "asan": ASAN, "race": ["-O1", "-fsanitize=thread"]}
LINK_FLAGS = {"fast": [], "asan": ["-fsanitize=address,undefined"], "race": []}
VARIANTS = list(RUNTIME_FLAGS)


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


def compile_all(commands: list[list[str]], jobs: int = 2) -> None:
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(run, commands))


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time: the tests run in several."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def runtime(variant: str) -> list[Path]:
    """The emulator's own objects, made once for every state of its sources.

    They know vectors and dim3 only, which are the same with the toolkit's headers and without.
    """
    names = [*RUNTIME, "racecheck"] if variant == "race" else RUNTIME
    flags = [*compile_flags(headers=False), *RUNTIME_FLAGS[variant]]
    state = hashlib.sha256(shlex.join([*compiler(), *flags]).encode())
    for path in sorted([*HERE.glob("*.h"), *(HERE / f"{name}.cpp" for name in names)]):
        state.update(path.read_bytes())
    folder = ROOT / "build" / f"emulator-{variant}" / state.hexdigest()[:16]
    objects = [folder / f"{name}.o" for name in names]
    command = [*compiler(), *flags, "-c"]
    with locked(folder / "lock"):
        if not (folder / "complete").exists():
            compile_all([[*command, str(HERE / f"{o.stem}.cpp"), "-o", str(o)] for o in objects])
            (folder / "complete").touch()
    return objects


def fingerprint(command: list[list[str]], files: list[str]) -> list[object]:
    return [command, {f: os.stat(f).st_mtime_ns if os.path.exists(f) else 0 for f in files}]


def build(
    variant: str,
    sources: list[Path],
    output: Path,
    flags: list[str] | None = None,
    shared: bool = False,
    link: list[str] | None = None,
    csrc: Path = ROOT / "csrc",
    headers: bool = True,
) -> Path:
    """A program, or with `shared` a library, from sources with kernels in them.

    It is made when out of date. `flags` are added when compiling, `link` when linking. `csrc` is
    where cuda/device.cuh is found.
    """
    objects = [output.parent / f"{output.name}.{i}.{s.stem}.o" for i, s in enumerate(sources)]
    common = [*compile_flags(csrc, headers), *KERNEL_FLAGS[variant], *(flags or [])]
    commands = [
        [*compiler(), *common, "-MMD", "-x", "c++", "-c", str(source), "-o", str(o)]
        for source, o in zip(sources, objects, strict=True)
    ]
    # Two libraries in one process must not share an emulator, nor its CUDA functions with torch's.
    kind = ["-shared", "-Wl,-Bsymbolic"] if shared else ["-rdynamic"]
    parts = [str(o) for o in [*objects, *runtime(variant)]]
    linking = [*compiler(), *kind, *LINK_FLAGS[variant], *parts, "-o", str(output), "-ldl"]
    linking += link or []

    stamp = output.parent / f"{output.name}.stamp"
    with locked(output.parent / f"{output.name}.lock"):
        if output.exists() and stamp.exists():
            made = json.loads(stamp.read_text())
            if made == fingerprint([*commands, linking], list(made[1])):
                return output
        compile_all(commands)
        run(linking)
        files = []
        for o in objects:
            rule = o.with_suffix(".d").read_text().replace("\\\n", " ")
            files += rule.split(": ", 1)[1].split()
            o.with_suffix(".d").unlink()
            o.unlink()
        stamp.write_text(json.dumps(fingerprint([*commands, linking], sorted(set(files)))))
    return output
