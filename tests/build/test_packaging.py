"""What decides a build: the target environment, CUDA or not, the width; and what import checks."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import adl_kernels
from adl_kernels import _build_check, _build_info
from adl_kernels import info as adl_info
from build_backend import choices, compile, target, torch_info
from build_backend.errors import BuildError

pytestmark = pytest.mark.cpu_only

GB = 2**30
ROOT = Path(__file__).resolve().parents[2]


# The target environment


def here(prefix: Path, setuptools: Path) -> target.Here:
    python = str(prefix / "bin/python")
    return target.Here(python, str(prefix), ".cpython-311.so", str(setuptools))


def make_environment(folder: Path) -> str:
    """A folder that looks like a virtual environment; returns its python."""
    python = folder / "bin/python"
    python.parent.mkdir(parents=True)
    python.touch(mode=0o755)
    return str(python)


def answers(torch_in: dict[str, str | None], ext_suffix: str = ".cpython-311.so"):
    """A probe that knows the torch of each python; asking any other one fails the test."""
    return lambda python: target.Target(python, torch_in[python], ("/site-packages",), ext_suffix)


def test_overlay_is_the_targets_own_python(tmp_path):
    user = make_environment(tmp_path / "user")
    at = here(tmp_path / "user", setuptools=tmp_path / "pip-build-env/setuptools")
    activated_elsewhere = {"VIRTUAL_ENV": str(tmp_path / "other")}
    found = target.find_target(activated_elsewhere, at, answers({user: "torch/__init__.py"}))
    assert found.python == user


def test_throw_away_environment_leads_to_the_activated_one(tmp_path):
    user = make_environment(tmp_path / "user")
    at = here(tmp_path / "build", setuptools=tmp_path / "build/lib/setuptools")
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        environ = {variable: str(tmp_path / "user")}
        found = target.find_target(environ, at, answers({user: "torch/__init__.py"}))
        assert found.python == user


@pytest.mark.parametrize(
    "activated", [{}, {"VIRTUAL_ENV": "build"}, {"VIRTUAL_ENV": "build", "CONDA_PREFIX": "user"}]
)
def test_hidden_target_is_an_error_with_the_cures(tmp_path, activated):
    make_environment(tmp_path / "user")
    make_environment(tmp_path / "build")
    at = here(tmp_path / "build", setuptools=tmp_path / "build/lib/setuptools")
    environ = {variable: str(tmp_path / folder) for variable, folder in activated.items()}
    with pytest.raises(BuildError) as error:
        target.find_target(environ, at, answers({}))
    for cure in ("activate", "ADL_BUILD_PYTHON=", "--no-build-isolation"):
        assert cure in str(error.value)


def test_named_python_wins(tmp_path):
    at = here(tmp_path / "build", setuptools=tmp_path / "elsewhere/setuptools")
    environ = {"ADL_BUILD_PYTHON": "/named/python", "VIRTUAL_ENV": str(tmp_path)}
    found = target.find_target(environ, at, answers({"/named/python": "torch/__init__.py"}))
    assert found.python == "/named/python"


def test_named_python_without_torch_is_an_error(tmp_path):
    at = here(tmp_path, setuptools=tmp_path)
    with pytest.raises(BuildError, match=r"/named/python has no torch: install torch there"):
        target.find_target(
            {"ADL_BUILD_PYTHON": "/named/python"}, at, answers({"/named/python": None})
        )


def test_other_python_version_is_an_error(tmp_path):
    user = make_environment(tmp_path / "user")
    at = here(tmp_path / "build", setuptools=tmp_path / "build/setuptools")
    probe = answers({user: "torch/__init__.py"}, ext_suffix=".cpython-312.so")
    with pytest.raises(BuildError, match=r"needs \.cpython-312\.so"):
        target.find_target({"VIRTUAL_ENV": str(tmp_path / "user")}, at, probe)


def test_probe_finds_the_torch_of_an_interpreter():
    found = target.probe(sys.executable)
    assert found.torch == torch.__file__
    assert str(Path(torch.__file__).parent.parent) in found.path


def test_probe_ignores_what_isolation_put_in_front(tmp_path, monkeypatch):
    (tmp_path / "torch.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert target.probe(sys.executable).torch == torch.__file__


def test_probe_of_no_interpreter_is_an_error():
    with pytest.raises(BuildError, match="/no/such/python is not an executable file"):
        target.probe("/no/such/python")


# torch


def info(version: str) -> torch_info.TorchInfo:
    return torch_info.TorchInfo(Path("site-packages/torch"), version, None)


def test_torch_facts_are_read_without_importing_it():
    found = torch_info.find_torch()
    assert (found.version, found.cuda) == (torch.__version__, torch.version.cuda)
    assert all(folder.is_dir() for folder in found.include_dirs)


@pytest.mark.parametrize(
    "version, pin",
    [("2.11.0+cu130", "torch==2.11.*"), ("2.13.0a0+git1234", "torch==2.13.*")],
)
def test_wheel_pins_the_minor_of_torch(version, pin):
    assert info(version).requirement == pin


def test_too_old_torch_is_an_error():
    with pytest.raises(BuildError, match=r"needs torch 2\.11 to 2\.14, found torch 2\.10\.1"):
        torch_info.check_supported(info("2.10.1"))


def test_newer_torch_is_a_warning(capsys):
    torch_info.check_supported(info("2.15.0"))
    assert "2.15.0 is newer than any" in capsys.readouterr().err


def test_installed_metadata_pins_the_torch_of_the_build():
    built = info(_build_info.TORCH_VERSION)
    assert built.requirement in importlib.metadata.requires("adl_kernels")
    assert importlib.metadata.version("adl_kernels") == _build_info.VERSION


# How many compilers, which kernels


@pytest.mark.parametrize(
    "setting, cores, memory, jobs",
    [
        (None, 8, 64 * GB, 8),
        ("", 8, 64 * GB, 8),
        (None, 64, 8 * GB, 4),
        (None, 4, 1 * GB, 1),
        ("3", 64, 1 * GB, 3),
    ],
)
def test_max_jobs(setting, cores, memory, jobs):
    assert choices.max_jobs(setting, cores, memory) == jobs


@pytest.mark.parametrize(
    "jobs, archs, threads", [(2, 4, 1), (4, 4, 1), (8, 4, 2), (16, 4, 4), (64, 1, 1)]
)
def test_idle_jobs_compile_other_architectures(jobs, archs, threads):
    assert choices.nvcc_threads(jobs, archs) == threads


@pytest.mark.parametrize("setting", ["0", "-1", "all"])
def test_max_jobs_must_be_a_positive_number(setting):
    with pytest.raises(BuildError, match="MAX_JOBS must be a positive whole number"):
        choices.max_jobs(setting, 1, GB)


def test_machine_can_be_measured():
    assert choices.available_cores() >= 1
    assert choices.available_memory() > 2**26


@pytest.mark.parametrize(
    "system, machine, isas",
    [
        ("linux", "x86_64", ("default", "avx2", "avx512", "avx512bf16")),
        ("linux", "aarch64", ("default",)),
        ("darwin", "x86_64", ("default",)),
    ],
)
def test_instruction_sets(system, machine, isas):
    assert choices.isas(system, machine) == isas


# CUDA

KERNELS, TOOLKIT = ["scan.cu"], Path("/cuda")


@pytest.mark.parametrize(
    "setting, sources, torch_cuda, home, why_not",
    [
        (None, [], "13.0", TOOLKIT, "this version has no CUDA kernels yet"),
        (None, KERNELS, None, TOOLKIT, "the torch found is a CPU-only build"),
        ("", KERNELS, "13.0", None, "no CUDA toolkit with include/cuda_runtime.h"),
        ("0", KERNELS, "13.0", TOOLKIT, "ADL_CUDA=0"),
        (None, KERNELS, "13.0", TOOLKIT, ""),
        ("1", KERNELS, "13.0", TOOLKIT, ""),
    ],
)
def test_cuda_decision(setting, sources, torch_cuda, home, why_not):
    with_cuda, said = choices.cuda_decision(setting, sources, torch_cuda, home)
    assert said.startswith(why_not)
    assert with_cuda == (not why_not) == (not said)


@pytest.mark.parametrize(
    "sources, torch_cuda, home, missing",
    [
        ([], "13.0", TOOLKIT, "this version has no CUDA kernels yet"),
        (KERNELS, None, TOOLKIT, "CPU-only build: install a CUDA build of torch"),
        (KERNELS, "13.0", None, "was found: set CUDA_HOME"),
    ],
)
def test_forced_cuda_says_what_is_missing(sources, torch_cuda, home, missing):
    with pytest.raises(BuildError, match=f"ADL_CUDA=1 asks for a CUDA build, but .*{missing}"):
        choices.cuda_decision("1", sources, torch_cuda, home)


def test_adl_cuda_takes_0_or_1():
    with pytest.raises(BuildError, match="ADL_CUDA must be 0 or 1, got 'yes'"):
        choices.cuda_decision("yes", [], None, None)


ALL = ("80", "90a", "100", "120")


@pytest.mark.parametrize(
    "setting, gpus, archs",
    [
        (None, [], ALL),
        ("", [], ALL),
        (" ", [(7, 5)], ALL),  # not served by the kernels, whatever is built
        (None, [(9, 0)], ("90a",)),
        (None, [(8, 6), (9, 0), (8, 9)], ("80", "90a")),
        (None, [(10, 3), (12, 1)], ("100", "120")),
        (None, [(11, 0)], ("110",)),  # no known architecture has code for it
        ("90a", [(8, 0)], ("90a",)),
        ("120 80", [], ("80", "120")),
        ("80, 90a,80", [], ("80", "90a")),
        ("80;90a", [], ("80", "90a")),
    ],
)
def test_architectures(setting, gpus, archs):
    assert choices.cuda_archs(setting, gpus) == archs


@pytest.mark.parametrize(
    "setting, said",
    [
        ("hopper", "without their dots, such as 80 90a 100, got 'hopper'"),
        ("9.0", "without their dots, such as 80 90a 100, got '9.0'"),
        ("90a sm_80", "got 'sm_80'"),
        ("90b", "got '90b'"),
        ("75 80", "names 75, but the CUDA kernels need compute capability 8.0 or newer"),
    ],
)
def test_wrong_architectures_are_sentences(setting, said):
    with pytest.raises(BuildError, match=f"ADL_CUDA_ARCHS .*{said}"):
        choices.cuda_archs(setting, [])


def test_architectures_that_nvcc_does_not_know():
    said = "sm_80 sm_86 sm_90 sm_100"
    choices.check_archs(("80", "90a"), said)
    choices.check_archs(("123",), "")  # of an nvcc that does not say
    with pytest.raises(BuildError, match=r"cannot compile for sm_85, sm_120; it knows sm_80, sm_8"):
        choices.check_archs(("85", "90a", "120"), said)


def test_only_a_build_for_all_has_code_for_gpus_to_come():
    assert choices.gencode_flags(("90a",)) == ["-gencode=arch=compute_90a,code=sm_90a"]
    assert choices.gencode_flags(ALL)[-1] == "-gencode=arch=compute_120,code=compute_120"
    assert len(choices.gencode_flags(ALL)) == 5
    assert choices.codes(ALL) == ("sm_80", "sm_90a", "sm_100", "sm_120", "compute_120")


DRIVER = """
int cuInit(unsigned flags) { return FAILS; }
int cuDeviceGetCount(int* count) { *count = 2; return 0; }
int cuDeviceGet(int* device, int index) { *device = 7 + index; return 0; }
int cuDeviceGetAttribute(int* value, int attribute, int device) {
  *value = attribute == 75 ? 1 + device : attribute == 76 ? 6 * (device == 7) : -1;
  return 0;
}
"""


def test_gpus_are_found_without_torch(tmp_path):
    """By a library that answers as the driver's."""
    (tmp_path / "driver.c").write_text(DRIVER)
    for name, fails in (("driver", 0), ("no_gpu", 100)):
        command = ["cc", "-shared", "-fPIC", f"-DFAILS={fails}", str(tmp_path / "driver.c")]
        subprocess.run([*command, "-o", str(tmp_path / name)], check=True)
    assert choices.present_gpus(str(tmp_path / "driver")) == [(8, 6), (9, 0)]
    assert choices.present_gpus(str(tmp_path / "no_gpu")) == []
    assert choices.present_gpus(str(tmp_path / "no_such_library")) == []


def test_cuda_home_needs_the_headers_too(tmp_path):
    nvcc = tmp_path / "bin/nvcc"
    nvcc.parent.mkdir()
    nvcc.touch(mode=0o755)
    environ = {"CUDA_HOME": str(tmp_path)}
    assert choices.find_cuda_home(environ, str(nvcc)) is None
    (tmp_path / "include").mkdir()
    (tmp_path / "include/cuda_runtime.h").touch()
    assert choices.find_cuda_home(environ, None) == tmp_path
    assert choices.find_cuda_home({}, str(nvcc)) == tmp_path


# The compile plan


SOURCES = (
    "module.cpp scan/cpu.cpp scan/cuda.cpp scan/cpu/dispatch.cpp scan/cpu/isa_f32.cpp "
    "scan/cuda/scan.cu".split()
)


def make_plan(
    root: Path, cuda_home: Path | None = None, archs: tuple[str, ...] = ("80", "90a")
) -> compile.Plan:
    for name in SOURCES:
        source = root / "csrc" / name
        source.parent.mkdir(parents=True, exist_ok=True)
        source.touch()
    torch = torch_info.TorchInfo(root / "site/torch", "2.13.0", None)
    return compile.Plan(root, torch, ("default", "avx2"), cuda_home, archs)


def test_kernels_are_compiled_once_for_each_instruction_set(tmp_path):
    flags = {item.name: item.flags for item in make_plan(tmp_path).objects()}
    assert sorted(flags) == [
        "avx2/scan/cpu/isa_f32.cpp.o",
        "default/scan/cpu/isa_f32.cpp.o",
        "torch/module.cpp.o",
        "torch/scan/cpu.cpp.o",
        "torch/scan/cpu/dispatch.cpp.o",
    ]
    assert {"-DADL_ISA=avx2", "-mavx2"} <= set(flags["avx2/scan/cpu/isa_f32.cpp.o"])
    assert not any(flag.startswith("-m") for flag in flags["default/scan/cpu/isa_f32.cpp.o"])
    assert not any("torch" in flag for flag in flags["avx2/scan/cpu/isa_f32.cpp.o"])
    assert "-DADL_ISA_AVX2" in flags["torch/scan/cpu/dispatch.cpp.o"]
    assert "-DADL_ISA_AVX512" not in flags["torch/scan/cpu/dispatch.cpp.o"]


def test_only_a_cuda_build_compiles_kernels_and_operators_for_cuda(tmp_path):
    wheels = [tmp_path / "site/nvidia" / name / "include" for name in ("cu13", "cudnn")]
    for folder in wheels:
        folder.mkdir(parents=True)
    plan = make_plan(tmp_path, TOOLKIT)
    objects = {item.name: item for item in plan.objects()}
    added = set(objects) - {item.name for item in make_plan(tmp_path).objects()}
    assert added == {"torch/scan/cuda.cpp.o", "cuda/scan/cuda/scan.cu.o"}
    # The toolkit first: the wheels have other versions of its headers, and not all of them.
    headers = [f"-isystem{folder}" for folder in (TOOLKIT / "include", *wheels)]
    assert objects["torch/scan/cuda.cpp.o"].flags[-3:] == headers
    assert not set(headers) & set(objects["torch/scan/cpu.cpp.o"].flags)
    assert "-DADL_WITH_CUDA" in objects["torch/module.cpp.o"].flags
    nvcc = objects["cuda/scan/cuda/scan.cu.o"]
    assert nvcc.rule == "nvcc" and set(choices.gencode_flags(("80", "90a"))) <= set(nvcc.flags)
    assert "-DADL_CUDA_ARCHS=sm_80,sm_90a" in objects["torch/scan/cuda.cpp.o"].flags
    assert {"c10_cuda", "torch_cuda", "cudart"} <= set(plan.libraries())
    assert str(TOOLKIT / "lib64") in plan.library_dirs()


def test_the_longest_files_begin(tmp_path):
    for name in ("dropout", "grid_backward", "zero"):
        (tmp_path / "csrc/scan/cuda").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"csrc/scan/cuda/{name}.cu").touch()
    order = [item.source.stem for item in make_plan(tmp_path, TOOLKIT).objects()]
    assert order.index("grid_backward") == 0
    assert order.index("dropout") < order.index("module")
    assert set(compile.NVCC_SECONDS) == {path.stem for path in compile.cuda_sources(ROOT)}


def test_cuda_kernels_are_compiled_once_for_each_number_type(tmp_path):
    make_plan(tmp_path)
    for name, macro in (("all", "ADL_EACH_NUMBER(F)"), ("most", "ADL_EACH_NUMBER_BUT_DOUBLE(F)")):
        (tmp_path / f"csrc/scan/cuda/{name}.cu").write_text(f"{macro}\n")
    flags = {item.name: item.flags for item in make_plan(tmp_path, TOOLKIT).cuda_objects()}
    assert sorted(flags) == [
        "cuda/scan/cuda/all_bf16.cu.o",
        "cuda/scan/cuda/all_f16.cu.o",
        "cuda/scan/cuda/all_f32.cu.o",
        "cuda/scan/cuda/all_f64.cu.o",
        "cuda/scan/cuda/most_bf16.cu.o",
        "cuda/scan/cuda/most_f16.cu.o",
        "cuda/scan/cuda/most_f32.cu.o",
        "cuda/scan/cuda/scan.cu.o",
    ]
    assert flags["cuda/scan/cuda/all_f64.cu.o"][-1] == "-DADL_ONLY_NUMBER=double"
    assert not any("ADL_ONLY_NUMBER" in flag for flag in flags["cuda/scan/cuda/scan.cu.o"])


def test_the_set_that_hardly_a_processor_runs_is_compiled_quickly(tmp_path):
    flags = {item.name: item.flags for item in make_plan(tmp_path).objects()}
    assert "-O1" in flags["default/scan/cpu/isa_f32.cpp.o"]
    assert "-O2" in flags["avx2/scan/cpu/isa_f32.cpp.o"]
    alone = dataclasses.replace(make_plan(tmp_path), isas=("default",))
    only = {item.name: item.flags for item in alone.objects()}
    assert "-O2" in only["default/scan/cpu/isa_f32.cpp.o"]


def test_ninja_file_survives_spaces(tmp_path):
    item = compile.Object("cxx", Path("/a b/x.cpp"), "x.cpp.o", ["-I/a b", "-O3"])
    text = compile.ninja_text([item], Path("/out put"), "c++", "nvcc")
    assert "build /out$ put/x.cpp.o: cxx /a$ b/x.cpp\n  flags = '-I/a b' -O3\n" in text


# The check at import


@pytest.mark.parametrize(
    "archs, capability, serves",
    [
        (("sm_80",), (8, 0), True),
        (("sm_80",), (8, 9), True),
        (("sm_80",), (9, 0), False),
        (("sm_86",), (8, 0), False),
        (("sm_90a",), (9, 0), True),
        (("sm_90a",), (12, 0), False),
        (("sm_100a",), (10, 3), False),
        (("sm_80", "sm_120"), (12, 1), True),
        (("sm_80", "sm_120", "compute_120"), (13, 0), True),
        (("sm_80", "sm_120", "compute_120"), (11, 0), False),
    ],
)
def test_which_gpus_a_build_serves(archs, capability, serves):
    assert _build_check.runs_on(archs, capability) == serves


def test_info_names_gpus_that_no_architecture_serves(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: "NVIDIA Made Up")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: [(9, 0), (12, 0)][i])
    monkeypatch.setattr(_build_info, "CUDA_ARCHS", ("sm_90a",))
    cpu, here, other = adl_info.devices()
    assert (cpu, here) == ("cpu", "NVIDIA Made Up (9.0)")
    assert other.endswith("(12.0), built for none such: build with ADL_CUDA_ARCHS=120")


def test_import_refuses_another_minor_of_torch():
    said = _build_check.mismatch("2.13.0+cpu", None, False, "2.14.1+cpu", None)
    assert "compiled for torch 2.13.0+cpu, but torch 2.14.1+cpu is running" in said


@pytest.mark.parametrize(
    "running, problem",
    [(None, "with no CUDA is running"), ("12.9", "with CUDA 12.9 is running"), ("13.2", None)],
)
def test_import_of_a_cuda_build_needs_its_cuda(running, problem):
    said = _build_check.mismatch("2.13.0+cu130", "13.0", True, "2.13.1", running)
    assert (said is None) if problem is None else (problem in said)


def test_import_accepts_a_patch_release_and_another_device():
    assert _build_check.mismatch("2.13.0+cu130", "13.0", False, "2.13.1+cpu", None) is None


def test_check_raises_with_both_versions_and_the_cure():
    with pytest.raises(ImportError) as error:
        _build_check.check("2.0.0", None)
    for part in (_build_info.TORCH_VERSION, "2.0.0", "pip install --force-reinstall"):
        assert part in str(error.value)


def test_source_folder_that_was_not_built_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "adl_kernels._build_info", None)
    monkeypatch.delattr(adl_kernels, "_build_info", raising=False)
    with pytest.raises(ImportError, match=r"has not been built.*pip install -e \."):
        _build_check.check(torch.__version__, torch.version.cuda)


# The report


def test_info_prints_what_was_built():
    run = [sys.executable, "-m", "adl_kernels.info"]
    text = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    for part in (_build_info.VERSION, torch.__version__, ", ".join(_build_info.ISAS), "lstm"):
        assert part in text
