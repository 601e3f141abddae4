"""Many to one: an LSTM tells balanced strings of brackets from those with two brackets swapped.

Strings of all lengths lie in one padded batch; `lengths` makes the final state that of each
string's own last bracket, so that padding is neither computed with nor learnt from.
"""

from __future__ import annotations

import argparse
import random

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import adl_kernels

PAIRS = {"(": ")", "[": "]"}
BRACKETS = "()[]"


def balanced(pairs: int) -> str:
    """A random string of so many pairs: opens a bracket, or closes the last one that is open."""
    text, waiting = "", ""
    while pairs or waiting:
        if pairs and (not waiting or random.random() < 0.5):
            bracket = random.choice("([")
            text, waiting, pairs = text + bracket, waiting + bracket, pairs - 1
        else:
            text, waiting = text + PAIRS[waiting[-1]], waiting[:-1]
    return text


def is_balanced(text: str) -> bool:
    waiting = ""
    for c in text:
        if c in PAIRS:
            waiting += c
        elif waiting and PAIRS[waiting[-1]] == c:
            waiting = waiting[:-1]
        else:
            return False
    return not waiting


def broken(text: str) -> str:
    """With two brackets swapped: how often each bracket occurs tells nothing, their order does."""
    while is_balanced(text):
        i, j = sorted(random.randrange(len(text)) for _ in range(2))
        if i != j:
            text = text[:i] + text[j] + text[i + 1 : j] + text[i] + text[j + 1 :]
    return text


def make_batch(size: int, shortest: int, longest: int) -> tuple[Tensor, Tensor, Tensor]:
    """codes [T, B], lengths [B], and whether each is balanced [B]: half of them are."""
    texts = [balanced(random.randint(shortest, longest) // 2) for _ in range(size)]
    texts[::2] = [broken(text) for text in texts[::2]]
    codes = [torch.tensor([BRACKETS.index(c) for c in text]) for text in texts]
    lengths = torch.tensor([len(text) for text in texts])
    return nn.utils.rnn.pad_sequence(codes), lengths, torch.arange(size) % 2


class Classifier(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(BRACKETS), 16)
        self.rnn = adl_kernels.LSTM(16, hidden)
        self.logits = nn.Linear(hidden, 2)

    def forward(self, codes: Tensor, lengths: Tensor) -> Tensor:
        _, (h_n, _) = self.rnn(self.embedding(codes), lengths=lengths)
        return self.logits(h_n[-1])  # [B, 2]


@torch.no_grad()
def accuracy(model: Classifier, batch: tuple[Tensor, Tensor, Tensor]) -> float:
    codes, lengths, label = batch
    return (model(codes, lengths).argmax(-1) == label).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000, help="training steps")
    options = parser.parse_args()
    random.seed(0)
    torch.manual_seed(0)
    held_out, longer = make_batch(1000, 2, 40), make_batch(1000, 42, 80)
    model = Classifier(64)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(1, options.steps + 1):
        codes, lengths, label = make_batch(64, 2, 40)
        loss = F.cross_entropy(model(codes, lengths), label)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 400 == 0:
            print(f"step {step}: loss {loss.item():.3f}")
    print("of 1000 strings that it has not been trained on, where guessing is right on 50 %:")
    print(f"  2 to 40 brackets, as in training  {accuracy(model, held_out):.1%}")
    print(f"  42 to 80 brackets                 {accuracy(model, longer):.1%}")


if __name__ == "__main__":
    main()
