"""What `make cuda-check` reads out of the compiler's report, and what it holds against a kernel."""

from __future__ import annotations

import shutil
from pathlib import Path

import cuda_check
import pytest
from cuda_check import Outcome, Unit, Usage

pytestmark = pytest.mark.cpu_only

# Of nvcc 13.0.88: no stack, a stack frame, a spill.
REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN3adl5plainINS_4LstmE13__nv_bfloat16EEvPKT0_PS3_i' for \
'sm_80'
ptxas info    : Function properties for _ZN3adl5plainINS_4LstmE13__nv_bfloat16EEvPKT0_PS3_i
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers, used 1 barriers, 256 bytes smem, 372 bytes cmem[0]
ptxas info    : Compile time = 0.841 ms
ptxas info    : Compiling entry function '_ZN3adl7indexedINS_4LstmEfEEvPKT0_PS2_i' for 'sm_80'
ptxas info    : Function properties for _ZN3adl7indexedINS_4LstmEfEEvPKT0_PS2_i
    128 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 30 registers, used 0 barriers, 128 bytes cumulative stack size
ptxas info    : Compile time = 4.563 ms
ptxas info    : Compiling entry function '_ZN3adl8spillingILi64EEEvPKfPf' for 'sm_80'
ptxas info    : Function properties for _ZN3adl8spillingILi64EEEvPKfPf
    14288 bytes stack frame, 16260 bytes spill stores, 29364 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers, 14288 bytes cumulative stack size, 368 bytes \
cmem[0]
ptxas info    : Compile time = 1521.249 ms
"""
PLAIN = "_ZN3adl5plainINS_4LstmE13__nv_bfloat16EEvPKT0_PS3_i"
INDEXED = "_ZN3adl7indexedINS_4LstmEfEEvPKT0_PS2_i"
SPILLING = "_ZN3adl8spillingILi64EEEvPKfPf"

# A kernel that calls a function which was not inlined.
CALLED = """\
ptxas info    : Compiling entry function '_Z6kernelPfi' for 'sm_90a'
ptxas info    : Function properties for _Z6kernelPfi
    32 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 21 registers, used 0 barriers, 32 bytes cumulative stack size
ptxas info    : Compile time = 5.451 ms
ptxas info    : Function properties for _Z6helperPKfi
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
"""
SERIAL = (
    "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are "
    "serialized due to insufficient register resources for the wgmma pipeline in function '_Z1k'"
)


def outcome(text: str, good: bool = True) -> Outcome:
    return Outcome(Unit(Path("csrc/cuda/scan.cu"), "90a"), good, text, reused=False)


def test_report_of_ptxas() -> None:
    assert cuda_check.parse(REPORT) == {
        PLAIN: Usage(registers=10, shared=256, stack=0, spill=0),
        INDEXED: Usage(registers=30, shared=0, stack=128, spill=0),
        SPILLING: Usage(registers=32, shared=0, stack=14288, spill=16260 + 29364),
    }


def test_functions_that_are_called_count_too() -> None:
    assert cuda_check.parse(CALLED) == {
        "_Z6kernelPfi": Usage(registers=21, shared=0, stack=32, spill=0),
        "_Z6helperPKfi": Usage(registers=None, shared=0, stack=0, spill=0),
    }


def test_usage_in_words() -> None:
    words = [str(usage) for usage in cuda_check.parse(REPORT).values()]
    assert words == ["10 regs, 256 smem", "30 regs, 128 STACK", "32 regs, 14288 STACK, 45624 SPILL"]


@pytest.mark.parametrize(
    ("signature", "name"),
    [
        ("void adl::f<adl::Lstm, __nv_bfloat16>(int, adl::Forward)", "adl::f<Lstm, BFloat16>"),
        (
            "void adl::(anonymous namespace)::f<__half, (bool)1>(void (*)())",
            "adl::f<Half, (bool)1>",
        ),
        ("kernel(float*)", "kernel"),
        ("extern_c", "extern_c"),
    ],
)
def test_short_names(signature: str, name: str) -> None:
    assert cuda_check.short(signature) == name


@pytest.mark.skipif(not shutil.which("c++filt"), reason="needs c++filt of binutils")
def test_failures_name_the_kernel() -> None:
    assert outcome(REPORT).failures == [
        "sm_90a: adl::indexed<Lstm, float> has 30 regs, 128 STACK",
        "sm_90a: adl::spilling<64> has 32 regs, 14288 STACK, 45624 SPILL",
    ]
    (line,) = outcome(SERIAL).failures
    assert line.startswith("scan.sm_90a: ptxas info    : (C7510) Potential Performance Loss")
    (line,) = outcome('scan.cu(3): error: identifier "x"', good=False).failures
    assert line.startswith("scan.cu does not compile:\nscan.cu(3): error")


@pytest.mark.skipif(not shutil.which("c++filt"), reason="needs c++filt of binutils")
def test_table_has_a_row_per_kernel_and_a_column_per_architecture() -> None:
    other = Outcome(Unit(Path("scan.cu"), "80"), True, REPORT.partition(INDEXED)[0], reused=True)
    lines = list(cuda_check.table([outcome(REPORT), other]))
    assert lines[0].split() == ["sm_80", "sm_90a"]
    assert lines[1].split("  ")[0] == "adl::indexed<Lstm, float>"
    assert lines[2].split("  ") == [
        "adl::plain<Lstm, BFloat16>",
        "10 regs, 256 smem",
        "10 regs, 256 smem",
    ]
    assert lines[3].endswith("-                  32 regs, 14288 STACK, 45624 SPILL")


def test_without_a_toolkit_it_says_so(monkeypatch, capsys) -> None:
    monkeypatch.setattr(cuda_check.choices, "find_cuda_home", lambda *_: None)
    monkeypatch.delenv("ADL_REQUIRE_CUDA", raising=False)
    assert cuda_check.main() == 0
    assert "no CUDA toolkit found" in capsys.readouterr().out
    monkeypatch.setenv("ADL_REQUIRE_CUDA", "1")
    assert cuda_check.main() == 1


def test_results_are_reused_until_something_changes(monkeypatch, tmp_path) -> None:
    compiler = tmp_path / "nvcc"
    compiler.write_text(f"#!/bin/sh\necho run >> {tmp_path}/runs\necho said\n")
    compiler.chmod(0o755)
    monkeypatch.setattr(cuda_check, "FOLDER", tmp_path)
    unit = Unit(tmp_path / "scan.cu", "90a")
    results = [cuda_check.compile_unit(unit, compiler, sources) for sources in ("a", "a", "b")]
    assert [result.reused for result in results] == [False, True, False]
    assert [result.text for result in results] == ["said\n"] * 3
    assert (tmp_path / "runs").read_text() == "run\n" * 2
