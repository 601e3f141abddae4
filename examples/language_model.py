"""A recurrent language model that one process trains, or several that share each batch.

    python examples/language_model.py
    torchrun --nproc-per-node 2 examples/language_model.py --parallel ddp
    torchrun --nproc-per-node 2 examples/language_model.py --parallel fsdp

All three print the same losses: the batches are the same, and each process has its share of their
sequences. The text is made here, by a small grammar whose verbs agree with nouns that are far away.
"""

from __future__ import annotations

import argparse
import gc
import os
import random

import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F

import adl_kernels

NOUNS = ("fish", "dog", "child", "ship", "tree", "king", "star", "wolf")
VERBS = ("see", "hear", "follow", "find", "carry", "forget")
BATCH, LENGTH = 32, 64


def phrase(rng: random.Random, plural: bool) -> str:
    noun = rng.choice(NOUNS) + "s" * plural
    found = f"the {noun}" if rng.random() < 0.5 else f"the {rng.choice(('old', 'small'))} {noun}"
    if rng.random() < 0.3:
        found += f" near {phrase(rng, rng.random() < 0.5)}"
    return found


def text(seed: int, sentences: int) -> str:
    rng, found = random.Random(seed), []
    for _ in range(sentences):
        plural = rng.random() < 0.5
        verb = rng.choice(VERBS) + "s" * (not plural)
        found.append(f"{phrase(rng, plural)} {verb} {phrase(rng, rng.random() < 0.5)}. ")
    return "".join(found)


CHARACTERS = sorted(set(text(0, 500)))


def encode(string: str) -> Tensor:
    return torch.tensor([CHARACTERS.index(c) for c in string], device="cpu")


class LanguageModel(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(CHARACTERS), 24)
        self.rnn = adl_kernels.LSTM(24, hidden, num_layers=2, batch_first=True)
        self.logits = nn.Linear(hidden, len(CHARACTERS))

    def forward(self, codes: Tensor) -> Tensor:
        """Logits [B, T, characters] of what follows each of codes [B, T]."""
        return self.logits(self.rnn(self.embedding(codes))[0])


def parallel(model: LanguageModel, how: str) -> nn.Module:
    if how == "ddp":
        return nn.parallel.DistributedDataParallel(model)
    if how == "fsdp":
        fully_shard(model.rnn)
        return fully_shard(model)
    return model


def mean_loss(model: nn.Module, windows: Tensor, rank: int, processes: int) -> tuple[Tensor, float]:
    """Nats per character of windows [B, T + 1]: of this process's share, and of all of them."""
    own = windows[rank::processes]
    loss = F.cross_entropy(model(own[:, :-1]).flatten(0, 1), own[:, 1:].flatten())
    everywhere = loss.detach() / processes
    if processes > 1:
        distributed.all_reduce(everywhere)
    return loss, everywhere.item()


def learn(options: argparse.Namespace, rank: int, processes: int, device: torch.device) -> None:
    torch.manual_seed(0)  # the same first weights everywhere
    model = parallel(LanguageModel(options.hidden).to(device), options.parallel)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    train = torch.compile(model, mode=options.compile) if options.compile else model

    learned, held_out = (encode(text(seed, 4000)).to(device) for seed in (1, 2))
    generator = torch.Generator().manual_seed(0)  # the same batches everywhere
    for step in range(1, options.steps + 1):
        starts = torch.randint(
            len(learned) - LENGTH - 1, (BATCH, 1), generator=generator, device="cpu"
        )
        windows = learned[(starts + torch.arange(LENGTH + 1, device="cpu")).to(device)]
        loss, everywhere = mean_loss(train, windows, rank, processes)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 0 and rank == 0:
            print(f"step {step}: {everywhere:.3f} nats per character", flush=True)
    with torch.no_grad():
        windows = held_out[: BATCH * (LENGTH + 1)].view(BATCH, LENGTH + 1)
        _, everywhere = mean_loss(model, windows, rank, processes)
    if rank == 0:
        print(f"text that it has not seen: {everywhere:.3f} nats per character")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parallel", choices=("none", "ddp", "fsdp"), default="none")
    parser.add_argument(
        "--compile", metavar="MODE", help="of torch.compile; reduce-overhead: graphs"
    )
    parser.add_argument("--steps", type=int, default=200, help="training steps")
    parser.add_argument("--hidden", type=int, default=96, help="units of a layer")
    options = parser.parse_args()

    rank, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if (processes > 1) != (options.parallel != "none") or BATCH % processes:
        parser.error(f"--parallel is for the processes of torchrun, of which {BATCH} is a multiple")
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    if processes > 1:
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    learn(options, rank, processes, device)
    if processes > 1:
        # A model must not outlive its group: compiled code may hold it, and cycles of references.
        torch.compiler.reset()
        gc.collect()
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
