"""Sentences for wrong arguments: torch's exception and text first, then what was expected."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._transforms import untraced

# What torch's own messages call the dtypes.
SHORT_NAMES = {
    torch.float64: "Double",
    torch.float32: "Float",
    torch.bfloat16: "BFloat16",
    torch.float16: "Half",
    torch.int64: "Long",
    torch.int32: "Int",
}


def dims_of(hint: str, *tensors: Any) -> list[int]:
    """Dimensions of what should be tensors; the error of one that is not, with a hint."""
    try:
        return [tensor.dim() for tensor in tensors]
    except AttributeError as error:
        raise AttributeError(f"{error}. {hint}") from None


def check_input(name: str, input: Any, most: int, layout: str) -> None:
    """`name` is that of the class; a batched input has `most` dimensions."""
    (dims,) = dims_of(f"{name}: input must be a Tensor{' or PackedSequence' * (most == 3)}", input)
    if dims not in (most, most - 1):
        tensor = " tensor" if name == "RNN" else ""
        raise ValueError(
            f"{name}: Expected input to be {most - 1}D or {most}D, got {dims}D{tensor} instead. "
            f"Expected {layout}, got {list(input.shape)}"
        )


def check_states(name: str, hx: Any, has_c: bool) -> tuple[Tensor, ...]:
    """The states of a layer as a tuple: h_0, or h_0 and c_0."""
    if not has_c:
        dims_of(f"{name}: hx must be one Tensor h_0, got {_kind(hx)}", hx)
        return (hx,)
    hint = f"{name}: hx must be a tuple (h_0, c_0) of two Tensors, got {_kind(hx)}"
    try:
        dims = dims_of(hint, hx[0], hx[1])
    except IndexError as error:
        raise IndexError(f"{error}. {hint}") from None
    if isinstance(hx, Tensor):
        if dims[0] == 3:
            raise TypeError(f"lstm() received an invalid combination of arguments. {hint}")
        raise RuntimeError(f"{_wrong_dims(True, dims)}. {hint}")
    if len(hx) != 2:
        raise RuntimeError(f"lstm expects two hidden states. {hint}")
    return tuple(hx)


def check_state_dims(name: str, states: tuple[Tensor, ...], is_batched: bool) -> None:
    """A batched input goes with states [L D, B, H], an unbatched one with states [L D, H]."""
    dims = [state.dim() for state in states]
    if any(dim != (3 if is_batched else 2) for dim in dims):
        batch = "batch, " if is_batched else ""
        raise RuntimeError(
            f"{_wrong_dims(is_batched, dims)}. {name}: expected [num_layers * num_directions, "
            f"{batch}hidden], got {_shapes(states)}"
        )


def check_weights(name: str, names: list[str], weights: list[Any]) -> None:
    for weight_name, weight in zip(names, weights, strict=True):
        if weight is None:
            raise TypeError(
                f"{name.lower()}() received an invalid combination of arguments. {name}: "
                f"{weight_name} must be a Tensor, got None"
            )


@untraced
def check_sequence(
    name: str, input: Tensor, weight: Tensor, input_size: int, packed: bool, layout: str
) -> None:
    """dtype, dimensions and features of a batched or packed input."""
    if input.dtype != weight.dtype and not torch._C._is_any_autocast_enabled():
        raise ValueError(
            f"RNN input dtype ({input.dtype}) does not match weight dtype ({weight.dtype}). "
            f"Convert input: input.to({weight.dtype}), or convert model: model.to({input.dtype})"
        )
    if packed and input.dim() != 2:
        raise RuntimeError(
            f"input must have 2 dimensions, got {input.dim()}. {name}: the data of a packed input "
            f"must be [N, {input_size}], got {list(input.shape)}"
        )
    if input.size(-1) != input_size:
        found = [k for k, size in enumerate(input.shape) if size == input_size]
        hint = f"; dimension {found[0]} has that size: transpose?" if found else ""
        raise RuntimeError(
            f"input.size(-1) must be equal to input_size. Expected {input_size}, got "
            f"{input.size(-1)}. {name}: expected {layout}, got {list(input.shape)}{hint}"
        )


@untraced
def check_state_sizes(
    name: str, states: tuple[Tensor, ...], expected: tuple[tuple[int, ...], ...]
) -> None:
    """Sizes of the states of a layer, directions and layers along the first dimension."""
    for k, (state, size) in enumerate(zip(states, expected, strict=True)):
        if state.size() != size:
            which = f"hidden[{k}]" if len(states) == 2 else "hidden"
            raise RuntimeError(
                f"Expected {which} size {size}, got {list(state.size())}. {name}: {'hc'[k]}_0 must "
                "be [num_layers * num_directions, batch, hidden]; batch_first does not change that"
            )


def check_layer_tensors(
    name: str, input: Tensor, states: tuple[Tensor, ...], weights: list[Tensor]
) -> None:
    """All on one device; states of the dtype of the input."""
    for kind, tensors in (("parameter", weights), ("hidden", states)):
        for tensor in tensors:
            if tensor.device != input.device:
                raise RuntimeError(
                    f"Input and {kind} tensors are not at the same device, found input tensor at "
                    f"{input.device} and {kind} tensor at {tensor.device}"
                )
    check_dtypes(name, input, states, weights[0])


def check_dtypes(name: str, input: Tensor, states: tuple[Tensor, ...], weight: Tensor) -> None:
    """Input and states have the dtype of the weights, unless autocast will convert them."""
    if torch._C._is_any_autocast_enabled():
        return
    for what, tensor in zip(("input", "h", "c"), (input, *states), strict=False):
        if tensor.dtype != weight.dtype:
            raise RuntimeError(
                f"mat1 and mat2 must have the same dtype, but got {_short(tensor)} and "
                f"{_short(weight)}. {name}: Input and hidden tensors and weights are not the same "
                f"dtype: {what} is {tensor.dtype}, the weights are {weight.dtype}"
            )


@untraced
def check_length(name: str, input: Tensor, dim: int) -> None:
    if input.size(dim) == 0:
        raise RuntimeError(
            f"Expected sequence length to be larger than 0 in RNN. {name}: the input has 0 steps"
        )


@untraced
def check_rows(name: str, input: Tensor, lengths: Any, reset: Any, batch_dim: int) -> None:
    """lengths and reset of a padded input."""
    for what, value in (("lengths", lengths), ("reset", reset)):
        if value is not None and not isinstance(value, Tensor):
            raise TypeError(f"{name}: {what} must be a Tensor, got {type(value).__name__}")
    if lengths is not None:
        if input.dim() != 3:
            raise RuntimeError(f"{name}: lengths are for batched input, got {list(input.shape)}")
        batch = input.size(batch_dim)
        is_integer = not (lengths.is_floating_point() or lengths.is_complex())
        if list(lengths.shape) != [batch] or not is_integer or lengths.dtype == torch.bool:
            raise RuntimeError(
                f"{name}: lengths must be integers [{batch}] (batch), got {lengths.dtype} "
                f"{list(lengths.shape)}"
            )
        if lengths.device.type != "cpu" and lengths.device != input.device:
            raise RuntimeError(
                f"{name}: lengths must be on the CPU or on the device of input, {input.device}, "
                f"got {lengths.device}"
            )
    if reset is not None:
        if reset.shape != input.shape[:-1] or reset.dtype != torch.bool:
            raise RuntimeError(
                f"{name}: reset must be bool {list(input.shape[:-1])} (input without its "
                f"features), got {reset.dtype} {list(reset.shape)}"
            )
        if reset.device != input.device:
            raise RuntimeError(
                f"{name}: reset must be on the device of input, {input.device}, got {reset.device}"
            )


def lengths_of(name: str, input: Any, lengths: Any, mask: Any, steps: int) -> Tensor:
    """What a mask says; `steps` is the dimension of the steps."""
    _check_mask(name, input, lengths, mask)
    size = mask.size(steps) - 1
    ends = (mask.narrow(steps, 1, size) <= mask.narrow(steps, 0, size)).all()
    torch._assert_async(
        ends,
        f"{name}: mask must be true up to the end of each sequence and false past it; "
        "instead of one with gaps give reset, or leave the steps out",
    )
    return mask.sum(steps)


@untraced
def _check_mask(name: str, input: Any, lengths: Any, mask: Any) -> None:
    if lengths is not None:
        raise ValueError(f"{name}: lengths and mask say the same; give one of them")
    if not isinstance(mask, Tensor):
        raise TypeError(f"{name}: mask must be a Tensor, got {type(mask).__name__}")
    if not isinstance(input, Tensor) or input.dim() != 3:
        got = list(input.shape) if isinstance(input, Tensor) else type(input).__name__
        raise RuntimeError(f"{name}: mask is for batched input, got {got}")
    if mask.shape != input.shape[:2] or mask.dtype != torch.bool:
        raise RuntimeError(
            f"{name}: mask must be bool {list(input.shape[:2])} (input without its features), got "
            f"{mask.dtype} {list(mask.shape)}"
        )


def check_packed(name: str, lengths: Any, reset: Any) -> None:
    """A PackedSequence has lengths of its own, and no place for resets."""
    if lengths is not None:
        raise ValueError(f"{name}: lengths are for padded input; a PackedSequence has its own")
    if reset is not None:
        raise ValueError(
            f"{name}: reset is for padded input; instead of a PackedSequence give lengths"
        )


def check_cell_states(name: str, hx: Any, has_c: bool) -> tuple[Tensor, ...]:
    """The states of a cell as a tuple, each 1-D or 2-D."""
    if has_c and isinstance(hx, Tensor):
        raise TypeError(
            "lstm_cell(): argument 'hx' (position 2) must be tuple of Tensors, not Tensor. "
            f"{name}: hx must be a tuple (h, c), got {_kind(hx)}"
        )
    states = tuple(hx) if has_c else (hx,)
    hint = f"{name}: hx must be {'a tuple (h, c) of Tensors' if has_c else 'one Tensor h'}"
    for k, dims in enumerate(dims_of(f"{hint}, got {_kind(hx)}", *states)):
        if dims not in (1, 2):
            which = f"hx[{k}]" if has_c else "hidden"
            raise ValueError(
                f"{name}: Expected {which} to be 1D or 2D, got {dims}D instead. Expected [batch, "
                f"hidden_size] or [hidden_size], got {list(states[k].shape)}"
            )
    if has_c and len(states) != 2:
        raise RuntimeError(f"lstm_cell expects two hidden states. {hint}, got {_kind(hx)}")
    return states


@untraced
def check_cell_sizes(
    name: str, input: Tensor, states: tuple[Tensor, ...], input_size: int, hidden_size: int
) -> None:
    """Sizes of a batched input and of the states, against each other and the module."""
    if input.size(1) != input_size:
        raise RuntimeError(
            f"input has inconsistent input_size: got {input.size(1)} expected {input_size}. "
            f"{name}: expected [batch, {input_size}], got {list(input.shape)}"
        )
    expected = (input.size(0), hidden_size)
    for k, state in enumerate(states):
        if state.shape == expected:
            continue
        hint = f"{name}: expected {'hc'[k]} to be {list(expected)}, got {list(state.shape)}"
        if state.size(0) != input.size(0):
            raise RuntimeError(
                f"Input batch size {input.size(0)} doesn't match hidden{k} batch size "
                f"{state.size(0)}. {hint}"
            )
        raise RuntimeError(
            f"hidden{k} has inconsistent hidden_size: got {state.size(1)}, expected "
            f"{hidden_size}. {hint}"
        )


def check_cell_tensors(
    name: str, input: Tensor, states: tuple[Tensor, ...], weights: list[Tensor]
) -> None:
    """All on one device and, without autocast, of one dtype."""
    for tensor in (*states, *weights):
        if tensor.device != input.device:
            raise RuntimeError(
                f"Tensor on device {tensor.device} is not on the expected device {input.device}! "
                f"{name}: input, hx and weights must be on one device"
            )
    check_dtypes(name, input, states, weights[0])


def _wrong_dims(is_batched: bool, dims: list[int]) -> str:
    kind, dim = ("batched 3-D", 3) if is_batched else ("unbatched 2-D", 2)
    if len(dims) == 1:
        return f"For {kind} input, hx should also be {dim}-D but got {dims[0]}-D tensor"
    got = f"({dims[0]}-D, {dims[1]}-D)"
    return f"For {kind} input, hx and cx should also be {dim}-D but got {got} tensors"


def _kind(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"{type(value).__name__} of {', '.join(type(v).__name__ for v in value)}"
    return f"{list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _shapes(tensors: tuple[Tensor, ...]) -> str:
    return ", ".join(str(list(tensor.shape)) for tensor in tensors)


def _short(tensor: Tensor) -> str:
    return SHORT_NAMES.get(tensor.dtype, str(tensor.dtype))
