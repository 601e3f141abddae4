"""Every op in plain PyTorch: the definition that kernels are tested against.

Also the slow, differentiable road for what the kernels do not do themselves: second derivatives,
forward-mode AD and functorch transforms.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

Step = tuple[Tensor, ...]


def lstm_step(
    x: Tensor, state: Step, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None
) -> Step:
    """i, f, o = sigmoid(...); g = tanh(...); c = f c + i g; h = o tanh(c)."""
    h, c = state
    i, f, g, o = (linear(x, w_ih, b_ih) + linear(h, w_hh, b_hh)).chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def gru_step(
    x: Tensor, state: Step, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None
) -> Step:
    """r, z = sigmoid(...); n = tanh(W_n x + b_in + r (U_n h + b_hn)); h = (1 - z) n + z h."""
    (h,) = state
    r_x, z_x, n_x = linear(x, w_ih, b_ih).chunk(3, 1)
    r_h, z_h, n_h = linear(h, w_hh, b_hh).chunk(3, 1)
    r, z = torch.sigmoid(r_x + r_h), torch.sigmoid(z_x + z_h)
    n = torch.tanh(n_x + r * n_h)
    return ((1 - z) * n + z * h,)


def rnn_tanh_step(
    x: Tensor, state: Step, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None
) -> Step:
    """h = tanh(W x + b_ih + U h + b_hh)."""
    return (torch.tanh(linear(x, w_ih, b_ih) + linear(state[0], w_hh, b_hh)),)


def rnn_relu_step(
    x: Tensor, state: Step, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None
) -> Step:
    """h = relu(W x + b_ih + U h + b_hh)."""
    return (torch.relu(linear(x, w_ih, b_ih) + linear(state[0], w_hh, b_hh)),)


STEPS = {
    "lstm": lstm_step,
    "gru": gru_step,
    "rnn_tanh": rnn_tanh_step,
    "rnn_relu": rnn_relu_step,
}


def wanted(*tensors: Tensor | None) -> bool:
    """Whether vmap, another functorch transform or forward-mode AD is at work.

    The ops know none of them, the definition all. `tensors` are looked at for the older vmap of
    ``torch.autograd.grad(..., is_grads_batched=True)``, which shows in nothing else.
    """
    if torch.compiler.is_compiling():
        return False
    if any(t is not None and torch._C._functorch.is_legacy_batchedtensor(t) for t in tensors):
        return True
    dual = torch.autograd.forward_ad._current_level >= 0
    return dual or torch._C._are_functorch_transforms_active()


def layer(
    cell: str,
    x: Tensor,
    hx: Sequence[Tensor],
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None = None,
) -> list[Tensor]:
    """What ``torch.ops.adl_kernels.<cell>`` computes: one layer, all its directions.

    Args:
        cell: a name of the list of cells, such as "lstm".
        x: [T, B, I], or [N, I] with batch_sizes.
        hx: h_0 [D, B, P] and, for cells that have one, c_0 [D, B, H].
        weights: per direction weight_ih [G H, I], weight_hh [G H, P], then bias_ih and bias_hh
            [G H] and weight_hr [P, H] where there are any.
        batch_sizes: those of a PackedSequence.

    Returns:
        y [T, B, D P] or [N, D P], h_n, and c_n for cells that have it.
    """
    sizes = [x.size(1)] * x.size(0) if batch_sizes is None else batch_sizes.tolist()
    directions = hx[0].size(0)
    per_direction = len(weights) // directions
    outputs, finals = [], []
    for d in range(directions):
        y, final = _direction(
            cell,
            x.reshape(-1, x.size(-1)),
            tuple(h[d] for h in hx),
            weights[d * per_direction : (d + 1) * per_direction],
            sizes,
            reverse=d == 1,
        )
        outputs.append(y)
        finals.append(final)
    y = torch.cat(outputs, 1)
    states = [torch.stack(state) for state in zip(*finals, strict=True)]
    return [y.view(*x.shape[:-1], -1) if x.numel() else y.view(*x.shape[:-1], y.size(1)), *states]


def _direction(
    cell: str, rows: Tensor, state: Step, weights: Sequence[Tensor], sizes: list[int], reverse: bool
) -> tuple[Tensor, Step]:
    w_ih, w_hh = weights[:2]
    b_ih, b_hh = weights[2:4] if len(weights) >= 4 else (None, None)
    w_hr = weights[-1] if len(weights) % 2 else None
    xs = list(rows.split(sizes)) if sizes else []
    ys: list[Tensor] = [rows] * len(sizes)
    for t in reversed(range(len(sizes))) if reverse else range(len(sizes)):
        size = sizes[t]
        new = STEPS[cell](xs[t], tuple(s[:size] for s in state), w_ih, w_hh, b_ih, b_hh)
        if w_hr is not None:
            new = (linear(new[0], w_hr), *new[1:])
        ys[t] = new[0]
        # Sequences that have ended, or in reverse have not begun, keep their state.
        state = tuple(torch.cat([n, s[size:]]) for n, s in zip(new, state, strict=True))
    return torch.cat(ys) if ys else rows.new_empty(0, state[0].size(1)), state


def seeded_dropout(x: Tensor, p: float, seed: Tensor, stream: int = 0) -> Tensor:
    """What ``torch.ops.adl_kernels.dropout`` computes: kept where word i >= p 2^32."""
    blocks = torch.arange((x.numel() + 3) // 4, dtype=torch.int64, device=x.device)
    words = philox(seed.to(x.device).reshape(()), stream, blocks).flatten()[: x.numel()]
    scale = 1 / (1 - p) if p < 1 else 0.0
    return torch.where(words.view(x.shape) >= int(p * 2**32), x * scale, 0)


def philox(seed: Tensor, stream: int, blocks: Tensor) -> Tensor:
    """Philox4x32-10 (Salmon et al. 2011): four words for each block, [..., 4] below 2^32."""
    low = 2**32 - 1
    keys = [seed & low, seed >> 32 & low]
    streams = (torch.full_like(blocks, n & low) for n in (stream, stream >> 32))
    c = [blocks & low, blocks >> 32 & low, *streams]
    for _ in range(10):
        # Products of 64 bits may wrap to negative numbers; their bits are right.
        a, b = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [b >> 32 & low ^ c[1] ^ keys[0], b & low, a >> 32 & low ^ c[3] ^ keys[1], a & low]
        keys = [keys[0] + 0x9E3779B9 & low, keys[1] + 0xBB67AE85 & low]
    return torch.stack(c, -1)
