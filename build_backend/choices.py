"""What to build and how wide: every decision of the build as a function of plain values."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from .errors import BuildError

MEMORY_PER_JOB = 2 * 2**30  # a file that includes torch's headers peaks at about 1.5 GB

AVX512_FLAGS = "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mprefer-vector-width=512".split()

ISA_FLAGS = {
    "default": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": AVX512_FLAGS,
    "avx512bf16": [*AVX512_FLAGS, "-mavx512bf16"],
}

# Of GPUs that this package knows; where none is present, all of them are built.
CUDA_ARCHS = ("80", "90a", "100", "120")
OLDEST_CUDA_ARCH = 80


def isas(system: str = sys.platform, machine: str = platform.machine()) -> tuple[str, ...]:
    """Instruction sets that the kernels are compiled for; the best one is chosen at run time."""
    if system == "linux" and machine in ("x86_64", "AMD64"):
        return tuple(ISA_FLAGS)
    return ("default",)


def max_jobs(setting: str | None, cores: int, memory: int) -> int:
    """Number of compilers to run at a time: MAX_JOBS, or what cores and memory (bytes) allow."""
    if not setting:
        return max(1, min(cores, memory // MEMORY_PER_JOB))
    if not setting.isdigit() or int(setting) == 0:
        raise BuildError(f"MAX_JOBS must be a positive whole number, got {setting!r}.")
    return int(setting)


def jobs_here() -> int:
    return max_jobs(os.environ.get("MAX_JOBS"), available_cores(), available_memory())


def nvcc_threads(jobs: int, archs: int) -> int:
    """Architectures that each nvcc compiles at a time: with many cores the longest file is what all
    wait for, with few there is always another file to compile."""
    return max(1, min(archs, jobs // 4))


def available_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_memory() -> int:
    """Bytes that a build may use: the machine's free memory or the container's limit."""
    limits = []
    meminfo, cgroup = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    if meminfo.exists():
        fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
        limits.append(int(fields["MemAvailable"].split()[0]) * 1024)
    else:
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    if cgroup.exists() and cgroup.read_text().strip().isdigit():
        limits.append(int(cgroup.read_text()))
    return min(limits)


def find_cuda_home(environ: Mapping[str, str], nvcc: str | None) -> Path | None:
    """The toolkit's folder; an nvcc found on PATH may be a wrapper that lives elsewhere."""
    named = environ.get("CUDA_HOME") or environ.get("CUDA_PATH")
    if named:
        candidates = [Path(named)]
    else:
        candidates = [Path(nvcc).resolve().parent.parent] if nvcc else []
        candidates.append(Path("/usr/local/cuda"))
    for folder in candidates:
        if (folder / "include/cuda_runtime.h").exists() and (folder / "bin/nvcc").exists():
            return folder
    return None


def cuda_decision(
    setting: str | None,
    sources: Sequence[str],
    torch_cuda: str | None,
    cuda_home: Path | None,
) -> tuple[bool, str]:
    """Whether to build for CUDA, and why not. `setting` is ADL_CUDA."""
    if setting not in (None, "", "0", "1"):
        raise BuildError(f"ADL_CUDA must be 0 or 1, got {setting!r}.")
    if setting == "0":
        return False, "ADL_CUDA=0"
    missing, cure = "", ""
    if not sources:
        missing = "this version has no CUDA kernels yet"
    elif torch_cuda is None:
        missing = "the torch found is a CPU-only build"
        cure = ": install a CUDA build of torch first"
    elif cuda_home is None:
        missing = "no CUDA toolkit with include/cuda_runtime.h and bin/nvcc was found"
        cure = ": set CUDA_HOME to its folder"
    if missing and setting == "1":
        raise BuildError(f"ADL_CUDA=1 asks for a CUDA build, but {missing}{cure}.")
    return not missing, missing


def present_gpus(driver: str = "libcuda.so.1") -> list[tuple[int, int]]:
    """Compute capabilities of the GPUs here, from the driver: torch may be out of sight."""
    try:
        cuda = ctypes.CDLL(driver)
    except OSError:
        return []
    count, found = ctypes.c_int(), []
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)):
        return []
    for index in range(count.value):
        device, version = ctypes.c_int(), (ctypes.c_int(), ctypes.c_int())
        cuda.cuDeviceGet(ctypes.byref(device), index)
        for part, attribute in zip(
            version, (75, 76), strict=True
        ):  # COMPUTE_CAPABILITY_MAJOR, _MINOR
            cuda.cuDeviceGetAttribute(ctypes.byref(part), attribute, device)
        found.append((version[0].value, version[1].value))
    return found


def arch_of(capability: tuple[int, int]) -> str:
    """Of the known architectures the newest whose code a GPU runs, or its own: 8.6 -> 80."""
    major, minor = capability
    own = 10 * major + minor
    fitting = [a for a in CUDA_ARCHS if _number(a) // 10 == major and _number(a) <= own]
    return fitting[-1] if fitting else str(own)


def cuda_archs(setting: str | None, gpus: Sequence[tuple[int, int]]) -> tuple[str, ...]:
    """What to build for: ADL_CUDA_ARCHS, or the GPUs that are present, or all known ones."""
    words = re.split(r"[\s,;]+", (setting or "").strip(" ,;"))
    if words == [""]:
        serving = [arch for arch in map(arch_of, gpus) if _number(arch) >= OLDEST_CUDA_ARCH]
        return tuple(sorted(set(serving), key=_number)) or CUDA_ARCHS
    for word in words:
        if not re.fullmatch(r"\d{2,3}[af]?", word):
            raise BuildError(
                "ADL_CUDA_ARCHS must be a list of compute capabilities without their dots, such as "
                f"80 90a 100, got {word!r}."
            )
        if _number(word) < OLDEST_CUDA_ARCH:
            raise BuildError(
                f"ADL_CUDA_ARCHS names {word}, but the CUDA kernels need compute capability 8.0 or "
                "newer."
            )
    return tuple(sorted(set(words), key=_number))


def check_archs(archs: Sequence[str], nvcc_says: str) -> None:
    """`nvcc_says` is what `nvcc --list-gpu-code` prints: sm_80 sm_90 ..., without letters."""
    known = [int(number) for number in re.findall(r"sm_(\d+)", nvcc_says)]
    missing = [arch for arch in archs if _number(arch) not in known]
    if known and missing:
        raise BuildError(
            f"this nvcc cannot compile for {', '.join('sm_' + arch for arch in missing)}; it knows "
            f"{', '.join(f'sm_{number}' for number in sorted(known))}. Name others with "
            "ADL_CUDA_ARCHS, or another toolkit with CUDA_HOME."
        )


def _number(arch: str) -> int:
    return int(arch.rstrip("af"))


def codes(archs: Sequence[str]) -> tuple[str, ...]:
    """What is made: sm_80, ...; in a build for all also PTX, compute_120, for GPUs yet to come."""
    newest = (f"compute_{archs[-1]}",) if archs == CUDA_ARCHS else ()
    return (*(f"sm_{arch}" for arch in archs), *newest)


def gencode_flags(archs: Sequence[str]) -> list[str]:
    """Explicit, because torch's own list fails without a GPU."""
    return [f"-gencode=arch=compute_{code.split('_')[1]},code={code}" for code in codes(archs)]


def find_compiler(environ: Mapping[str, str]) -> str:
    """The C++ compiler's command: CXX, or c++ from PATH."""
    command = environ.get("CXX") or "c++"
    if shutil.which(command.split()[0]) is None:
        raise BuildError(
            f"needs a C++20 compiler, but `{command}` was not found: install g++ (11 or newer) "
            "or clang, or name one with CXX."
        )
    return command
