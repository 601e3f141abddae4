"""torch.distributed.checkpoint: saved by two processes and loaded by one, and back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from network import batch, half, loss, network
from processes import run_two
from torch import Tensor, distributed, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

pytestmark = pytest.mark.cpu_only


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, object]:
    weights, moments = get_state_dict(model, optimizer)
    return {"model": weights, "optimizer": moments}


def set_state(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict) -> None:
    set_state_dict(
        model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
    )


def save(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    checkpoint.save(state_of(model, optimizer), checkpoint_id=folder)


def load(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    state = state_of(model, optimizer)
    checkpoint.load(state, checkpoint_id=folder)
    set_state(model, optimizer, state)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, target: Tensor) -> None:
    optimizer.zero_grad()
    loss(model(x), target).backward()
    optimizer.step()


def sharded() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = network()
    for layer in (model.lstm, model.other):
        fully_shard(layer)
    fully_shard(model)
    return model, torch.optim.Adam(model.parameters(), lr=0.01)


def alone() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = network()
    return model, torch.optim.Adam(model.parameters(), lr=0.01)


def whole(model: nn.Module) -> list[Tensor]:
    return [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]


def test_two_processes_and_one(tmp_path: Path) -> None:
    """Each saves what it has, and loads what the other has saved."""
    model, optimizer = alone()
    step(model, optimizer, *batch())
    save(model, optimizer, tmp_path / "one")
    before = [p.detach().clone() for p in model.parameters()]
    step(model, optimizer, *batch(seed=5))
    after = list(model.parameters())

    run_two(check_two, tmp_path, before, [p.detach() for p in after])

    model, optimizer = alone()
    load(model, optimizer, tmp_path / "two")
    for p, q in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, q)
    step(model, optimizer, *batch(seed=5))
    for p, q in zip(model.parameters(), after, strict=True):
        assert torch.equal(p, q)


def check_two(folder: Path, before: list[Tensor], after: list[Tensor]) -> None:
    model, optimizer = sharded()
    load(model, optimizer, folder / "one")
    for p, q in zip(whole(model), before, strict=True):
        assert torch.equal(p, q)
    save(model, optimizer, folder / "two")
    x, target = (half(t, distributed.get_rank()) for t in batch(seed=5))
    step(model, optimizer, x, target)
    for p, q in zip(whole(model), after, strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.slow
def test_restart_from_a_checkpoint(tmp_path: Path) -> None:
    """A worker dies, torchrun starts both anew: the losses are those of a run without that."""
    losses = []
    for dies in (False, True):
        folder = tmp_path / str(dies)
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
        command += ["--max-restarts", "1", "--standalone", __file__, str(folder), str(int(dies))]
        paths = [str(Path(__file__).parent), str(Path(__file__).parents[1]), *sys.path]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
        # In the store that both starts share, new processes may find the addresses of the dead.
        environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=240
        )
        assert done.returncode == 0, done.stderr[-3000:]
        losses.append((folder / "losses").read_text().split())
        assert (folder / "died").exists() == dies
    assert len(losses[0]) == 6 and losses[0] == losses[1]


def work(folder: Path, dies: bool) -> None:
    """Six steps with a checkpoint after each; the second worker dies in the fourth, once."""
    rank = distributed.get_rank()
    model, optimizer = sharded()
    steps = sorted(folder.glob("step-*"), key=lambda path: int(path.name[5:]))
    steps = [path for path in steps if (path / ".metadata").exists()]  # it is written last
    if steps:
        load(model, optimizer, steps[-1])
    for k in range(len(steps), 6):
        x, target = batch(seed=k)
        step(model, optimizer, half(x, rank), half(target, rank))
        died = folder / "died"
        if dies and k == 3 and rank == 1 and not died.exists():
            died.touch()
            os._exit(1)
        value = loss(model(half(x, rank)), half(target, rank)).detach()
        distributed.all_reduce(value)
        save(model, optimizer, folder / f"step-{k}")
        if rank == 0:
            with (folder / "losses").open("a") as file:
                file.write(f"{value.item()!r}\n")


if __name__ == "__main__":
    distributed.init_process_group("gloo")
    work(Path(sys.argv[1]), bool(int(sys.argv[2])))
    distributed.destroy_process_group()  # after all that holds the group
