"""Models of public libraries, converted: outputs, gradients, checkpoints, copies, exports."""

from __future__ import annotations

import copy
import io
import warnings
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from lanes import slow
from tolerance import assert_accurate
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import adl_kernels as adl
from bench.clients.models import CLIENTS, load_those_that_others_import

pytestmark = pytest.mark.cpu_only
every_client = pytest.mark.parametrize("client", slow(*CLIENTS), ids=str)


def pair(client) -> tuple[nn.Module, nn.Module, tuple]:
    """Torch's and the converted one, with the same weights, and arguments."""
    pytest.importorskip(client.library, exc_type=ImportError)
    theirs = client.model()
    ours = copy.deepcopy(theirs)
    report = adl.convert(ours)
    assert len(report.replaced) == client.replaced, report
    return theirs, ours, client.small()


def to(dtype: torch.dtype, args: tuple) -> tuple:
    return tuple(t.to(dtype) if t.is_floating_point() else t for t in args)


def outputs(model: Any, args: tuple) -> list[Tensor]:
    torch.manual_seed(1)  # some drop out in eval too
    return [t for t in tree_leaves(model(*args)) if isinstance(t, Tensor)]


@pytest.fixture(autouse=True, scope="module")
def libraries():
    load_those_that_others_import()


@every_client
def test_outputs_and_gradients(client):
    theirs, ours, args = pair(client)
    with torch.no_grad():
        found, torchs = outputs(ours, args), outputs(theirs, args)
        exact = outputs(copy.deepcopy(theirs).double(), to(torch.float64, args))
    for k, three in enumerate(zip(found, torchs, exact, strict=True)):
        if three[0].is_floating_point():
            assert_accurate(*three, f"output {k}")
        else:
            assert torch.equal(*three[:2])
    # In double, where rounding turns no activation around.
    gradients, args = [], to(torch.float64, args)
    for model in (ours.double().train(), theirs.double().train()):
        loss = sum(t.square().mean() for t in outputs(model, args) if t.requires_grad)
        loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    largest = max(g.abs().max().item() for g in gradients[1].values() if g is not None)
    close = {"rtol": 1e-8, "atol": 1e-10 * largest}
    assert [n for n, g in gradients[0].items() if g is None] == [
        n for n, g in gradients[1].items() if g is None
    ]
    for name, expected in gradients[1].items():
        if expected is not None:
            torch.testing.assert_close(gradients[0][name], expected, **close)
    for name, expected in theirs.named_buffers():  # statistics of batch norms
        torch.testing.assert_close(ours.get_buffer(name), expected)


@every_client
def test_checkpoints_and_copies(client):
    theirs, ours, args = pair(client)
    with torch.no_grad():
        expected = outputs(ours, args)
        file = io.BytesIO()
        torch.save(ours.state_dict(), file)
        state = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
        fresh = client.make().eval()
        fresh.load_state_dict(state)  # into torch's
        for found, wanted in zip(outputs(fresh, args), outputs(theirs, args), strict=True):
            assert torch.equal(found, wanted)
        adl.convert(fresh)
        file = io.BytesIO()
        torch.save(ours, file)
        whole = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
        others = [fresh, copy.deepcopy(ours), whole]
        for other in others:
            assert [type(m) for m in other.modules()] == [type(m) for m in ours.modules()]
            assert all(map(torch.equal, outputs(other, args), expected))
        adl.revert(ours)
        assert all(map(torch.equal, outputs(ours, args), outputs(theirs, args)))


@every_client
def test_exports(client):
    theirs, ours, args = pair(client)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected, programs = outputs(ours, args), []
        if "export" in client.exports:
            programs.append(torch.export.export(ours, args).module())
        if "trace" in client.exports:
            programs.append(torch.jit.trace(ours, args, check_trace=False))
        for program in programs:  # torch.export has torch's own convolutions, other roundings
            for found, wanted in zip(outputs(program, args), expected, strict=True):
                bound = 1e-5 * wanted.abs().max().item()
                torch.testing.assert_close(found, wanted, rtol=0, atol=bound)
        if "script" in client.exports:  # which is for torch's own layers
            adl.revert(ours)
            scripted = torch.jit.script(ours)
            torch.testing.assert_close(outputs(scripted, args), outputs(theirs, args))


@every_client
def test_counted_operations(client):
    """Of a training step; torch counts none of its fused LSTM on the CPU."""
    theirs, ours, args = pair(client)
    counts = []
    for model in (theirs.train(), ours.train()):
        with FlopCounterMode(display=False) as counter:
            sum(t.sum() for t in outputs(model, args) if t.requires_grad).backward()
        counts.append(counter.get_total_flops())
    has_fused_lstm = client.name in ("OpenUnmix", "MlpLstmPolicy")  # not packed, no projection
    assert counts[1] > counts[0] if has_fused_lstm else counts[1] == counts[0]


def graph(model: nn.Module, x: Tensor) -> list[str]:
    """The operators that Inductor would get."""
    found: list[str] = []

    def note(program: torch.fx.GraphModule, args: Any) -> Any:
        found.extend(str(n.target) for n in program.graph.nodes if n.op == "call_function")
        return make_boxed_func(program.forward)

    torch._dynamo.reset()
    torch.compile(model, backend=aot_autograd(fw_compiler=note))(x)
    return found


NETS = [c for c in CLIENTS if c.library in ("timm", "torchvision")]


@pytest.mark.parametrize("client", slow(*NETS), ids=str)
def test_compiled_networks_are_torchs(client):
    """The same graph, in eval, in training and fused: never slower than torch's compiled one."""
    theirs, ours, args = pair(client)
    fused = copy.deepcopy(theirs)
    adl.convert(fused, fuse="inference", verify=args)
    with torch.no_grad():
        expected = graph(theirs, *args)
        assert expected and graph(ours, *args) == graph(fused, *args) == expected
    assert graph(ours.train(), *args) == graph(theirs.train(), *args)
