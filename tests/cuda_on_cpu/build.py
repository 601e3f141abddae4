"""Compiles programs and libraries that run CUDA kernels on the CPU.

Three variants: `fast`; `asan`, with the address and undefined behaviour sanitizers; `race`, with
the detector of racecheck.cpp. `build("fast", [Path("tests/cuda_on_cpu/wrappers.cu")], output)`
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shlex
import subprocess
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
    places = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    folders = [Path(p) / "include" for p in places if p]
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


def runtime(variant: str, headers: bool = True) -> list[Path]:
    """The emulator's own objects: made once per state of its sources, whoever asks."""
    names = [*RUNTIME, "racecheck"] if variant == "race" else RUNTIME
    flags = [*compile_flags(headers=headers), *RUNTIME_FLAGS[variant]]
    state = hashlib.sha256(shlex.join([*compiler(), *flags]).encode())
    for path in sorted([*HERE.glob("*.h"), *(HERE / f"{name}.cpp" for name in names)]):
        state.update(path.read_bytes())
    folder = ROOT / "build" / f"emulator-{variant}" / state.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    objects = [folder / f"{name}.o" for name in names]
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            compile_all(
                [
                    [*compiler(), *flags, "-c", str(HERE / f"{o.stem}.cpp"), "-o", str(o)]
                    for o in objects
                ]
            )
            (folder / "complete").touch()
    return objects


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

    `flags` are added when compiling, `link` when linking. `csrc` is where cuda/device.cuh is found.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    objects = [output.parent / f"{output.name}.{i}.{s.stem}.o" for i, s in enumerate(sources)]
    common = [*compile_flags(csrc, headers), *KERNEL_FLAGS[variant], *(flags or [])]
    compile_all(
        [
            [*compiler(), *common, "-x", "c++", "-c", str(source), "-o", str(o)]
            for source, o in zip(sources, objects, strict=True)
        ]
    )
    # Two libraries in one process must not share an emulator, nor its CUDA functions with torch's.
    kind = ["-shared", "-Wl,-Bsymbolic"] if shared else ["-rdynamic"]
    parts = [str(o) for o in [*objects, *runtime(variant, headers)]]
    run(
        [*compiler(), *kind, *LINK_FLAGS[variant], *parts, "-o", str(output), "-ldl", *(link or [])]
    )
    for o in objects:
        o.unlink()
    return output
