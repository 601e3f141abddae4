"""Sharding rules of the ops: how they run on DTensors, which lie in parts on several devices.

A rule lists, for one dimension of a mesh, along which dimension arguments and results may be cut.
DTensor does the rest: what lies otherwise is moved, and each device calls the op with its part.
Rules are registered as strategies, as torch's own are. `register_sharding` would not do: it takes a
list of results for one, and its cache takes calls for equal that differ in a list of numbers.

Imported when torch.distributed.tensor has been, see _late.py: that takes longer than all of this
package, and most programs do without.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._guards import detect_fake_mode
from torch._subclasses import FakeTensorMode
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard
from torch.distributed.tensor._op_schema import (
    OpSchema,
    OpStrategy,
    RuntimeSchemaInfo,
    TupleStrategy,
)
from torch.distributed.tensor._ops.utils import expand_to_full_mesh_op_strategy

from .recurrent.cell_facts import CELLS

# Each device has a part of the sum, or what is its own affair.
PART = "part"
Place = int | str | None  # a dimension, PART, or None: each device has the whole


class Row(NamedTuple):
    """Places of the arguments that are not whole, one for all tensors of a list; of the results."""

    arguments: dict[str, Place]
    results: list[Place]


# From the arguments by name, the results, and how many devices there are. Tensors are FakeTensors.
# All arguments and results may always be whole, on each device.
Rule = Callable[[dict[str, Any], list[Tensor], int], list[Row]]

# Every sequence is computed by itself. What is kept for backward has steps and sequences in one
# dimension: each device keeps its own.
SEQUENCES: dict[str, Place] = {
    "x": 1,
    "hx": 1,
    "lengths": 0,
    "reset": 1,
    "recurrent_mask": 1,
    "zoneout_h": 2,
    "zoneout_c": 2,
    "grads": 1,
    "y": 1,
    "saved": PART,
    "reserve": PART,
}
KEPT = ("saved", "reserve")


def layer(given: dict[str, Any], results: list[Tensor], devices: int) -> list[Row]:
    if given["batch_sizes"] is not None:
        return []
    outputs = 1 + len(given["hx"]) + bool(given.get("all_states"))
    return [Row(SEQUENCES, [1] * outputs + [PART] * (len(results) - outputs))]


def layer_backward(given: dict[str, Any], results: list[Tensor], devices: int) -> list[Row]:
    if given["batch_sizes"] is not None:
        return []
    needs_dx, *needs = given["needs"]
    dx, dhx = 1 if needs_dx else None, [1] * len(given["hx"])
    return [Row(SEQUENCES, [dx, *dhx, *(PART if need else None for need in needs)])]


def convolution(given: dict[str, Any], results: list[Tensor], devices: int) -> list[Row]:
    rows = [Row({"x": 0, "seq_idx": 0, "residual": 0}, [0])]
    if _channels_match(given["x"], results[0], devices):
        rows.append(Row({"x": 1, "weight": 0, "bias": 0, "residual": 1}, [1]))
    return rows


def input_gradient(given: dict[str, Any], results: list[Tensor], devices: int) -> list[Row]:
    rows = [Row({"grad": 0, "seq_idx": 0}, [0])]
    if _channels_match(results[0], given["grad"], devices):
        rows.append(Row({"grad": 1, "weight": 0}, [1]))
    return rows


def weight_gradient(given: dict[str, Any], results: list[Tensor], devices: int) -> list[Row]:
    biased = given["bias"]
    rows = [Row({"grad": 0, "x": 0, "seq_idx": 0}, [PART, PART if biased else None])]
    if _channels_match(given["x"], given["grad"], devices):
        rows.append(Row({"grad": 1, "x": 1}, [0, 0 if biased else None]))
    return rows


def separable(given: dict[str, Any], results: list[Tensor], devices: int) -> list[Row]:
    rows = [Row({"x": 0, "residual": 0}, [0])]
    if given["packed"] is None:
        rows.append(Row({"pw_weight": 0, "pw_bias": 0, "residual": 1}, [1]))
    return rows


def mask(given: dict[str, Any], results: list[Tensor], devices: int) -> list[Row]:
    """Of `like` only dtype and device are read. Who draws an element depends on all sizes."""
    return [Row({"like": place}, [None]) for place in (*range(given["like"].dim()), PART)]


def whole(given: dict[str, Any], results: list[Tensor], devices: int) -> list[Row]:
    return []


def _channels_match(x: Tensor, y: Tensor, devices: int) -> bool:
    """Whether the device that has a channel of x has all that is made of it."""
    return x.shape[1] == y.shape[1] or x.shape[1] % devices == 0


RULES: dict[str, Rule] = {
    "depthwise_conv": convolution,
    "depthwise_conv_input_grad": input_gradient,
    "depthwise_conv_weight_grad": weight_gradient,
    "separable_conv": separable,
    "pack_pointwise": whole,
    "dropout": whole,
    "mask": mask,
}
for _name in (*CELLS, "cudnn"):
    RULES |= {_name: layer, f"{_name}_forward": layer, f"{_name}_backward": layer_backward}


def strategy(rule: Rule, schema: OpSchema) -> OpStrategy:
    """All that may be done in a call, whose tensors are OpStrategies here, with what it costs."""
    mesh, parameters = schema.get_mesh_from_args(), schema.op._schema.arguments
    given = dict(zip((p.name for p in parameters), schema.args_schema, strict=False))
    given |= schema.kwargs_schema
    missing = {p.name: p.default_value for p in parameters if p.name not in given}

    def fake(value: Any) -> Any:
        if isinstance(value, OpStrategy):
            meta = value.tensor_meta
            return torch.empty_strided(
                meta.shape, meta.stride, dtype=meta.dtype, device=mesh.device_type
            )
        listed = _listed(value)
        return value if listed is None else [fake(each) for each in listed]

    with detect_fake_mode() or FakeTensorMode():
        fakes = {name: fake(value) for name, value in given.items()}
        results = schema.op(**fakes)
    results = [results] if isinstance(results, Tensor) else list(results)
    names = [
        name
        for name, value in given.items()
        for each in _listed(value) or [value]
        if isinstance(each, OpStrategy)
    ]
    rows = [Row({}, [None] * len(results)), *rule(missing | fakes, results, mesh.size())]
    places = [[*row.results, *map(row.arguments.get, names)] for row in rows]
    found = expand_to_full_mesh_op_strategy(
        mesh, schema, [list(map(_placement, each)) for each in places], input_index=len(results)
    )
    # What a device keeps for itself stays where it is, so backward has to do as forward did.
    kept = [k for k, name in enumerate(names) if name in KEPT]
    lie = [t.strategies[0].output_spec.placements for t in schema.args_strategy]
    found.strategies = [
        each
        for each in found.strategies
        if all(each.input_spec(k).placements == lie[k] for k in kept)
    ]
    return found


def _listed(value: Any) -> list[Any] | None:
    """The elements of an argument that is a list."""
    if isinstance(value, TupleStrategy):
        return list(value.children)
    return list(value) if isinstance(value, (list, tuple)) else None


def _placement(place: Place) -> Placement:
    if place is None:
        return Replicate()
    return Shard(place) if isinstance(place, int) else Partial()


def _register() -> None:
    propagator = DTensor._op_dispatcher.sharding_propagator
    for name, rule in RULES.items():
        op = getattr(torch.ops.adl_kernels, name).default
        has_lists = any(
            "Tensor" in str(a.type) and "List" in str(a.type) for a in op._schema.arguments
        )
        info = RuntimeSchemaInfo(static_argnum=0, needs_pytree=has_lists)
        propagator.register_op_strategy(op, functools.partial(strategy, rule), info)
    # The size of the result is the third argument: each device is to get that of its part.
    op = torch.ops.adl_kernels.depthwise_conv_input_grad.default
    propagator.op_to_shape_and_stride_idx[op] = 2


_register()
