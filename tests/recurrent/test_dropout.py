"""Dropout with a seed: the mask is the definition's, on every device and for every dtype."""

from __future__ import annotations

import devices
import pytest
import torch

import adl_kernels
from adl_kernels import _dropout
from adl_kernels.functional import seeded_dropout

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SEED = torch.tensor(0x1234_5678_9ABC_DEF0)


def test_the_generator_is_philox():
    """The answers that Salmon et al. publish for it (Random123, kat_vectors)."""
    words = _dropout.philox(torch.tensor(0), 0, torch.tensor(0))
    assert [hex(w) for w in words.tolist()] == [
        "0x6627e8d5",
        "0xe169c58d",
        "0xbc57ac4c",
        "0x9b00dbd8",
    ]
    words = _dropout.philox(torch.tensor(-1), -1, torch.tensor(-1))
    assert [hex(w) for w in words.tolist()] == [
        "0x408f276d",
        "0x41c83b0e",
        "0xa20bc7c6",
        "0x6d5451fd",
    ]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(0,), (1,), (3, 5), (4, 1000, 7)], ids=str)
def test_the_op_is_its_definition(shape, dtype):
    x = torch.randn(shape).to(devices.DEVICE, dtype)
    for seed in (SEED, SEED.to(devices.DEVICE), torch.tensor([-7])):
        for stream in (0, 3, 2**33):
            ours = seeded_dropout(x, 0.3, seed, stream)
            exact = _dropout.defined_dropout(x.double(), 0.3, seed, stream)
            assert torch.equal(ours == 0, exact == 0)
            torch.testing.assert_close(
                ours.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=0
            )


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_elements_are_dropped_with_their_probability(p):
    x = torch.ones(1000, 1000, device=devices.DEVICE)
    y = seeded_dropout(x, p, SEED)
    assert abs((y == 0).double().mean().item() - p) <= 5 * (p * (1 - p)) ** 0.5 / 1000
    assert p == 1 or torch.equal(y[y != 0], torch.full_like(y[y != 0], 1 / (1 - p)))


def test_another_seed_or_stream_is_another_mask():
    x = torch.ones(100_000, device=devices.DEVICE)
    masks = [seeded_dropout(x, 0.5, torch.tensor(s), t) != 0 for s, t in [(0, 0), (1, 0), (0, 1)]]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert abs((masks[a] == masks[b]).double().mean().item() - 0.5) < 0.01


def test_gradients_and_opcheck():
    x = torch.randn(5, 7, dtype=torch.float64, device=devices.DEVICE, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: seeded_dropout(x, 0.4, SEED), [x])
    assert torch.autograd.gradgradcheck(lambda x: seeded_dropout(x, 0.4, SEED), [x])
    torch.library.opcheck(torch.ops.adl_kernels.dropout.default, (x, 0.4, SEED, 2))
    batched = torch.func.vmap(lambda x: seeded_dropout(x, 0.4, SEED))(x)
    assert torch.equal(batched[0] == 0, seeded_dropout(x[0], 0.4, SEED) == 0)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_layers_take_a_seed(kind):
    layer = getattr(adl_kernels, kind)(4, 6, num_layers=3, dropout=0.5, device=devices.DEVICE)
    x = torch.randn(5, 2, 4, device=devices.DEVICE)
    state = torch.get_rng_state()
    layer.dropout_seed = torch.tensor(1)
    first, again = layer(x)[0], layer(x)[0]
    assert torch.equal(first, again) and torch.equal(state, torch.get_rng_state())
    layer.dropout_seed = torch.tensor(2)
    assert not torch.equal(first, layer(x)[0])
    assert torch.equal(layer.eval()(x)[0], layer(x)[0])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((torch.ones(3), 1.5, SEED), "dropout: p must be between 0 and 1, got 1.5"),
        ((torch.ones(3), 0.5, torch.tensor(1.0)), "dropout: seed must be one int64, got Float"),
        (
            (torch.ones(3), 0.5, torch.tensor([1, 2])),
            r"dropout: seed must be one int64, got Long \[2\]",
        ),
        ((torch.ones(3, dtype=torch.int64), 0.5, SEED), "dropout: x must be float64, float32"),
    ],
)
def test_bad_arguments(arguments, message):
    x, *rest = arguments
    with pytest.raises(RuntimeError, match=message):
        seeded_dropout(x.to(devices.DEVICE), *rest)
