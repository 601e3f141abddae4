"""Many to many: a bidirectional LSTM says of every character of Python source what it is part of.

The truth is Python's own tokenizer. A window of source may begin inside a string or a comment; only
what stands on both sides tells, which is what the two directions are for.
"""

from __future__ import annotations

import argparse
import io
import keyword
import sysconfig
import tokenize
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import adl_kernels

TAGS = ("space", "name", "keyword", "number", "string", "comment", "operator")
KINDS = {
    tokenize.NUMBER: "number",
    tokenize.STRING: "string",
    tokenize.COMMENT: "comment",
    tokenize.OP: "operator",
}
LENGTH = 100  # characters of a window


def tagged(source: str) -> tuple[list[int], list[int]]:
    """Codes of the characters and, of each, its tag."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    tags = [0] * len(source)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        name = KINDS.get(token.type)
        if token.type == tokenize.NAME:
            name = "keyword" if keyword.iskeyword(token.string) else "name"
        if name:
            first, last = (starts[row - 1] + column for row, column in (token.start, token.end))
            tags[first:last] = [TAGS.index(name)] * (last - first)
    return [min(ord(c), 127) for c in source], tags


def windows(paths: list[Path]) -> tuple[Tensor, Tensor]:
    """codes and tags [LENGTH, N] of some files, end to end."""
    codes, tags = [], []
    for path in paths:
        for whole, part in zip((codes, tags), tagged(path.read_text()), strict=True):
            whole += part
    count = len(codes) // LENGTH
    return tuple(torch.tensor(t[: count * LENGTH]).view(count, LENGTH).t() for t in (codes, tags))


class Tagger(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, 32)
        self.rnn = adl_kernels.LSTM(32, hidden, bidirectional=True)
        self.logits = nn.Linear(2 * hidden, len(TAGS))

    def forward(self, codes: Tensor) -> Tensor:
        y, _ = self.rnn(self.embedding(codes))  # [T, B, 2 H]
        return self.logits(y)


def by_character(codes: Tensor, tags: Tensor) -> Tensor:
    """The commonest tag of each character, for comparison [128]."""
    counts = torch.zeros(128, len(TAGS))
    counts.index_put_((codes, tags), torch.ones(()), accumulate=True)
    return counts.argmax(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=600, help="training steps")
    parser.add_argument("--files", type=int, default=24, help="files of the library to read")
    options = parser.parse_args()
    torch.manual_seed(0)
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("[a-z]*.py"))[: options.files]
    cut = max(1, len(paths) * 4 // 5)
    codes, tags = windows(paths[:cut])
    held_codes, held_tags = windows(paths[cut:])
    print(
        f"{cut} files to learn from, {len(paths) - cut} held out: {held_codes.numel()} characters"
    )
    model = Tagger(64)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(1, options.steps + 1):
        some = torch.randint(codes.size(1), (32,))
        loss = F.cross_entropy(model(codes[:, some]).flatten(0, 1), tags[:, some].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.3f}")
    with torch.no_grad():
        found = model(held_codes).argmax(-1)
    common = tags.flatten().mode().values
    print("characters of files that it has not seen, tagged right:")
    print(f"  the tagger                          {(found == held_tags).float().mean():.1%}")
    table = by_character(codes, tags)[held_codes]
    print(f"  the commonest tag of the character  {(table == held_tags).float().mean():.1%}")
    print(
        f"  the commonest tag, {TAGS[common]:8}         {(common == held_tags).float().mean():.1%}"
    )
    for k, tag in enumerate(TAGS):
        print(f"  of {tag:9} {(found == held_tags)[held_tags == k].float().mean():.1%}")


if __name__ == "__main__":
    main()
