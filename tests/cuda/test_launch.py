"""csrc/recurrent/cuda/launch.h and tiers.h: what serves a layer, on GPUs that are not here."""

from __future__ import annotations

import subprocess
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adl_kernels import _C

ROOT = Path(__file__).parents[2]
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


def test_every_plan_for_a_team_can_run(choices):
    """Units, threads, tiles, shared memory and blocks, on GPUs of every architecture."""
    assert choices("teams") == []


@pytest.fixture(scope="module")
def chosen(choices: Choices) -> dict[tuple, list[str]]:
    """The tiers by growing hidden size, for each GPU, cell, direction and batch."""
    found: dict[tuple, list[str]] = defaultdict(list)
    for line in choices("choices"):
        gpu, cell, backward, batch, _, tier = line.split(",")
        found[gpu, cell, bool(int(backward)), int(batch)].append(tier)
    return found


def test_tiers_follow_each_other_with_the_hidden_size(chosen):
    order = ["block", "cluster", "grid", "streaming"]
    for layer, tiers in chosen.items():
        assert tiers == sorted(tiers, key=order.index), layer
        assert tiers[0] in ("block", "cluster"), layer


@pytest.mark.parametrize("gpu", SHARED)
def test_clusters_only_where_there_are_any(gpu, chosen):
    tiers = {tier for layer, found in chosen.items() if layer[0] == gpu for tier in found}
    assert ("cluster" in tiers) == (gpu not in ("sm_80", "sm_86"))
    assert tiers >= {"block", "grid"}


def test_tiers_on_an_h200(chosen):
    """Of 64, 128, 256, 512, 768, 1024, 1536 and 2048 units, 16 sequences in half precision."""
    assert chosen["sm_90", "LSTM", False, 16] == ["block", *["cluster"] * 3, *["grid"] * 4]
    assert chosen["sm_90", "GRU", True, 16] == ["block", *["cluster"] * 3, *["grid"] * 4]


def test_the_documented_predictions_are_those_of_the_code(choices):
    table = choices("markdown")
    documented = (ROOT / "docs/cuda_tiers.md").read_text().splitlines()
    assert len(table) == 60
    assert [line for line in table if line not in documented] == []
    assert [line for line in table if "streaming" in line] == [], "torch.nn has these layers"


def plan(dtype: str, H: int, B: int, steps: int, **more: Any) -> dict[str, Any]:
    sizes = {"hidden_size": H, "sequences": B, "steps": steps, "directions": 1, "input_size": H}
    return _C.cuda_plan(
        gates=4, pre_activations=4, dtype=dtype, **sizes, **{"backward": False, **more}
    )


@pytest.mark.parametrize("H", [512, 1024])
def test_a_few_steps_do_not_wait_for_all_weights(H):
    assert plan("bf16", H, 16, steps=1)["tier"] == "streaming"
    assert plan("bf16", H, 16, steps=1000)["tier"] in ("block", "cluster", "grid")


@pytest.mark.parametrize("dtype, B, H", [("f32", 16, 512), ("f64", 16, 64), ("bf16", 256, 2048)])
def test_what_no_resident_tier_serves_better_is_cudnns(dtype, B, H):
    for backward in (False, True):
        assert plan(dtype, H, B, 100, training=True, backward=backward)["tier"] == "cudnn"
        assert plan(dtype, H, B, 100, backward=backward, cudnn=False)["tier"] != "cudnn"


def test_forward_and_backward_are_both_cudnns_or_neither():
    """cuDNN's backward wants cuDNN's forward: the grid, which is faster forward, is not taken."""
    sizes = ("tf32", 768, 64, 100)
    assert plan(*sizes)["tier"] == "grid"
    assert plan(*sizes, training=True)["tier"] == "cudnn"
    assert plan(*sizes, training=True, backward=True)["tier"] == "cudnn"


@pytest.mark.parametrize(
    "rule, dtype, H, B, more",
    [
        ("persistent", "f16", 768, 16, {}),
        ("standard", "f16", 768, 12, {}),
        ("standard", "f16", 760, 16, {}),
        ("standard", "bf16", 768, 16, {}),
        ("standard", "f16", 768, 16, {"layers": 2}),
        ("small", "bf16", 192, 16, {}),
        ("small", "tf32", 192, 16, {}),
        ("standard", "f64", 192, 16, {}),
    ],
)
def test_the_model_knows_which_algorithm_torch_asks_cudnn_for(rule, dtype, H, B, more):
    us = plan(dtype, H, B, 100, tier="cudnn", **more)["microseconds"]
    assert (us == pytest.approx(1.5)) == (rule == "small")
    assert (us < 2 and rule != "small") == (rule == "persistent")


def test_a_tier_that_is_asked_for_says_whether_it_serves():
    assert not plan("f32", 512, 16, 100, tier="grid")["serves"]
    assert plan("tf32", 512, 16, 100, tier="grid")["serves"]
    with pytest.raises(ValueError, match="there is no tier blocks"):
        plan("tf32", 512, 16, 100, tier="blocks")
    with pytest.raises(ValueError, match="dtype must be bf16"):
        plan("half", 512, 16, 100)


def test_tiles_of_convolutions(tmp_path):
    """csrc/depthwise/cuda/launch.h, checked by a program that prints what is wrong."""
    source, program = ROOT / "tests/cuda_on_cpu/conv_choices.cpp", tmp_path / "conv_choices"
    flags = ["-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'csrc'}"]
    subprocess.run(["c++", *flags, source, "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True, check=True)
    assert done.stdout == ""
