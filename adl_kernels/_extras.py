"""What a call of a layer may ask for besides torch.nn's own: the optional arguments of every op."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Extras(NamedTuple):
    """In the order of the schemas in csrc/recurrent/schema.cpp, which says what each is.

    Rows are those of x: [T, B], or [N] with batch_sizes. D directions, P the width of h.
    """

    batch_sizes: Tensor | None = None  # [T] of a PackedSequence
    lengths: Tensor | None = None  # [B] steps of each sequence of a padded batch
    reset: Tensor | None = None  # [T, B] true where a new sequence begins
    recurrent_mask: Tensor | None = None  # [D, B, P] multiplies h_{t-1} in the product with W_hh
    zoneout_h: Tensor | None = None  # uint8 [D, rows.., P], 1: the state stays as it was
    zoneout_c: Tensor | None = None  # uint8 [D, rows.., H]
    zoneout: tuple[float, ...] = ()  # share of h and of c that stays, where there are no masks
    cell_activation: str = "tanh"
    hidden_activation: str = "tanh"
    peephole: bool = False
    layer_norm: bool = False
    all_states: bool = False  # c of every step is an output too
    bptt_steps: int = 0  # gradients do not pass from a multiple of so many steps to the step before

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        return self[:6]

    def with_tensors(self, tensors: tuple[Tensor | None, ...]) -> Extras:
        return Extras._make((*tensors, *self[6:]))

    @property
    def is_plain(self) -> bool:
        """Whether a layer of torch.nn does the same."""
        asked = any(t is not None for t in self.tensors[1:])
        return not asked and not self.zoneout and self[7:] == PLAIN[7:]

    @property
    def has_zoneout(self) -> bool:
        return self.zoneout_h is not None or bool(self.zoneout)


ACTIVATIONS = ("tanh", "sigmoid", "relu", "identity")
PLAIN = Extras()
