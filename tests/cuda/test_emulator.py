"""The emulator that runs CUDA kernels on the CPU: right ones pass, wrong ones are noticed."""

from __future__ import annotations

import functools
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cuda_on_cpu.build import ROOT, VARIANTS, build_program
from lanes import slow, slow_unless

pytestmark = pytest.mark.cpu_only

RUNS = [("fifo", 0), *slow(("lifo", 0), *(("random", seed) for seed in range(1, 6)))]
# The fast lane has one, which is built for the tests of the ops too.
variants = pytest.mark.parametrize(
    "variant", ["race", *slow(*(v for v in VARIANTS if v != "race"))]
)


@pytest.fixture(scope="session")
def programs() -> Callable[[str], Path]:
    """Any program in any variant, as `wrappers-fast`."""

    @functools.cache
    def path(title: str) -> Path:
        name, variant = title.rsplit("-", 1)
        return build_program(name, variant, ROOT / f"build/emulator-{variant}/{name}")

    return path


@pytest.fixture
def built(programs: Callable[[str], Path], program: str, variant: str) -> Path:
    """A program, built before the test's own time begins."""
    return programs(f"{program}-{variant}")


def run(*command: object, schedule: str = "fifo", seed: int = 0, **environment: object):
    settings = {"ADL_EMULATOR_SCHEDULE": schedule, "ADL_EMULATOR_SEED": seed, **environment}
    return subprocess.run(
        [str(c) for c in command],
        env={**os.environ, **{k: str(v) for k, v in settings.items()}},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )


CHECKS = {"wrappers": 26, "driver": 91, "team_driver": 62, "conv_driver": 50}


@pytest.mark.parametrize("schedule, seed", RUNS)
@variants
# In the fast lane tests/cuda_on_cpu/test_teams.py stands for the teams' program.
@pytest.mark.parametrize("program", slow_unless(lambda name: name != "team_driver", CHECKS))
def test_right_kernels(built, program, schedule, seed):
    done = run(built, schedule=schedule, seed=seed)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count(": ok\n") == CHECKS[program]


# With how many steps and KB, on how many multiprocessors; figures that there are.
CALIBRATION = {
    "cluster": ((3, 1), 132, 12),
    "l2": ((2, 1), 132, 9),
    "l2, evicted": ((2, 1, 1), 132, 2),
    "mma": ((2,), 1, 20),
    "step": ((2,), 132, 10),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CALIBRATION)
def test_calibration(name):
    """What was sent came, nobody waited in vain, and the figures are what a reader expects."""
    arguments, multiprocessors, count = CALIBRATION[name]
    name = name.split(",")[0]
    output = ROOT / f"build/emulator-fast/calibrate_{name}"
    program = build_program(f"calibrate_{name}", "fast", output)
    done = run(program, *arguments, ADL_EMULATOR_SMS=multiprocessors)
    assert done.returncode == 0, done.stdout
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert all({"name", "value", "unit", "predicted"} <= set(row) for row in rows)
    assert len({row["name"] for row in rows}) == len(rows)
    assert sum(row["value"] is not None for row in rows) == count, done.stdout


@pytest.mark.slow
def test_wrappers_without_cuda_headers():
    """types_on_cpu.h rounds as CUDA's types do."""
    output = ROOT / "build/emulator-fast/wrappers-without-headers"
    done = run(build_program("wrappers", "fast", output, flags=["-O0"], headers=False))
    assert done.returncode == 0, done.stdout


# Noticed in every variant.
ERRORS = {
    "large_array": "80000 bytes in shared arrays of fixed size",
    "two_lines": "__syncthreads: threads of one barrier are at lines ",
    "lanes_gone": "__shfl_xor_sync: the mask 0xffffffff names lanes that have exited",
    "partial_warp": "__shfl_xor_sync: the mask 0xffffffff names lanes that do not exist",
    "divergent": "divergent warp: __shfl_xor_sync at line ",
    "outside_mask": "__shfl_sync reads lane 3, which is not in the mask",
    "not_in_mask": "__shfl_sync: the calling lane is not in the mask",
    "deadlock": "deadlock: no thread can run",
    "livelock": "livelock: a spin-wait",
    "grid_barrier": "grid barrier in a launch that is not cooperative",
    "grid_left": "a thread has exited, but others wait for it at a grid barrier",
    "trap": "__trap",
    "large_block": "blocks of 2048 x 1 x 1 threads",
    "arrays_beside": "4096 bytes of shared memory in arrays of fixed size and 49152 beside them, ",
    "error_left": "error 1 was left behind when this was launched: ",
    "odd_cluster": "3 blocks are not a multiple of the cluster's 2",
    "misaligned_copy": "copy_async: misaligned address",
    "unfinished_copy": "a thread ended with a copy_async under way",
    "misaligned_matrix": "load_matrices: misaligned row",
    "no_such_block": "shared_of: the cluster has no block of rank 2",
    "uninitialised": "arrivals_wait: the barrier is not initialised",
    "init_twice": "arrivals_init: the barrier is initialised already",
    "wait_for_ever": "deadlock: ",
    "wait_unarmed": "deadlock: ",
    "wait_parity": "arrivals_wait: the parity is 2",
    "expect_twice": "arrivals_expect: twice in a phase: phase 0, armed, 16 bytes to come",
    "expect_much": "arrivals_expect: 1048576 bytes are too many",
    "more_bytes": "more bytes came than a barrier of block ",
    "store_to_exited": "store_async: block 0 of the cluster has exited",
    "exit_before_store": "a block has exited, but a store to it is under way",
    "exit_after_store": "a block has exited, but has not waited for what it was sent",
    "store_rank": "shared_of: the cluster has no block of rank 2",
    "store_outside": "shared_of: the address is not in the shared memory of this block",
    "store_misaligned": "store_async: misaligned address",
    "barrier_misaligned": "arrivals_init: misaligned barrier",
    "words_misaligned": "load_relaxed: misaligned address",
}
NANS = ["unwritten_array", "unwritten_dynamic", "early_read", "block_not_started", "block_ended"]
SANITIZER = {
    "global_write": "heap-buffer-overflow",
    "global_read": "heap-buffer-overflow",
    "dynamic_overrun": "heap-buffer-overflow",
    "array_overrun": "index 64 out of bounds for type 'float [64]'",
    "misaligned_float4": "misaligned address",
    "overflow": "signed integer overflow",
    "deep": "stack-overflow",
}
# The access that is not ordered, and the line of the other one.
RACES = {
    "same_place": "write by block (0,0,0) thread (1,0,0) at faults.cpp:",
    "lost_update": "read by block (0,0,0) thread (1,0,0) at faults.cpp:",
    "next_block": "read by block (1,0,0) thread (0,0,0) at faults.cpp:",
    "shuffle_as_barrier": "is not ordered after the write by block (0,0,0)",
    "no_release": "read by block (1,0,0) thread (0,0,0) at faults.cpp:",
    "no_acquire": "read by block (1,0,0) thread (0,0,0) at faults.cpp:",
    "init_unseen": "is not ordered after the write by block (1,0,0) thread (0,0,0) at ",
    "no_wait": "is not ordered after the ",
    "one_buffer": "is not ordered after the read by block (",
    "plain_store": "is not ordered after the ",
    "plain_load": "is not ordered after the ",
    "read_and_reset": "write by block (1,0,0) thread (0,0,0) at store_faults.cpp:",
    "data_after_word": "read by block (1,0,0) thread (0,0,0) at store_faults.cpp:",
    "block_ended": "at its begin or end",
    "block_not_started": "at its begin or end",
}
RIGHT = ["release_acquire", "threads_return", "atomic_sum", "two_buffers", "relaxed_words"]


@variants
@pytest.mark.parametrize("fault", ERRORS)
def test_errors(programs, fault, variant):
    done = run(programs(f"faults-{variant}"), fault)
    expected = f"error: cuda_on_cpu: {ERRORS[fault]}"
    assert done.returncode == 2 and expected in done.stdout, done.stdout


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("large_cooperative", "too many blocks in cooperative launch"),
        ("large_shared", "invalid argument"),
        ("shared_not_asked_for", "invalid argument"),
    ],
)
def test_launches_that_do_not_begin(programs, fault, message):
    done = run(programs("faults-race"), fault)
    assert done.stdout.endswith(f"error: {message}\n"), done.stdout


@pytest.mark.parametrize("refuse", ["cooperative", "all"])
def test_refused_launches(programs, refuse):
    done = run(programs("faults-race"), "grid_left", ADL_EMULATOR_REFUSE=refuse)
    reason = {
        "cooperative": "too many blocks in cooperative launch",
        "all": "invalid configuration argument",
    }
    assert done.stdout.endswith(f"error: {reason[refuse]}\n"), done.stdout
    alone = run(programs("faults-race"), "threads_return", ADL_EMULATOR_REFUSE=refuse)
    assert (alone.returncode == 0) == (refuse == "cooperative"), alone.stdout


@pytest.mark.parametrize(
    ("fault", "state"),
    [
        ("wait_for_ever", "phase 0, armed, 16 bytes to come"),
        ("wait_unarmed", "phase 0, not armed, 16 bytes too many"),
    ],
)
def test_errors_say_what_a_barrier_waits_for(programs, fault, state):
    message = run(programs("faults-race"), fault).stdout
    assert "1 thread(s): arrivals_wait" in message and state in message, message


def test_errors_say_who_waits_where(programs):
    message = run(programs("faults-race"), "deadlock").stdout
    assert "62 thread(s): __syncthreads" in message, message
    assert "2 thread(s): __syncwarp" in message, message
    assert "faults.cpp:" in message and "e.g. block (0,0,0) thread (1,0,0)" in message, message


# Those that somebody writes too late are races, and end as such in the race detector's variant.
@pytest.mark.parametrize(
    "fault, variant",
    [*((fault, "race") for fault in NANS[:2]), *slow(*((f, "fast") for f in NANS))],
)
def test_nobody_wrote_what_is_read(programs, fault, variant):
    done = [run(programs(f"faults-{variant}"), fault, schedule=s) for s in ("fifo", "lifo")]
    assert any("NaN\n" in d.stdout for d in done)


def test_words_land_in_any_order(programs):
    """Nothing but the order shows that three of four words were not waited for."""
    done = [run(programs("faults-race"), "last_word_only", schedule=s) for s in ("fifo", "lifo")]
    assert [d.returncode for d in done] == [0, 2], [d.stdout for d in done]


@pytest.mark.slow
@pytest.mark.parametrize("fault", SANITIZER)
def test_sanitizers(programs, fault):
    done = run(programs("faults-asan"), fault)
    assert done.returncode and SANITIZER[fault] in done.stdout, done.stdout


@pytest.mark.parametrize("fault", RACES)
def test_races(programs, fault):
    done = run(programs("faults-race"), fault)
    assert done.returncode == 66 and RACES[fault] in done.stdout, done.stdout


@pytest.mark.parametrize("schedule, seed", RUNS)
@pytest.mark.parametrize("fault", RIGHT)
@variants
def test_no_false_alarm(programs, variant, fault, schedule, seed):
    done = run(programs(f"faults-{variant}"), fault, schedule=schedule, seed=seed)
    assert done.returncode == 0 and "done\n" in done.stdout, done.stdout


def test_launches_are_counted(programs, tmp_path):
    log = tmp_path / "log"
    for _ in range(2):
        assert run(programs("wrappers-race"), ADL_EMULATOR_LOG=log).returncode == 0
    lines = [line.split("\t") for line in log.read_text().splitlines()]
    counts = {name: (int(launches), int(threads)) for launches, threads, name in lines}
    assert counts["void adl::column_sums<float>(float const*, float*, int, int)"] == (1, 256)
    assert len(lines) == 2 * len(counts)
