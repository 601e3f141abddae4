"""What recurrent layers may be asked for beyond torch.nn: of an op, and of a stack of layers."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeGuard

from torch import Tensor

from .. import _C

# (name, type in the ops' schemas, default, what it is) of every option of an op: the list is
# csrc/recurrent/options.h.
LAYER_OPTIONS = _C.options()


_namedtuple: Any = namedtuple  # whose fields a type checker cannot know
_Values: Any = _namedtuple(
    "_Values",
    [name for name, *_ in LAYER_OPTIONS],
    defaults=[default for _, _, default, _ in LAYER_OPTIONS],
)


class LayerOptions(_Values):
    """The optional arguments of every op, in the order of its schema."""

    __slots__ = ()

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        return tuple(getattr(self, name) for name in TENSORS)

    def with_tensors(self, tensors: Sequence[Tensor | None]) -> LayerOptions:
        return self._replace(**dict(zip(TENSORS, tensors, strict=True)))

    @property
    def has_zoneout(self) -> bool:
        return self.zoneout_h is not None or bool(self.zoneout)


TENSORS = tuple(name for name, kind, *_ in LAYER_OPTIONS if kind == "Tensor?")
PLAIN = LayerOptions()


class StackOptions(NamedTuple):
    """How a stack of layers of any cell is run: the keyword arguments of `functional.lstm`."""

    num_layers: int = 1
    bidirectional: bool = False
    batch_first: bool = False
    dropout: float = 0.0
    training: bool = False
    recompute: bool = False
    dropout_seed: Tensor | None = None
    recurrent_dropout: float = 0.0
    weight_dropout: float = 0.0
    # Of each layer; `zoneout` is a probability in training, and `all_states` is the last layer's.
    layer: LayerOptions = PLAIN

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def is_random(self) -> bool:
        """Whether masks are drawn, other than those of dropout between layers."""
        wanted = self.recurrent_dropout or self.weight_dropout or any(self.layer.zoneout)
        return self.training and bool(wanted)

    @property
    def beyond_torch(self) -> bool:
        """Whether anything is asked for that torch.nn's layers do not have."""
        plain = self.layer._replace(batch_sizes=None, frozen=0) == PLAIN
        return not (plain and self[6:9] == StackOptions()[6:9])


# Options of layers that torch.nn does not have, with their defaults.
BEYOND_TORCH: dict[str, Any] = {
    "forget_gate": "learned",
    "cell_activation": "tanh",
    "hidden_activation": "tanh",
    "peephole": False,
    "reset_after": True,
    "layer_norm": False,
    "zoneout": 0.0,
    "recurrent_dropout": 0.0,
    "weight_dropout": 0.0,
    "bptt_steps": 0,
    "return_all_states": False,
}
ACTIVATIONS = ("tanh", "sigmoid", "relu", "identity")
FORGET_GATES = ("learned", "coupled", "none")


def is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_option(layer: str, name: str, value: Any) -> Any:
    """The value of an option of a layer (LSTM, GRU, RNN), or the error that it is none."""
    if name == "zoneout":
        return zoneout_shares(layer, value)
    if name in ("recurrent_dropout", "weight_dropout"):
        if not (is_number(value) and 0 <= value < 1):
            raise ValueError(f"{layer}: {name} must be a number in [0, 1), got {value!r}")
    elif name == "bptt_steps":
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
            raise ValueError(f"{layer}: bptt_steps must be an integer of at least 0, got {value!r}")
    elif name == "forget_gate":
        if value not in FORGET_GATES:
            raise ValueError(
                f"{layer}: forget_gate must be 'learned', 'coupled' or 'none', got {value!r}"
            )
    elif name in ("cell_activation", "hidden_activation"):
        if value not in ACTIVATIONS:
            raise ValueError(
                f"{layer}: {name} must be one of {', '.join(ACTIVATIONS)}, got {value!r}"
            )
    elif not isinstance(value, bool):
        raise TypeError(f"{layer}: {name} must be True or False, got {value!r}")
    return value


def stack_options(layer: str, **given: Any) -> StackOptions:
    """The options of a stack of layers (LSTM, GRU, RNN) by name, those beyond torch.nn checked."""
    layers = given["num_layers"]
    if isinstance(layers, bool) or not isinstance(layers, int) or layers < 1:
        raise ValueError(f"{layer}: num_layers must be a positive integer, got {layers!r}")
    for name in ("batch_sizes", "lengths", "reset", "dropout_seed"):
        if given[name] is not None and not isinstance(given[name], Tensor):
            raise TypeError(f"{layer}: {name} must be a Tensor, got {type(given[name]).__name__}")
    checked = {
        name: check_option(layer, name, value) if name in BEYOND_TORCH else value
        for name, value in given.items()
    }
    of_layer = {name: checked.pop(name) for name in LayerOptions._fields if name in checked}
    return StackOptions(**checked, layer=LayerOptions(**of_layer))


def zoneout_shares(layer: str, given: Any) -> tuple[float, ...]:
    """Shares of h and, in an LSTM, of c; empty where nothing is kept."""
    count = 2 if layer == "LSTM" else 1
    shares = (given,) * count if is_number(given) else given
    fits = isinstance(shares, (tuple, list)) and len(shares) in (0, count)
    if not (fits and all(is_number(p) and 0 <= p <= 1 for p in shares)):
        wanted = "a number in [0, 1]" + " or a pair (of h, of c)" * (count == 2)
        raise ValueError(f"{layer}: zoneout must be {wanted}, got {given!r}")
    return tuple(float(p) for p in shares) if any(shares) else ()


def check_nonlinearity(nonlinearity: str) -> None:
    if nonlinearity not in ("tanh", "relu", "sigmoid"):
        raise ValueError(
            f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'. adl_kernels has "
            "'sigmoid' too."
        )


def table() -> str:
    """The list of an op's options as a table in Markdown."""
    rows = [f"| `{name}` | `{kind}` | {text} |" for name, kind, _, text in LAYER_OPTIONS]
    return "\n".join(["| option | type | what it is |", "|---|---|---|", *rows])


if __name__ == "__main__":
    print(table())
