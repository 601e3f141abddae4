"""csrc/cuda/launch.h: which tier serves what, on GPUs that this machine does not have."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Bytes of shared memory that a block may ask for (CUDA C++ Programming Guide, table of compute
# capabilities).
SHARED = {
    "sm_80": 163 << 10,
    "sm_86": 99 << 10,
    "sm_90": 227 << 10,
    "sm_100": 227 << 10,
    "sm_120": 99 << 10,
}
ARITHMETICS = ("half", "tf32", "float")
Choices = Callable[..., list[str]]


@pytest.fixture(scope="module")
def choices(tmp_path_factory) -> Choices:
    program = tmp_path_factory.mktemp("choices") / "choices"
    source = ROOT / "tests/cuda_on_cpu/choices.cpp"
    flags = ["-std=c++20", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'csrc'}"]
    subprocess.run(["c++", *flags, source, "-o", program], check=True)
    return lambda *arguments: subprocess.run(
        [program, *map(str, arguments)], capture_output=True, text=True, check=True
    ).stdout.splitlines()


@pytest.fixture(scope="module")
def largest(choices: Choices) -> dict[tuple, int]:
    """The largest hidden size that blocks serve, by GPU, arithmetic, gates and direction."""
    found: dict[tuple, int] = {}
    for gpu, shared in SHARED.items():
        for line in choices("fits", shared):
            arithmetic, gates, backward, hidden_size, fits = map(int, line.split())
            key = (gpu, ARITHMETICS[arithmetic], gates, bool(backward))
            if fits:
                assert found.get(key, 0) == hidden_size - 1, "a size in between does not fit"
                found[key] = hidden_size
    return found


@pytest.mark.parametrize("gpu", SHARED)
@pytest.mark.parametrize("gates", [1, 3, 4])
@pytest.mark.parametrize("backward", [False, True])
def test_half_precision_is_served_to_128_units_everywhere(gpu, gates, backward, largest):
    assert largest[gpu, "half", gates, backward] == 128


@pytest.mark.parametrize("arithmetic", ["tf32", "float"])
@pytest.mark.parametrize("gates", [1, 3, 4])
@pytest.mark.parametrize("backward", [False, True])
def test_float_is_served_to_128_units_where_weights_fit(arithmetic, gates, backward, largest):
    """W_hh of an LSTM of 128 units has 256 KiB: half of it in registers, half in shared memory."""
    for gpu, shared in SHARED.items():
        whole = gates < 4 or shared > 99 << 10
        expected = 128 if whole else 96 if (arithmetic, backward) == ("tf32", True) else 112
        assert largest[gpu, arithmetic, gates, backward] == expected


def test_sequences_of_a_block(choices):
    """As few as fill the multiprocessors, at most eight; both directions count."""
    assert choices("rows", 132) == ["1 1 2 2 8 8 1 2 3 4 8 8 "]


def test_rows_of_states_lie_in_different_banks(choices):
    assert choices("banks") == []


def test_tiles_of_convolutions(tmp_path):
    """csrc/cuda/conv_launch.h, checked by a program that prints what is wrong."""
    source, program = ROOT / "tests/cuda_on_cpu/conv_choices.cpp", tmp_path / "conv_choices"
    flags = ["-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'csrc'}"]
    subprocess.run(["c++", *flags, source, "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True, check=True)
    assert done.stdout == ""
