"""What LSTM, GRU and RNN have in common: torch.nn's argument contract over the ops.

They subclass torch.nn.RNNBase, not torch.nn.LSTM and the others: torch.compile refuses every
subclass of those under fullgraph=True. Parameters, initialisation, state_dict, pickling and the
bookkeeping of weights are RNNBase's own.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .. import _C
from .._transforms import as_leaf, is_symbolic, untraced
from . import engine, errors
from .cell_facts import CELLS, Cell
from .options import (
    BEYOND_TORCH,
    PLAIN,
    LayerOptions,
    StackOptions,
    check_option,
    zoneout_shares,
)

Hidden = Tensor | tuple[Tensor, Tensor]
Pair = tuple[Tensor, Tensor]

_promises = itertools.count(1)

# Options that decide which parameters there are.
FIXED = ("forget_gate", "peephole", "layer_norm")
OF_EVERY_LAYER = ("layer_norm", "zoneout", "recurrent_dropout", "weight_dropout", "bptt_steps")


CELLS_OF_MODE = {name.upper(): cell for name, cell in CELLS.items()}


class Recurrent(nn.RNNBase):
    """What LSTM, GRU and RNN have in common: the argument contract of torch.nn's layers."""

    # Set to True on a layer to keep no gates for backward, which runs the layer once more instead:
    # less memory, a third more time in training.
    recompute = False

    # One int64 from which all masks are made, the same on every device; new masks need a new
    # number. None: torch's generator, with the masks of torch.nn on the CPU.
    dropout_seed: Tensor | None = None

    # The options of `BEYOND_TORCH`, as the constructors document them.
    forget_gate: str = "learned"
    cell_activation: str = "tanh"
    hidden_activation: str = "tanh"
    peephole: bool = False
    reset_after: bool = True
    layer_norm: bool = False
    zoneout: float | tuple[float, ...] = 0.0
    recurrent_dropout: float = 0.0
    weight_dropout: float = 0.0
    bptt_steps: int = 0
    return_all_states: bool = False

    _options: tuple[str, ...] = ()  # those of the class

    # What a call needs of these options, made anew when one is set. A layer that does as torch.nn
    # has none of its own: convert() makes it of torch.nn's by its class alone.
    _layer_options: LayerOptions | None = None
    _other_cell: Cell | None = None  # than the one of torch's mode
    _is_random: bool = False  # whether masks are drawn in training
    _frozen: int = 0  # the number of the promise that freeze() made, 0: none
    _takes_short_way = True  # whether eager calls of a single layer go by _C.eager

    def __init__(
        self,
        mode: str,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        proj_size: int,
        device: torch.device | str | int | None,
        dtype: torch.dtype | None,
        options: dict[str, Any],
    ) -> None:
        # RNNBase knows the modes of torch; of them it makes the weights with as many gates.
        gates_of = {"RNN_SIGMOID": "RNN_TANH"}.get(mode, mode)
        if options.get("forget_gate", "learned") != "learned":
            gates_of = "GRU"
        super().__init__(
            gates_of,
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            device,
            dtype,
        )
        self.mode = mode
        for name, value in options.items():
            check_option(self._name(), name, value)
            if value != BEYOND_TORCH[name]:
                self.__dict__[name] = value
        self._read_options()
        if self._add_parameters():
            self._init_flat_weights()
            self.reset_parameters()

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in BEYOND_TORCH:
            return super().__setattr__(name, value)
        check_option(self._name(), name, value)
        if name not in self._options and value != BEYOND_TORCH[name]:
            raise AttributeError(f"{self._name()}: there is no option {name}")
        if name in FIXED and value != getattr(self, name):
            raise AttributeError(
                f"{self._name()}: {name} decides which parameters there are, and is fixed when the "
                f"layer is made: {self._name()}(..., {name}={value!r})"
            )
        super().__setattr__(name, value)
        self._read_options()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self._frozen:
            self._frozen = next(_promises)  # another process counts for itself
        self._read_options()

    def _read_options(self) -> None:
        zoneout = zoneout_shares(self._name(), self.zoneout)
        options = LayerOptions(
            zoneout=zoneout,
            cell_activation=self.cell_activation,
            hidden_activation=self.hidden_activation,
            peephole=self.peephole,
            layer_norm=self.layer_norm,
            all_states=self.return_all_states,
            bptt_steps=self.bptt_steps,
            frozen=self._frozen,
        )
        is_random = bool(zoneout or self.recurrent_dropout or self.weight_dropout)
        cell = CELLS["gru_reset_before"] if not self.reset_after else None
        if self.mode == "LSTM":
            cell = engine.lstm_cell(
                self.forget_gate, self.peephole, self.cell_activation, self.hidden_activation
            )
        derived = {
            "_layer_options": options if options != PLAIN else None,
            "_is_random": is_random,
            "_other_cell": cell if cell is not CELLS["lstm"] else None,
        }
        for name, value in derived.items():
            self.__dict__.pop(name, None)
            if value:
                self.__dict__[name] = value

    @property
    def _cell(self) -> Cell:
        return self._other_cell or CELLS_OF_MODE[self.mode]

    def _beyond_torch(self) -> dict[str, Any]:
        """What differs from torch.nn's layer, name by name."""
        given = {name: getattr(self, name) for name in BEYOND_TORCH}
        found = {name: value for name, value in given.items() if value != BEYOND_TORCH[name]}
        return found | ({"nonlinearity": "sigmoid"} if self.mode == "RNN_SIGMOID" else {})

    def _add_parameters(self) -> bool:
        """Those of peepholes and layer norms, after torch's in every layer and direction."""
        weight: Tensor = self.get_parameter("weight_hh_l0")
        gates = weight.size(0)
        sizes: dict[str, tuple[int, ...]] = {}
        if self.peephole:
            sizes["weight_ch"] = (gates // self.hidden_size - 1, self.hidden_size)
        if self.layer_norm:
            sizes |= {"weight_ln_ih": (gates,), "weight_ln_hh": (gates,)}
            if self.mode == "LSTM":
                sizes |= {"weight_ln_c": (self.hidden_size,), "bias_ln_c": (self.hidden_size,)}
        for names in self._all_weights:
            suffix = names[0].removeprefix("weight_ih")
            for name, size in sizes.items():
                names.append(name + suffix)
                parameter = nn.Parameter(weight.detach().new_empty(size))
                self.register_parameter(name + suffix, parameter)
        self._flat_weights_names = [name for names in self._all_weights for name in names]
        return bool(sizes)

    def reset_parameters(self) -> None:
        """Uniform in +-1 / sqrt(H) as torch.nn; gains of layer norms one, their shifts zero."""
        super().reset_parameters()
        for name, parameter in self.named_parameters():
            if "_ln_" in name:
                nn.init.constant_(parameter, float(name.startswith("weight")))

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Hidden | None = None,
        *,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Any:
        """Runs the layer; see the class for the shapes."""
        seed = self._draw_seed() if self.training and self._is_random else None
        if mask is not None and not is_symbolic(input, self):
            steps = 1 if self.batch_first else 0
            lengths = errors.lengths_of(self._name(), input, lengths, mask, steps)
        short = self._takes_short_way and self.num_layers == 1 and not self.recompute
        if short and not torch.compiler.is_compiling():
            options, parameters = self._layer_options, self._parameters
            if lengths is not None or reset is not None:
                options = (options or PLAIN)._replace(lengths=lengths, reset=reset)
            if seed is not None:
                options, parameters = self._draw(input, options or PLAIN, seed)
            result = _C.eager(
                (self._other_cell or CELLS_OF_MODE[self.mode]).index,
                parameters,
                self._flat_weights_names,
                input,
                hx,
                2 if self.bidirectional else 1,
                self.batch_first,
                False,
                options,
            )
            if result is not None:
                return result
        if is_symbolic(input, self):
            return as_leaf(self, input, hx, lengths=lengths, reset=reset, mask=mask)
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, hx, lengths, reset, seed)
        name = self._name()
        errors.check_input(name, input, 3, self._layout())
        is_batched = input.dim() == 3
        batch_dim = 0 if self.batch_first else 1
        states = None
        if hx is not None:
            states = errors.check_states(name, hx, self.mode == "LSTM")
            errors.check_state_dims(name, states, is_batched)
        errors.check_rows(name, input, lengths, reset, batch_dim)
        if not is_batched:
            input = input.unsqueeze(batch_dim)
            states = None if states is None else tuple(h.unsqueeze(1) for h in states)
            reset = None if reset is None else reset.unsqueeze(batch_dim)
        output, finals, all_c = self._run(input, states, None, lengths, reset, seed)
        if not is_batched:
            output = output.squeeze(batch_dim)
            finals = [h.squeeze(1) for h in finals]
            all_c = [c.squeeze(batch_dim) for c in all_c]
        return self._result(output, finals, all_c)

    def _draw_seed(self) -> Tensor | None:
        return engine.draw_seed(self._stack_options(None, None, None, self.dropout_seed))

    def _draw(
        self, input: Any, options: LayerOptions, seed: Tensor
    ) -> tuple[LayerOptions, dict[str, Any]]:
        """The options and parameters of a single layer with its masks drawn."""
        parameters: dict[str, Any] = self._parameters
        directions = 2 if self.bidirectional else 1
        if isinstance(input, Tensor) and input.dim() == 3:
            x = input.transpose(0, 1) if self.batch_first else input
            widths = (self.proj_size or self.hidden_size, self.hidden_size)
            sizes = [(directions, x.size(1), width) for width in widths[: self._cell.states]]
            options = engine.draw_masks(x, sizes, options, self.recurrent_dropout, 0, seed)
        if self.weight_dropout:
            names = [name for name in self._flat_weights_names if name.startswith("weight_hh")]
            if all(isinstance(parameters.get(name), Tensor) for name in names):
                dropped = engine.drop_weights(
                    [parameters[name] for name in self._flat_weights_names],
                    self.weight_dropout,
                    0,
                    directions,
                    seed,
                )
                parameters = dict(zip(self._flat_weights_names, dropped, strict=True))
        return options, parameters

    def _forward_packed(
        self,
        input: PackedSequence,
        hx: Hidden | None,
        lengths: Tensor | None,
        reset: Tensor | None,
        seed: Tensor | None,
    ) -> Any:
        errors.check_packed(self._name(), lengths, reset)
        data, batch_sizes, sorted_indices, unsorted_indices = input
        states = None
        if hx is not None:
            states = errors.check_states(self._name(), hx, self.mode == "LSTM")
            self._check_state_sizes(states, data, batch_sizes)
            if sorted_indices is not None:
                states = tuple(h.index_select(1, sorted_indices) for h in states)
        output, finals, all_c = self._run(data, states, batch_sizes, None, None, seed)
        if unsorted_indices is not None:
            finals = [h.index_select(1, unsorted_indices) for h in finals]

        def packed(rows: Tensor) -> PackedSequence:
            return PackedSequence(rows, batch_sizes, sorted_indices, unsorted_indices)

        return self._result(packed(output), finals, [packed(c) for c in all_c])

    def _stack_options(
        self,
        batch_sizes: Tensor | None,
        lengths: Tensor | None,
        reset: Tensor | None,
        seed: Tensor | None,
    ) -> StackOptions:
        layer = self._layer_options or PLAIN
        return StackOptions(
            self.num_layers,
            self.bidirectional,
            self.batch_first,
            self.dropout,
            self.training,
            self.recompute,
            seed,
            self.recurrent_dropout,
            self.weight_dropout,
            layer._replace(batch_sizes=batch_sizes, lengths=lengths, reset=reset),
        )

    def _run(
        self,
        input: Tensor,
        states: tuple[Tensor, ...] | None,
        batch_sizes: Tensor | None,
        lengths: Tensor | None,
        reset: Tensor | None,
        seed: Tensor | None,
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Output, final states and, where it is asked for, c of every step."""
        # Weights are read on every call, so any change takes effect.
        weights = [getattr(self, name) for name in self._flat_weights_names]
        errors.check_weights(self._name(), self._flat_weights_names, weights)
        name, packed = self._name(), batch_sizes is not None
        errors.check_sequence(name, input, weights[0], self.input_size, packed, self._layout())
        if states is not None and not packed:
            self._check_state_sizes(states, input, None)
        errors.check_layer_tensors(name, input, states or (), weights)
        errors.check_length(name, input, 1 if self.batch_first and not packed else 0)
        options = self._stack_options(batch_sizes, lengths, reset, self.dropout_seed)
        output, *rest = engine.run(self._cell, input, states, weights, options, seed)
        return output, rest[: self._cell.states], rest[self._cell.states :]

    @untraced
    def _check_state_sizes(
        self, states: tuple[Tensor, ...], input: Tensor, batch_sizes: Tensor | None
    ) -> None:
        batch_dim = 0 if self.batch_first else 1
        batch = input.size(batch_dim) if batch_sizes is None else int(batch_sizes[0])
        count = self.num_layers * (2 if self.bidirectional else 1)
        widths = (self.proj_size or self.hidden_size, self.hidden_size)
        sizes = tuple((count, batch, width) for width in widths[: len(states)])
        errors.check_state_sizes(self._name(), states, sizes)

    def _result(self, output: Any, finals: list[Tensor], all_c: list[Any]) -> Any:
        return (output, finals[0] if len(finals) == 1 else tuple(finals), *all_c)

    def _layout(self) -> str:
        order = "[B, T, {0}] (batch_first)" if self.batch_first else "[T, B, {0}]"
        return f"{order} or, unbatched, [T, {{0}}]".format(self.input_size)

    def _name(self) -> str:
        # Of torch's class, as in its messages; a subclass or a parametrized module has another.
        return "RNN" if self.mode.startswith("RNN") else self.mode

    def freeze(self) -> Recurrent:
        """Promises that the weights do not change until :meth:`unfreeze`, for inference on a CPU.

        The layer then keeps its weights packed without looking at them again. Without the promise
        calls of more than 16 rows (steps x sequences) keep them too, but compare a checksum of
        them first, and calls of fewer rows use them as they are. ``train()`` and
        ``load_state_dict()`` end or renew the promise by themselves; a weight that is changed in
        any other way is not noticed.

        Returns: the layer.

        Equivalent to: nothing; results are the same but for rounding.
        """
        self._frozen = next(_promises)
        self._read_options()
        return self

    def unfreeze(self) -> Recurrent:
        """Takes back the promise of :meth:`freeze`."""
        self.__dict__.pop("_frozen", None)
        self._read_options()
        return self

    def train(self, mode: bool = True) -> Recurrent:
        if mode and self._frozen:
            self.unfreeze()
        super().train(mode)
        return self

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        if self._frozen:
            self.freeze()

    def flatten_parameters(self) -> None:
        """Does nothing: the ops take every weight as it is. Kept for code that calls it."""

    def extra_repr(self) -> str:
        extras = (f", {name}={value!r}" for name, value in self._beyond_torch().items())
        return super().extra_repr() + "".join(extras)
