"""A small character-level language model, its text, and one side's training of it."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass, field
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.machine import page_faults

State = Tensor | tuple[Tensor, ...] | None


class CharModel(nn.Module):
    """Embedding, recurrent layers, and for every position the logits of the next character."""

    def __init__(self, cell: str, characters: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, 64)
        self.rnn = {"lstm": nn.LSTM, "gru": nn.GRU}[cell](64, hidden, layers)
        self.logits = nn.Linear(hidden, characters)

    def forward(self, text: Tensor, state: State = None) -> tuple[Tensor, State]:
        y, state = self.rnn(self.embedding(text), state)  # [T, B, H]
        return self.logits(y), state


@dataclass(frozen=True)
class Corpus:
    characters: str
    train: Tensor  # [N, B] every column is a stream of consecutive text
    valid: Tensor  # [M, B]

    def encode(self, text: str) -> Tensor:
        strange = set(text) - set(self.characters)
        if strange or not text:
            raise ValueError(
                f"demo: the prompt must consist of characters of the text, got {text!r}"
            )
        return torch.tensor([self.characters.index(character) for character in text])

    def decode(self, codes: list[int]) -> str:
        return "".join(self.characters[code] for code in codes)


def read_corpus(batch: int) -> Corpus:
    """Nine tenths of the text to learn from, the last tenth held out."""
    text = "\n".join(topics[name] for name in sorted(topics))
    characters = "".join(sorted(set(text)))
    place = {character: i for i, character in enumerate(characters)}
    codes = torch.tensor([place[character] for character in text])
    cut = len(codes) * 9 // 10
    return Corpus(characters, _streams(codes[:cut], batch), _streams(codes[cut:], batch))


def _streams(codes: Tensor, batch: int) -> Tensor:
    rows = len(codes) // batch
    return codes[: rows * batch].view(batch, rows).t().contiguous()


def detach(state: State) -> State:
    return tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), target.flatten())


@dataclass
class Side:
    """One of the two that learn: truncated BPTT, the state carried from step to step."""

    name: str
    model: CharModel
    text: Tensor  # [N, B]
    length: int
    losses: list[float] = field(default_factory=list)  # nats per character
    seconds: list[float] = field(default_factory=list)  # per step, one entry per block of steps
    faults: list[float] = field(default_factory=list)  # page faults per step, likewise
    state: State = None

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=3e-3)

    def learn(self, steps: int) -> None:
        faults, start = page_faults(), time.perf_counter()
        for _ in range(steps):
            self._step()
        self.seconds.append((time.perf_counter() - start) / steps)
        self.faults.append((page_faults() - faults) / steps)

    @property
    def characters_per_second(self) -> float:
        """From the median block, as other work on the machine must not decide."""
        return self.length * self.text.shape[1] / statistics.median(self.seconds)

    def _step(self) -> None:
        windows = (len(self.text) - 1) // self.length
        first = len(self.losses) % windows * self.length
        if first == 0:
            self.state = None  # the streams begin again
        x = self.text[first : first + self.length]  # [T, B]
        target = self.text[first + 1 : first + self.length + 1]
        logits, state = self.model(x, self.state)
        loss = cross_entropy(logits, target)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.state = detach(state)
        self.losses.append(loss.item())

    @torch.no_grad()
    def bits_per_character(self, text: Tensor) -> float:
        logits, _ = self.model(text[:-1])
        return cross_entropy(logits, text[1:]).item() / math.log(2)

    @torch.no_grad()
    def complete(self, codes: Tensor, count: int, sampled: bool) -> list[int]:
        """Continue a text: the likeliest character every time, or one drawn at random."""
        generator = torch.Generator().manual_seed(0)
        x, state, found = codes[:, None], None, []
        for _ in range(count):
            logits, state = self.model(x, state)
            last = logits[-1, 0]
            if sampled:
                x = torch.softmax(last / 0.7, 0).multinomial(1, generator=generator)[None]
            else:
                x = last.argmax().view(1, 1)
            found.append(x.item())
        return found
