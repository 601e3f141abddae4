"""Compiles every source in one ninja run, each with its own flags, and links the extension."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from . import choices
from .errors import BuildError
from .torch_info import TorchInfo

# g++ 12 sees uninitialised values in each copy of an optional tensor.
CXX_FLAGS = (
    "-std=c++20 -O3 -DNDEBUG -fPIC -fvisibility=hidden -Wall -Wextra "
    "-Wno-maybe-uninitialized".split()
)
# The loops that matter are written out, and -O3 takes twice the time to compile the others.
KERNEL_OPTIMISATION = ["-O2", "-ftree-vectorize"]
# Of the set that hardly a processor runs where others are built beside it.
QUICK_TO_COMPILE = ["-O1"]
# The last two: g++ 12 takes a register that its own AVX-512 header leaves open for our mistake.
KERNEL_FLAGS = (
    "-fno-exceptions -ffp-contract=fast -fno-math-errno -fno-trapping-math "
    "-Wno-maybe-uninitialized -Wno-uninitialized".split()
)
NVCC_FLAGS = (
    "-std=c++20 -O3 -DNDEBUG --expt-relaxed-constexpr -Xcompiler -fPIC,-fvisibility=hidden".split()
)
# The number types that a .cu says it instantiates its kernels for: see common/cuda/each_number.h.
NUMBERS = {"adl::BFloat": "bf16", "adl::Half": "f16", "float": "f32", "double": "f64"}
EACH_NUMBER = {
    "ADL_EACH_NUMBER(": tuple(NUMBERS),
    "ADL_EACH_NUMBER_BUT_DOUBLE(": tuple(NUMBERS)[:3],
}
# What nvcc takes for one architecture and number type, as measured once: the longest begin.
NVCC_SECONDS = {
    "block_backward": 12,
    "block_forward": 10,
    "cluster_backward": 14,
    "cluster_forward": 14,
    "dropout": 4,
    "filter": 15,
    "grid_backward": 17,
    "grid_forward": 14,
    "numbers": 4,
    "rows": 9,
    "separable": 10,
    "streaming": 4,
    "table": 4,
    "weight_grad": 14,
}
OPENMP = ["-fopenmp"] if sys.platform == "linux" else []

# -MD, not -MMD: torch's headers count as system headers, and a new torch must rebuild.
RULES = """\
ninja_required_version = 1.5
rule cxx
  command = {cxx} -MD -MF $out.d $flags -c $in -o $out
  depfile = $out.d
  deps = gcc
rule nvcc
  command = {nvcc} -MD -MF $out.d $flags -c $in -o $out
  depfile = $out.d
  deps = gcc
"""


@dataclass(frozen=True)
class Object:
    """One file to compile; `name` is the object's path below the build folder."""

    rule: str
    source: Path
    name: str
    flags: list[str]


@dataclass(frozen=True)
class Plan:
    """Everything that is compiled and linked into adl_kernels._C."""

    root: Path
    torch: TorchInfo
    isas: tuple[str, ...]
    cuda_home: Path | None  # None: CPU build
    cuda_archs: tuple[str, ...] = choices.CUDA_ARCHS

    def objects(self) -> Iterator[Object]:
        if self.cuda_home:
            yield from self.cuda_objects()  # first, because they take longest
        yield from self.torch_objects()
        yield from self.kernel_objects()

    def torch_objects(self) -> Iterator[Object]:
        """Sources that may include torch or Python headers."""
        includes = [sysconfig.get_path("include"), *self.torch.include_dirs]
        built = [f"-DADL_ISA_{isa.upper()}" for isa in self.isas if isa != "default"]
        flags = [
            *self.common_flags(),
            "-DTORCH_EXTENSION_NAME=_C",
            *built,
            *(["-DADL_WITH_CUDA"] if self.cuda_home else []),
            *(f"-isystem{folder}" for folder in includes),
        ]
        # For error messages, to be quoted there.
        archs = f"-DADL_CUDA_ARCHS={','.join(choices.codes(self.cuda_archs))}"
        headers = (f"-isystem{folder}" for folder in self.cuda_include_dirs())
        cuda_flags = [*flags, archs, *headers]
        for source in torch_sources(self.root):
            name = object_name(self.root, source, "torch")
            if not is_cuda_source(source):
                yield Object("cxx", source, name, flags)
            elif self.cuda_home:
                yield Object("cxx", source, name, cuda_flags)

    def kernel_objects(self) -> Iterator[Object]:
        """Torch-free sources, once for each instruction set."""
        for isa in self.isas:
            chosen = [f"-DADL_ISA={isa}", *choices.ISA_FLAGS[isa]]
            quick = isa == "default" and len(self.isas) > 1
            optimisation = QUICK_TO_COMPILE if quick else KERNEL_OPTIMISATION
            flags = [*self.common_flags(), *optimisation, *KERNEL_FLAGS, *chosen]
            for source in kernel_sources(self.root, isa):
                yield Object("cxx", source, object_name(self.root, source, isa), flags)

    def cuda_objects(self) -> Iterator[Object]:
        """One for each family of kernels and number type, so that many cores have work."""
        for source in sorted(cuda_sources(self.root), key=lambda s: -NVCC_SECONDS.get(s.stem, 3)):
            for number in cuda_numbers(source):
                only = [f"-DADL_ONLY_NUMBER={number}"] if number else []
                stem = f"{source.stem}_{NUMBERS[number]}" if number else source.stem
                name = object_name(self.root, source.with_stem(stem), "cuda")
                yield Object("nvcc", source, name, [*self.cuda_flags(), *only])

    def cuda_flags(self) -> list[str]:
        threads = choices.nvcc_threads(choices.jobs_here(), len(self.cuda_archs))
        flags = [*NVCC_FLAGS, *choices.gencode_flags(self.cuda_archs), f"--threads={threads}"]
        return [*flags, f"-I{self.root / 'csrc'}", *env_flags("NVCCFLAGS")]

    def cuda_include_dirs(self) -> list[Path]:
        """The toolkit's headers, then those of cuBLAS and others that came with torch as wheels."""
        if self.cuda_home is None:
            return []
        return [self.cuda_home / "include", *self.torch.nvidia_include_dirs]

    def common_flags(self) -> list[str]:
        return [*CXX_FLAGS, *OPENMP, f"-I{self.root / 'csrc'}", *env_flags("CXXFLAGS")]

    def libraries(self) -> list[str]:
        cpu = ["c10", "torch", "torch_cpu", "torch_python"]
        return [*cpu, "c10_cuda", "torch_cuda", "cudart"] if self.cuda_home else cpu

    def library_dirs(self) -> list[str]:
        folders = [self.torch.folder / "lib"]
        if self.cuda_home:
            folders.append(self.cuda_home / "lib64")
        return [str(folder) for folder in folders]


def torch_sources(root: Path) -> list[Path]:
    csrc = root / "csrc"
    cpu = (path for path in csrc.glob("*/cpu/*.cpp") if not path.name.startswith("isa_"))
    return [csrc / "module.cpp", *sorted(csrc.glob("*/*.cpp")), *sorted(cpu)]


def is_cuda_source(path: Path) -> bool:
    """Whether a source that may include torch is for CUDA builds alone."""
    return path.stem in ("cuda", "cudnn")


def kernel_sources(root: Path, isa: str) -> list[Path]:
    """All number types, but for the set that adds products of bfloat16 to AVX-512 only those."""
    found = sorted(root.glob("csrc/*/cpu/isa_*.cpp"))
    if isa == "avx512bf16":
        return [path for path in found if path.stem in ("isa_bf16", "isa_rounding", "isa_ceilings")]
    return [path for path in found if path.stem != "isa_rounding"]


def cuda_sources(root: Path) -> list[Path]:
    return sorted(root.glob("csrc/*/cuda/*.cu"))


def cuda_numbers(source: Path) -> tuple[str, ...]:
    """The number types that a .cu is compiled for, one by one; "" for one that has none."""
    text = source.read_text()
    return next((numbers for macro, numbers in EACH_NUMBER.items() if macro in text), ("",))


def object_name(root: Path, source: Path, group: str) -> str:
    return f"{group}/{source.relative_to(root / 'csrc')}.o"


def env_flags(name: str) -> list[str]:
    return os.environ.get(name, "").split()


def ninja_path(path: Path | str) -> str:
    return str(path).replace("$", "$$").replace(":", "$:").replace(" ", "$ ")


def ninja_text(objects: Iterable[Object], folder: Path, cxx: str, nvcc: str) -> str:
    """The build file. Paths with spaces are quoted for the shell as well as for ninja."""
    lines = [RULES.format(cxx=cxx, nvcc=nvcc)]
    for item in objects:
        flags = " ".join(f"'{flag}'" if " " in flag else flag for flag in item.flags)
        output, source = ninja_path(folder / item.name), ninja_path(item.source)
        lines.append(f"build {output}: {item.rule} {source}\n  flags = {flags.replace('$', '$$')}")
    return "\n".join(lines) + "\n"


def find_ninja() -> str:
    """ninja from its Python package or from PATH, which lacks the former's unless activated."""
    try:
        from ninja import BIN_DIR
    except ImportError:
        BIN_DIR = None
    ninja = (BIN_DIR and shutil.which("ninja", path=BIN_DIR)) or shutil.which("ninja")
    if ninja is None:
        raise BuildError("needs ninja to build: pip install ninja")
    return ninja


def check_python_headers() -> None:
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.exists():
        raise BuildError(
            f"needs Python's headers, but {header} does not exist: install the development "
            "package of this Python (Debian, Ubuntu: python3-dev; Fedora: python3-devel)."
        )


def compile_objects(
    objects: Iterable[Object], folder: Path, cuda_home: Path | None = None
) -> list[str]:
    """Brings all objects that are built below `folder` up to date; returns their paths."""
    check_python_headers()
    cxx = choices.find_compiler(os.environ)
    objects = list(objects)
    nvcc = str(cuda_home / "bin/nvcc") if cuda_home else "nvcc"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "build.ninja").write_text(ninja_text(objects, folder, cxx, nvcc))
    sys.stdout.flush()
    run = subprocess.run([find_ninja(), "-C", str(folder), "-j", str(choices.jobs_here())])
    if run.returncode != 0:
        raise BuildError("the C++ sources did not compile; the compiler's message is above.")
    return [str(folder / item.name) for item in objects]
