"""torch.utils.checkpoint around layers: the same gradients, and what is computed again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from network import Network, batch, loss, network
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

import adl_kernels as adl

pytestmark = pytest.mark.cpu_only
OPS = torch.ops.adl_kernels


class Calls(TorchDispatchMode):
    """Counts calls of our ops."""

    def __init__(self) -> None:
        super().__init__()
        self.of: Counter[str] = Counter()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op.namespace == "adl_kernels":
            self.of[op._opname] += 1
        return op(*args, **(kwargs or {}))


def gradients(model: nn.Module, run: Callable[[Tensor], Tensor]) -> tuple[list[Tensor], Counter]:
    """Of parameters and input, and the ops that backward called."""
    x, target = batch()
    x.requires_grad_()
    torch.manual_seed(1)
    value = loss(run(x), target)
    with Calls() as calls:
        value.backward()
    return [x.grad, *(p.grad for p in model.parameters())], calls.of


def check(make: Callable[[], nn.Module], run: Callable[..., Tensor]) -> Counter:
    plain, model = make(), make()
    wanted, _ = gradients(plain, plain)
    found, calls = gradients(model, lambda x: run(model, x))
    for a, b in zip(found, wanted, strict=True):
        assert torch.equal(a, b)
    return calls


def with_masks() -> nn.Module:
    """Masks that are drawn must be the same when they are drawn again."""
    model = network().train()
    torch.manual_seed(3)
    model.lstm = adl.LSTM(
        6, 8, 2, batch_first=True, bidirectional=True, dropout=0.3, zoneout=0.1, weight_dropout=0.1
    )
    model.other = adl.GRU(16, 16, batch_first=True, recurrent_dropout=0.2)
    return model


@pytest.mark.parametrize("make", [network, with_masks], ids=["plain", "masks"])
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])
def test_all_is_computed_again(make: Callable[[], Network], reentrant: bool) -> None:
    calls = check(make, lambda model, x: checkpoint(model, x, use_reentrant=reentrant))
    assert calls["lstm_forward"] == 2 and calls["lstm_backward"] == 2
    assert calls["depthwise_conv"] == 1


@pytest.mark.parametrize("make", [network, with_masks], ids=["plain", "masks"])
def test_selected_ops_are_kept(make: Callable[[], Network]) -> None:
    kept = {OPS.lstm_forward.default, OPS.depthwise_conv.default}

    def policy(context, op, *args, **kwargs):
        return CheckpointPolicy.MUST_SAVE if op in kept else CheckpointPolicy.PREFER_RECOMPUTE

    for choice in (policy, list(kept)):
        calls = check(
            make,
            lambda model, x, choice=choice: checkpoint(
                model,
                x,
                use_reentrant=False,
                context_fn=lambda: create_selective_checkpoint_contexts(choice),
            ),
        )
        assert "lstm_forward" not in calls and "depthwise_conv" not in calls
        assert calls["gru_forward"] == 3 and calls["lstm_backward"] == 2
