"""Vanishing and exploding gradients of a recurrent layer, measured on a user's own data.

The layer runs in double through its definition in reference.py, which leaves every state as a node
of the autograd graph: slow against the kernels, but the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode

from ._transforms import recording
from .conversion import convert
from .recurrent.base import Recurrent
from .recurrent.reference import Record, Scan

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# max phi' of an Elman RNN.
SLOPES = {"rnn_tanh": 1.0, "rnn_relu": 1.0, "rnn_sigmoid": 0.25}

# What the activations of a step are called, in the order in which reference.py computes them.
NAMES = {
    "lstm": ("i", "f", "g", "o", "phi(c)"),
    "lstm_general": ("i", "f", "g", "o", "phi(c)"),
    "lstm_coupled": ("i", "g", "o", "phi(c)"),
    "lstm_no_forget": ("i", "g", "o", "phi(c)"),
    "gru": ("r", "z", "n"),
    "gru_reset_before": ("r", "z", "n"),
    "rnn_tanh": ("h",),
    "rnn_relu": ("h",),
    "rnn_sigmoid": ("h",),
}

# From where on a value counts as saturated: below the first, above the second; of relu, zeros.
ENDS = {"sigmoid": (0.1, 0.9), "tanh": (-0.9, 0.9), "relu": (0.0, float("inf"))}


@dataclass(frozen=True)
class Saturation:
    """How many values of one gate, over all steps, sequences and units, lie at an end."""

    activation: str  # "sigmoid", "tanh" or "relu"
    low: float  # share below 0.1 (sigmoid) or -0.9 (tanh); of relu, share of zeros
    high: float  # share above 0.9; of relu 0

    @property
    def share(self) -> float:
        """At either end, where the slope of the activation is at most 0.09 or 0.19, of relu 0."""
        return self.low + self.high


@dataclass(frozen=True, eq=False)
class LayerFlow:
    """One layer and direction. Tensors are float64 on the CPU."""

    layer: int  # from 0
    direction: str  # "forward" or "reverse"
    cell: str  # of the list of cells, such as "rnn_tanh"
    gradient: Tensor  # [T] norm of dL/dh_t over the batch and units, by position t
    gradient_c: Tensor | None  # [T] the same of dL/dc_t, for cells that have c
    jacobian_mean: Tensor  # [T] spectral norms of dh_t/dh_{t-n}, by n; t the last step of the scan
    jacobian_max: Tensor  # [T] their largest
    gamma_lambda: float | None  # max phi' times the spectral norm of weight_hh; None: no theorem
    saturation: dict[str, Saturation]  # by gate; an identity has none

    @property
    def bound(self) -> Tensor | None:
        """[T] (gamma lambda)^n, which no norm of dh_t/dh_{t-n} exceeds."""
        if self.gamma_lambda is None:
            return None
        steps = torch.arange(len(self.gradient), dtype=torch.float64, device="cpu")
        return self.gamma_lambda**steps

    def __str__(self) -> str:
        return f"layer {self.layer} {self.direction}, {self.cell}"

    def _by_position(self, by_distance: Tensor) -> Tensor:
        """A forward scan ends at the last step, a reverse one at the first."""
        return by_distance if self.direction == "reverse" else by_distance.flip(0)


@dataclass(frozen=True, eq=False)
class GradientFlow:
    """What :func:`gradient_flow` found. Prints as a table, draws with :meth:`plot`."""

    loss: float
    steps: int  # T
    batch: int  # B
    sequences: int  # of the batch, whose Jacobians were taken
    layers: tuple[LayerFlow, ...]  # layer by layer, in each the forward direction first

    def __str__(self) -> str:
        last = self.steps - 1
        shown = sorted({round(last * k / 4) for k in range(5)})
        head = f"loss {self.loss:.4g}, {self.steps} steps, {self.batch} sequences, Jacobians of "
        lines = [head + f"{self.sequences}", "norms at t =".ljust(26) + _row(t + 1 for t in shown)]
        for flow in self.layers:
            lines.append(str(flow))
            for name, values in _curves(flow):
                line = f"  {name}".ljust(26) + _row(f"{values[t]:.1e}" for t in shown)
                lines.append(line)
            for gate, found in flow.saturation.items():
                name = f"{gate}, {found.activation}"
                ends = (f"{share:.1%} {word}" for share, word in _ends(found))
                lines.append(f"  {name}".ljust(26) + "  ".join(ends))
        return "\n".join(lines)

    def plot(self, where: Axes | str | Path | None = None) -> Axes:
        """Draws norms over t on a logarithmic axis: dL/dh_t, the largest dh_T/dh_t, the bound.

        Args:
            where: axes of matplotlib to draw on; or the path of a picture to write; or None for a
                new figure of pyplot.

        Returns:
            The axes.

        Raises:
            ImportError: matplotlib is not installed.
        """
        try:
            from matplotlib.axes import Axes
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError(
                f"GradientFlow.plot: needs matplotlib, pip install matplotlib ({error})"
            ) from None
        if isinstance(where, Axes):
            self._draw(where)
            return where
        if where is None:
            from matplotlib import pyplot

            axes = pyplot.subplots(layout="constrained")[1]
        else:
            figure = Figure(figsize=(6.4, 4), layout="constrained")
            axes = figure.subplots()
        self._draw(axes)
        if where is not None:
            figure.savefig(where, dpi=120)
        return axes

    def _draw(self, axes: Axes) -> None:
        ts = range(1, self.steps + 1)
        for k, flow in enumerate(self.layers):
            name = f"layer {flow.layer} {flow.direction}: " if len(self.layers) > 1 else ""
            styles = {"|dL/dh_t|": "-", "largest": "--", "bound": ":"}
            for label, values in _curves(flow):
                style = next((s for word, s in styles.items() if word in label), None)
                if style:
                    # Zero and infinity have no place on a logarithmic axis.
                    seen = torch.where((values > 0) & values.isfinite(), values, torch.nan)
                    axes.plot(ts, seen.tolist(), style, color=f"C{k}", label=name + label)
        axes.set_yscale("log")
        axes.set_xlabel("step t")
        axes.legend(frameon=False, fontsize="small")


def gradient_flow(
    module: nn.Module,
    x: Tensor | PackedSequence,
    loss_fn: Callable[[Any], Tensor],
    hx: Any = None,
    *,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    sequences: int = 8,
) -> GradientFlow:
    """How the gradient of a loss flows back through time (Bengio et al. 1994; Pascanu et al. 2013).

    For every layer and direction:

    - norms of dL/dh_t, the total derivative: h_t is what the next step, the layer above and the
      loss read, so all that comes later counts; in an LSTM c_t is held, and dL/dc_t stands beside
      it with h_t held. The norm is Euclidean over the batch and units.
    - spectral norms of the Jacobians dh_t/dh_{t-n}, t the last step of each sequence (in the
      reverse direction the first, which its scan takes last), their mean and largest over
      sequences. In an LSTM it is the derivative through the joint state (h, c) with c_{t-n} held:
      the block (h, h) of the product of Jacobians of (h, c).
    - for an Elman RNN the bound ``||dh_t/dh_{t-n}|| <= (gamma lambda)^n``, gamma = max phi' (tanh
      and relu 1, sigmoid 1/4), lambda the spectral norm of weight_hh as the call used it. None
      where it is no theorem: gated cells, layer norm, zoneout, recurrent dropout.
    - saturation: the share of values of each gate below 0.1 or above 0.9 (sigmoid), beyond -0.9
      or 0.9 (tanh), at 0 (relu).

    Everything is computed in double, so that what vanishes in float32 still has a size. All that
    the module does counts: truncated BPTT and resets cut the flow, dropout between layers, zoneout
    and the others are on if module.training is true. Masks are drawn as a call of the module would
    draw them now, and torch's generators are then set back: a second call finds the same. The
    module, its training flag and every .grad stay as they were, those of a head in loss_fn too.

    Args:
        module: an LSTM, GRU or RNN of this package or of torch.nn.
        x: its input [T, B, I], [B, T, I] with batch_first, unbatched [T, I], or a PackedSequence.
        loss_fn: gets the first of what ``module(x, hx)`` returns, the output [T, B, D P] (or as x
            is laid out) in the module's dtype, and returns a loss, a tensor of one element. Heads
            and targets are its own affair: ``lambda y: cross_entropy(head(y[-1]), target)``.
        hx: initial states as the module takes them; None for zeros.
        lengths, reset: as :meth:`adl_kernels.LSTM.forward` takes them.
        sequences: Jacobians are those of so many sequences, the first of the batch (of a
            PackedSequence the longest); time and memory grow with it and with H^2.

    Returns:
        A :class:`GradientFlow`. Jacobians and the bound are indexed by the distance n, so that
        sequences of different lengths can be averaged; NaN where none has so many steps.

    Raises:
        TypeError, ValueError: an argument is not what is written here; the message names it.
        RuntimeError: as the module raises for x, hx, lengths and reset.

    Equivalent to:
        ``h_t.retain_grad()`` for every step of a loop over torch.nn.LSTMCell, GRUCell or RNNCell,
        then ``loss.backward()`` and ``h_t.grad.norm()``; and ``torch.autograd.functional.jacobian``
        from h_{t-n} to h_t.
    """
    _check(module, x, loss_fn, sequences)
    dtype = next(module.parameters()).dtype
    device = next(module.parameters()).device
    devices = [device] if device.type == "cuda" else []
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices):
        output, records = _run(module, x, hx, lengths, reset)
        loss = loss_fn(output.to(dtype))
        _check_loss(loss)
        nodes = [node for record in records for new in record.new for node in new]
        found = torch.autograd.grad(loss, nodes, allow_unused=True)
    if all(gradient is None for gradient in found):
        raise ValueError("gradient_flow: loss_fn must return a loss that depends on its argument")
    gradients = iter(_norm(gradient) for gradient in found)
    layers = []
    directions = 2 if module.bidirectional else 1
    with torch.no_grad():
        for k, record in enumerate(records):
            states = len(record.new[0])
            rows = [[next(gradients) for _ in range(states)] for _ in record.new]
            norms = torch.tensor(rows, dtype=torch.float64, device="cpu")
            layers.append(_layer(k // directions, record, norms, sequences))
    batch = records[0].before[0][0].size(0)
    steps = len(records[0].new)
    return GradientFlow(loss.item(), steps, batch, min(batch, sequences), tuple(layers))


def _check(module: Any, x: Any, loss_fn: Any, sequences: Any) -> None:
    kinds = (Recurrent, nn.LSTM, nn.GRU, nn.RNN)
    if not isinstance(module, kinds):
        raise TypeError(
            "gradient_flow: module must be an LSTM, GRU or RNN of adl_kernels or torch.nn, got "
            f"{type(module).__name__}; what comes after it belongs in loss_fn"
        )
    if not isinstance(x, (Tensor, PackedSequence)):
        raise TypeError(
            f"gradient_flow: x must be a Tensor or PackedSequence, got {type(x).__name__}"
        )
    weight = next(module.parameters())
    given = x.data if isinstance(x, PackedSequence) else x
    if given.dtype != weight.dtype:
        raise ValueError(
            f"gradient_flow: x must have the dtype of the module, {weight.dtype}, got {given.dtype}"
        )
    if weight.is_meta:
        raise ValueError("gradient_flow: the module must hold numbers, got meta tensors")
    if not callable(loss_fn):
        raise TypeError(
            f"gradient_flow: loss_fn must be a function of the output, got {type(loss_fn).__name__}"
        )
    if isinstance(sequences, bool) or not isinstance(sequences, int) or sequences < 1:
        raise ValueError(
            f"gradient_flow: sequences must be an integer of at least 1, got {sequences!r}"
        )


def _check_loss(loss: Any) -> None:
    if not isinstance(loss, Tensor):
        raise TypeError(
            f"gradient_flow: loss_fn must return a Tensor, the loss, got {type(loss).__name__}"
        )
    if loss.numel() != 1:
        raise ValueError(
            f"gradient_flow: loss_fn must return one number, got shape {list(loss.shape)}; "
            "take its mean or sum"
        )
    if not loss.requires_grad:
        raise ValueError("gradient_flow: loss_fn must return a loss that depends on its argument")


def _run(
    module: nn.Module, x: Any, hx: Any, lengths: Tensor | None, reset: Tensor | None
) -> tuple[Any, list[Record]]:
    """The output in double and a record per layer and direction."""
    # Another object with the same contents; not copy.copy, which parametrized modules refuse.
    twin: Any = object.__new__(type(module))
    vars(twin).update(vars(module))
    if not isinstance(module, Recurrent) and convert(twin).left:
        raise TypeError(
            f"gradient_flow: {type(module).__name__} is a subclass that may compute something "
            "else than torch.nn's layer; give the layer itself"
        )
    # Neither runs a layer twice nor by an op, which records nothing.
    vars(twin).update(recompute=False, _takes_short_way=False)
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    records: list[Record] = []
    token = recording.set(records)
    try:
        output, *_ = torch.func.functional_call(
            twin,
            {name: _doubled(t) for name, t in tensors.items()},
            (_doubled(x), None if hx is None else _doubled(hx)),
            {"lengths": lengths, "reset": reset},
        )
    finally:
        recording.reset(token)
    return output, records


def _doubled(value: Any) -> Any:
    """Copies of floating-point tensors in double, leaves of a new graph."""
    if isinstance(value, PackedSequence):
        return value._replace(data=_doubled(value.data))
    if isinstance(value, (tuple, list)):
        return tuple(_doubled(v) for v in value)
    if not isinstance(value, Tensor):
        return value
    copy = value.detach().clone()
    return copy.double().requires_grad_() if copy.is_floating_point() else copy


def _norm(gradient: Tensor | None) -> float:
    return 0.0 if gradient is None else torch.linalg.vector_norm(gradient).item()


def _layer(layer: int, record: Record, gradients: Tensor, sequences: int) -> LayerFlow:
    """From what one scan did; gradients [T, states]."""
    mean, largest = _jacobians(record, sequences)
    return LayerFlow(
        layer,
        "reverse" if record.scan.d else "forward",
        record.scan.cell,
        gradients[:, 0],
        gradients[:, 1] if gradients.size(1) > 1 else None,
        mean,
        largest,
        _gamma_lambda(record.scan),
        _saturation(record),
    )


def _jacobians(record: Record, sequences: int) -> tuple[Tensor, Tensor]:
    """Mean and largest norm of dh_t/dh_{t-n} by n, from t backwards, [P] rows of each at once."""
    scan = record.scan.first(sequences)
    before = [tuple(s[:sequences] for s in state) for state in record.before]
    h, *rest = before[0]
    batch, width = h.shape
    eye = torch.eye(width, dtype=h.dtype, device=h.device)
    # dh_t by the state after the step at hand [P, B, P] and, where there is c, [P, B, H].
    jacobian = (eye[:, None].expand(-1, batch, -1), *(c.new_zeros(width, *c.shape) for c in rest))
    norms = torch.full((len(scan.xs), batch), torch.nan, dtype=torch.float64, device="cpu")
    counts = torch.zeros(batch, dtype=torch.int64, device="cpu")
    for t in reversed(scan.steps):
        runs = _runs(scan, t, batch)
        # A sequence that ends before step t (in reverse: began there) has the identity so far.
        found = _spectral_norm(jacobian[0].transpose(0, 1)).cpu()
        rows = runs.nonzero()[:, 0]
        norms[counts[rows], rows] = found[rows]
        counts += runs

        def after(*state: Tensor, t: int = t) -> tuple[Tensor, ...]:
            return scan.advance(t, state)[1]

        pull = torch.func.vjp(after, *before[t])[1]
        jacobian = torch.func.vmap(pull)(jacobian)
    largest = norms.nan_to_num(nan=-1.0, posinf=torch.inf).amax(1)
    return norms.nanmean(1), torch.where(largest < 0, torch.nan, largest)


def _runs(scan: Scan, t: int, batch: int) -> Tensor:
    """Which sequences have a step t, bool [B] on the CPU."""
    lasts = scan.lasts(t)
    if lasts is not None:
        return lasts[:, 0].cpu()
    return torch.arange(batch, device="cpu") < scan.xs[t].size(0)


def _spectral_norm(matrices: Tensor) -> Tensor:
    """Of each [.., P, P]; infinite where it has overflowed."""
    finite = matrices.isfinite().all(-1).all(-1)
    norms = torch.linalg.svdvals(torch.where(finite[..., None, None], matrices, 0)).amax(-1)
    return torch.where(finite, norms, torch.inf)


def _gamma_lambda(scan: Scan) -> float | None:
    """None where more than phi and weight_hh stands between two states."""
    more = (
        scan.w.ln_hh is not None
        or scan.options.has_zoneout
        or scan.options.recurrent_mask is not None
    )
    if scan.cell not in SLOPES or more:
        return None
    return SLOPES[scan.cell] * _spectral_norm(scan.w.hh).item()


class _Activations(TorchFunctionMode):
    """Catches what torch.sigmoid, tanh and relu return, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.caught: list[tuple[str, Tensor]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.sigmoid, torch.tanh, torch.relu):
            self.caught.append((func.__name__, result))
        return result


def _saturation(record: Record) -> dict[str, Saturation]:
    scan = record.scan
    batch = record.before[0][0].size(0)
    counts: dict[str, Tensor] = {}  # low, high, all
    kinds: dict[str, str] = {}
    for t in scan.steps:
        runs = _runs(scan, t, batch)[: scan.xs[t].size(0)]
        with _Activations() as step:
            scan.advance(t, record.before[t])
        names = _names(scan, len(step.caught))
        for name, (kind, values) in zip(names, step.caught, strict=True):
            seen = values[runs.to(values.device)]
            low, high = ENDS[kind]
            is_low = seen == 0 if kind == "relu" else seen < low
            found = torch.tensor(
                [is_low.sum(), (seen > high).sum(), seen.numel()], dtype=torch.int64, device="cpu"
            )
            counts[name] = counts.get(name, 0) + found
            kinds[name] = kind
    return {
        name: Saturation(kinds[name], *(found[:2].double() / found[2]).tolist())
        for name, found in counts.items()
    }


def _names(scan: Scan, count: int) -> list[str]:
    """Of the activations of a step that are functions at all; an identity is not caught."""
    names = list(NAMES.get(scan.cell, ()))
    how = scan.options
    for gate, activation in (("g", how.cell_activation), ("phi(c)", how.hidden_activation)):
        if activation == "identity" and gate in names:
            names.remove(gate)
    return names if len(names) == count else [f"activation {k + 1}" for k in range(count)]


def _curves(flow: LayerFlow) -> list[tuple[str, Tensor]]:
    """What is shown of a layer, by position t."""
    end = "1" if flow.direction == "reverse" else "T"
    curves = [("|dL/dh_t|", flow.gradient)]
    if flow.gradient_c is not None:
        curves.append(("|dL/dc_t|", flow.gradient_c))
    curves.append((f"|dh_{end}/dh_t| mean", flow._by_position(flow.jacobian_mean)))
    curves.append((f"|dh_{end}/dh_t| largest", flow._by_position(flow.jacobian_max)))
    if flow.bound is not None:
        exponent = "t-1" if flow.direction == "reverse" else "T-t"
        name = f"bound {flow.gamma_lambda:.3g}^({exponent})"
        curves.append((name, flow._by_position(flow.bound)))
    return curves


def _row(values: Any) -> str:
    return "".join(f"{value:>10}" for value in values)


def _ends(found: Saturation) -> list[tuple[float, str]]:
    if found.activation == "relu":
        return [(found.low, "zero")]
    low, high = ENDS[found.activation]
    return [(found.low, f"below {low}"), (found.high, f"above {high}")]


__all__ = ["GradientFlow", "LayerFlow", "Saturation", "gradient_flow"]
