"""LSTM, GRU and RNN: torch.nn's layers, run by the ops of this package.

They subclass torch.nn.RNNBase, not torch.nn.LSTM and the others: torch.compile refuses every
subclass of those under fullgraph=True. Parameters, initialisation, state_dict, pickling and the
bookkeeping of weights are RNNBase's own.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .. import _C
from . import engine, errors
from .cell_facts import CELLS, Cell
from .options import (
    BEYOND_TORCH,
    PLAIN,
    LayerOptions,
    StackOptions,
    check_nonlinearity,
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
    ) -> Any:
        """Runs the layer; see the class for the shapes."""
        seed = self._draw_seed() if self.training and self._is_random else None
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
            self._check_state_sizes(states, int(batch_sizes[0]))
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
            self._check_state_sizes(states, input.size(0 if self.batch_first else 1))
        errors.check_layer_tensors(name, input, states or (), weights)
        errors.check_length(name, input.size(1 if self.batch_first and not packed else 0))
        options = self._stack_options(batch_sizes, lengths, reset, self.dropout_seed)
        output, *rest = engine.run(self._cell, input, states, weights, options, seed)
        return output, rest[: self._cell.states], rest[self._cell.states :]

    def _check_state_sizes(self, states: tuple[Tensor, ...], batch: int) -> None:
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


class LSTM(Recurrent):
    """A multi-layer LSTM. Same arguments, parameters and results as :class:`torch.nn.LSTM`.

    ``i, f, o = sigmoid(W x_t + b_i + U h_{t-1} + b_h)``, ``g = tanh(...)``,
    ``c_t = f c_{t-1} + i g``, ``h_t = o tanh(c_t)``
    (Hochreiter & Schmidhuber 1997; projections: Sak et al. 2014).

    Args:
        input_size: features I of the input.
        hidden_size: features H of the state.
        num_layers: layers L, each reading the output of the one below.
        bias: whether there are biases bias_ih and bias_hh.
        batch_first: whether input and output are [B, T, ...] instead of [T, B, ...].
        dropout: probability of zeroing outputs between layers, in training.
        bidirectional: whether a second scan runs from the end; then D = 2, else D = 1.
        proj_size: width P of h if it is projected to fewer features than H; 0 for none, P = H.
        device, dtype: of the parameters; float64, float32, bfloat16 or float16.

        Not in torch.nn, by keyword:

        forget_gate: "learned"; "coupled", f = 1 - i; "none", f = 1. The latter two have three
            blocks of weights, i g o.
        peephole: i and f also see ``p c_{t-1}``, o sees ``p c_t`` (Gers & Schmidhuber 2000), with
            a parameter weight_ch_l{k} [gates that see, H], in the order i f o or i o.
        cell_activation: phi in ``g = phi(...)``: "tanh", "sigmoid", "relu" or "identity".
        hidden_activation: phi in ``h_t = o phi(c_t)``, of the same.
        layer_norm: normalises W x, U h and, for h_t, c_t, each over its features (Ba et al. 2016):
            gains weight_ln_ih, weight_ln_hh [4 H], weight_ln_c [H], shift bias_ln_c [H].
        zoneout: probability, or a pair (of h, of c), that a unit keeps its state at a step
            (Krueger et al. 2017); the expectation in eval.
        recurrent_dropout: probability of zeroing what U sees of h, one mask per sequence, in
            training (Gal & Ghahramani 2016).
        weight_dropout: probability of zeroing an element of U, in training (Merity et al. 2018).
        bptt_steps: truncated BPTT: gradients do not pass from a step that is a multiple of it to
            the step before, as if chunks of so many steps were fed with the state detached.
        return_all_states: whether forward returns a third value c [T, B, D H], the last layer's
            cell state at every step (a PackedSequence if the input is one).

    Attributes:
        bptt_steps, zoneout, recurrent_dropout, weight_dropout, return_all_states: may be set at
            any time.
        recompute: False. Set to True to keep no gates for backward, which then runs the layer once
            more: less memory, a third more time in training.
        dropout_seed: None. Set to one int64, before each step anew, to have masks of dropout that
            depend on it alone, on the CPU and on a GPU. Without it the seed of the masks of
            zoneout, recurrent and weight dropout comes from torch's generator on the CPU, so they
            too are the same on every device.

    Shapes:
        input [T, B, I], [B, T, I] with batch_first, unbatched [T, I], or a PackedSequence;
        h_0, h_n [L D, B, P] and c_0, c_n [L D, B, H], or without B; output [T, B, D P].
        ``forward(input, (h_0, c_0) = zeros, *, lengths=None, reset=None) -> output, (h_n, c_n)``.
        lengths [B], integers from 0 to T in any order, on any device: outputs past a sequence's end
        are zero, h_n and c_n come from its last step, the reverse direction starts there.
        reset bool [T, B] ([B, T] with batch_first): true where a new sequence begins; the state is
        zero there, in the reverse direction it is so for the step before, and no gradient crosses.

    Raises:
        RuntimeError, ValueError: as torch.nn.LSTM does and with its text, then what was expected.

    Equivalent to:
        ``torch.nn.LSTM(...)`` with the same state_dict and without the keywords not in torch.nn.
    """

    _options = tuple(name for name in BEYOND_TORCH if name != "reset_after")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        forget_gate: str = "learned",
        peephole: bool = False,
        cell_activation: str = "tanh",
        hidden_activation: str = "tanh",
        layer_norm: bool = False,
        zoneout: float | tuple[float, float] = 0.0,
        recurrent_dropout: float = 0.0,
        weight_dropout: float = 0.0,
        bptt_steps: int = 0,
        return_all_states: bool = False,
    ) -> None:
        super().__init__(
            "LSTM",
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
            {
                "forget_gate": forget_gate,
                "peephole": peephole,
                "cell_activation": cell_activation,
                "hidden_activation": hidden_activation,
                "layer_norm": layer_norm,
                "zoneout": zoneout,
                "recurrent_dropout": recurrent_dropout,
                "weight_dropout": weight_dropout,
                "bptt_steps": bptt_steps,
                "return_all_states": return_all_states,
            },
        )

    if TYPE_CHECKING:  # with return_all_states a third value comes back

        @overload  # type: ignore[override]
        def forward(
            self,
            input: Tensor,
            hx: Pair | None = None,
            *,
            lengths: Tensor | None = None,
            reset: Tensor | None = None,
        ) -> tuple[Tensor, Pair]: ...

        @overload
        def forward(
            self, input: PackedSequence, hx: Pair | None = None
        ) -> tuple[PackedSequence, Pair]: ...

        def forward(self, *args: Any, **kwargs: Any) -> Any: ...

    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    check_forward_args = nn.LSTM.check_forward_args  # type: ignore[assignment]
    permute_hidden = nn.LSTM.permute_hidden  # type: ignore[assignment]


class GRU(Recurrent):
    """A multi-layer GRU. Same arguments, parameters and results as :class:`torch.nn.GRU`.

    ``r, z = sigmoid(W x_t + b_i + U h_{t-1} + b_h)``,
    ``n = tanh(W_n x_t + b_in + r (U_n h_{t-1} + b_hn))``, ``h_t = (1 - z) n + z h_{t-1}``
    (Cho et al. 2014, the reset gate applied after the product).

    Arguments, shapes and errors: as :class:`LSTM`, without proj_size and with one state h. By
    keyword also layer_norm, zoneout, recurrent_dropout, weight_dropout and bptt_steps of
    :class:`LSTM`, and

        reset_after: False for the form of Cho et al. 2014 and of most lectures,
            ``n = tanh(W_n x_t + b_in + U_n (r h_{t-1}) + b_hn)``. Lectures often write the update
            gate the other way round: see :func:`adl_kernels.functional.flip_update_gate`.

    Shapes:
        input [T, B, I], [B, T, I] with batch_first, unbatched [T, I], or a PackedSequence;
        h_0, h_n [L D, B, H], or without B; output [T, B, D H]; lengths and reset as :class:`LSTM`.
        ``forward(input, h_0 = zeros, *, lengths=None, reset=None) -> output, h_n``.

    Equivalent to:
        ``torch.nn.GRU(...)`` with the same state_dict and without the keywords not in torch.nn.
    """

    _options = ("reset_after", *OF_EVERY_LAYER)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        reset_after: bool = True,
        layer_norm: bool = False,
        zoneout: float = 0.0,
        recurrent_dropout: float = 0.0,
        weight_dropout: float = 0.0,
        bptt_steps: int = 0,
        proj_size: None = None,
    ) -> None:
        _refuse_projection(proj_size)
        super().__init__(
            "GRU",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            0,
            device,
            dtype,
            {
                "reset_after": reset_after,
                "layer_norm": layer_norm,
                "zoneout": zoneout,
                "recurrent_dropout": recurrent_dropout,
                "weight_dropout": weight_dropout,
                "bptt_steps": bptt_steps,
            },
        )

    if TYPE_CHECKING:

        @overload  # type: ignore[override]
        def forward(
            self,
            input: Tensor,
            hx: Tensor | None = None,
            *,
            lengths: Tensor | None = None,
            reset: Tensor | None = None,
        ) -> tuple[Tensor, Tensor]: ...

        @overload
        def forward(
            self, input: PackedSequence, hx: Tensor | None = None
        ) -> tuple[PackedSequence, Tensor]: ...

        def forward(self, *args: Any, **kwargs: Any) -> Any: ...


class RNN(Recurrent):
    """A multi-layer Elman RNN. Same arguments, parameters and results as :class:`torch.nn.RNN`.

    ``h_t = phi(W x_t + b_i + U h_{t-1} + b_h)``, phi tanh, with nonlinearity="relu" the positive
    part, with nonlinearity="sigmoid" the logistic function, not in torch.nn (Elman 1990).

    Arguments, shapes and errors: as :class:`GRU` without reset_after, and with
    ``nonlinearity="tanh"`` as fourth argument.

    Shapes:
        input [T, B, I], [B, T, I] with batch_first, unbatched [T, I], or a PackedSequence;
        h_0, h_n [L D, B, H], or without B; output [T, B, D H]; lengths and reset as :class:`LSTM`.
        ``forward(input, h_0 = zeros, *, lengths=None, reset=None) -> output, h_n``.

    Equivalent to:
        ``torch.nn.RNN(...)`` with the same state_dict and without the keywords not in torch.nn.
    """

    _options = OF_EVERY_LAYER

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        layer_norm: bool = False,
        zoneout: float = 0.0,
        recurrent_dropout: float = 0.0,
        weight_dropout: float = 0.0,
        bptt_steps: int = 0,
        proj_size: None = None,
    ) -> None:
        _refuse_projection(proj_size)
        check_nonlinearity(nonlinearity)
        self.nonlinearity = nonlinearity
        super().__init__(
            f"RNN_{nonlinearity.upper()}",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            0,
            device,
            dtype,
            {
                "layer_norm": layer_norm,
                "zoneout": zoneout,
                "recurrent_dropout": recurrent_dropout,
                "weight_dropout": weight_dropout,
                "bptt_steps": bptt_steps,
            },
        )

    if TYPE_CHECKING:

        @overload  # type: ignore[override]
        def forward(
            self,
            input: Tensor,
            hx: Tensor | None = None,
            *,
            lengths: Tensor | None = None,
            reset: Tensor | None = None,
        ) -> tuple[Tensor, Tensor]: ...

        @overload
        def forward(
            self, input: PackedSequence, hx: Tensor | None = None
        ) -> tuple[PackedSequence, Tensor]: ...

        def forward(self, *args: Any, **kwargs: Any) -> Any: ...


def _refuse_projection(proj_size: object) -> None:
    if proj_size is not None:
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")


__all__ = ["GRU", "LSTM", "RNN"]
