"""Modules with what torch.nn's layers have not: against the definition, and what they promise."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from devices import DEVICE
from pairs import MARKS, random
from pairwise import combinations, pairs_of
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

import adl_kernels
from adl_kernels import functional
from adl_kernels.recurrent import engine
from adl_kernels.recurrent.options import LayerOptions

pytestmark = MARKS
F64 = torch.float64
T, B, I, H = 7, 4, 3, 6

COMMON = {
    "layer_norm": (False, True),
    "zoneout": (0.0, 0.3),
    "recurrent_dropout": (0.0, 0.3),
    "weight_dropout": (0.0, 0.4),
    "bptt_steps": (0, 3),
    "num_layers": (1, 2),
    "bidirectional": (False, True),
    "dropout": (0.0, 0.5),
    "batch_first": (False, True),
    "bias": (True, False),
    "training": (True, False),
    "form": ("padded", "lengths", "reset", "both", "packed", "unbatched"),
    "given": (True, False),
}
OPTIONS = {
    "LSTM": {
        "forget_gate": ("learned", "coupled", "none"),
        "peephole": (False, True),
        "cell_activation": ("tanh", "sigmoid", "relu", "identity"),
        "hidden_activation": ("tanh", "sigmoid", "relu", "identity"),
        "return_all_states": (False, True),
        "proj_size": (0, 4),
        **COMMON,
    },
    "GRU": {"reset_after": (True, False), **COMMON},
    "RNN": {"nonlinearity": ("tanh", "relu", "sigmoid"), **COMMON},
}


def possible(row):
    return not (row.get("dropout") == 0.5 and row.get("num_layers") == 1)


ROWS = [(kind, row) for kind in OPTIONS for row in combinations(OPTIONS[kind], possible)]


def label(row):
    return "-".join(f"{k}={v}" for k, v in row.items() if v) if isinstance(row, dict) else row


def build(kind, **options):
    torch.manual_seed(0)
    return getattr(adl_kernels, kind)(I, H, dtype=F64, device=DEVICE, **options)


def leaves(value) -> list[Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(value) if isinstance(t, Tensor)]


def run(module, x, hx=None, **given):
    """Outputs, and gradients of x, hx and all parameters from a loss that reaches everything."""
    x = x.detach().requires_grad_()
    hx = None if hx is None else [h.detach().requires_grad_() for h in hx]
    state = None if hx is None else tuple(hx) if module.mode == "LSTM" else hx[0]
    torch.manual_seed(4)
    outputs = [t for t in leaves(module(given.pop("pack", lambda x: x)(x), state, **given))]
    outputs = [t for t in outputs if t.is_floating_point()]
    tensors = [x, *(hx or []), *module.parameters()]
    cotangents = [random(*t.shape, seed=9 + k).round(decimals=1) for k, t in enumerate(outputs)]
    grads = torch.autograd.grad(outputs, tensors, cotangents, allow_unused=True)
    return outputs, grads


def same(ours, theirs, tolerance=1e-10):
    for a, b in zip(leaves(ours), leaves(theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_every_two_options_meet():
    for kind, options in OPTIONS.items():
        met = set().union(*(pairs_of(row) for k, row in ROWS if k == kind))
        names = list(options)
        for i, a in enumerate(names):
            for b in names[i + 1 :]:
                for pair in ((x, y) for x in options[a] for y in options[b]):
                    excluded = (a, b) == ("num_layers", "dropout") and pair == (1, 0.5)
                    assert excluded or ((a, pair[0]), (b, pair[1])) in met, (a, b, pair)


@pytest.mark.parametrize("kind, row", ROWS, ids=label)
def test_kernels_are_as_defined(kind, row, monkeypatch):
    options = dict(row)
    training, form, given = (options.pop(name) for name in ("training", "form", "given"))
    module = build(kind, **options).train(training)
    arguments, batch = {}, None if form == "unbatched" else B
    rows = (T,) if batch is None else (B, T) if module.batch_first else (T, B)
    x = random(*rows, I)
    lengths = torch.tensor([3, 0, 7, 5], dtype=torch.int32, device=DEVICE)
    if form in ("lengths", "both"):
        arguments["lengths"] = lengths
    if form in ("reset", "both", "unbatched"):
        arguments["reset"] = random(*rows, seed=5) > 0.7
    if form == "packed":
        arguments["pack"] = lambda x: pack_padded_sequence(
            x, lengths.cpu().clamp(1), batch_first=module.batch_first, enforce_sorted=False
        )
    hx = None
    if given:
        count = module.num_layers * (2 if module.bidirectional else 1)
        lead = (count,) if batch is None else (count, batch)
        hx = [random(*lead, module.proj_size or H, seed=2)]
        hx += [random(*lead, H, seed=3)] * (kind == "LSTM")
    ours = run(module, x, hx, **arguments)
    monkeypatch.setattr(engine, "needs_reference_path", lambda *tensors: True)
    same(ours, run(module, x, hx, **arguments))


ALIKE = {
    "lstm": ("LSTM", {}),
    "coupled-peephole": ("LSTM", {"forget_gate": "coupled", "peephole": True}),
    "layer-norm": ("LSTM", {"layer_norm": True, "proj_size": 4}),
    "gru": ("GRU", {}),
    "gru-before": ("GRU", {"reset_after": False}),
    "rnn": ("RNN", {"nonlinearity": "sigmoid"}),
}
alike = pytest.mark.parametrize("kind, options", ALIKE.values(), ids=ALIKE)


@alike
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64], ids=str)
def test_lengths_are_as_packed(kind, options, bidirectional, dtype):
    module = build(kind, num_layers=2, bidirectional=bidirectional, **options)
    x, lengths = random(T, B, I), torch.tensor([2, 7, 1, 5])
    packed = run(module, x, pack=lambda x: pack_padded_sequence(x, lengths, enforce_sorted=False))
    (y, *states), grads = run(module, x, lengths=lengths.to(DEVICE, dtype))
    rows = torch.cat([y[t, b][None] for t in range(T) for b in (1, 3, 0, 2) if t < lengths[b]])
    # The loss of `run` is another one: that of the padded outputs.
    assert (y[torch.arange(T)[:, None] >= lengths] == 0).all()
    same([rows, *states], packed[0])
    (dx,) = torch.autograd.grad(
        module(lead := x.detach().requires_grad_(), lengths=lengths.to(DEVICE))[0].sum(), [lead]
    )
    assert (dx[torch.arange(T)[:, None] >= lengths] == 0).all() and grads[0].shape == x.shape


@alike
def test_a_sequence_of_no_steps(kind, options):
    module = build(kind, **options)
    x, lengths = random(T, B, I), torch.zeros(B, dtype=torch.int64, device=DEVICE)
    hx = [random(1, B, module.proj_size or H, seed=2)] + [random(1, B, H)] * (kind == "LSTM")
    (y, *states), grads = run(module, x, hx, lengths=lengths)
    assert (y == 0).all() and (grads[0] == 0).all()
    same(states, hx)
    lengths[2] = 4
    (y, *_), _ = run(module, x, hx, lengths=lengths)
    assert (y[:4, 2] != 0).any() and (y[:, [0, 1, 3]] == 0).all() and (y[4:] == 0).all()


@alike
@pytest.mark.parametrize("bidirectional", [False, True])
def test_reset_is_as_sequences_of_their_own(kind, options, bidirectional):
    """In both directions; a flag at the first step forgets the state that was given."""
    module = build(kind, bidirectional=bidirectional, **options)
    x, reset = random(T, 1, I), torch.zeros(T, 1, dtype=torch.bool, device=DEVICE)
    reset[[3, 4]] = True
    parts = [module(part)[0] for part in x.split([3, 1, 3])]
    same(module(x, reset=reset)[0], torch.cat(parts))
    weight = module.weight_hh_l0
    (whole,) = torch.autograd.grad(module(x, reset=reset)[0].sum(), [weight])
    (pieces,) = torch.autograd.grad(torch.cat(parts).sum(), [weight])
    same(whole, pieces)
    first = torch.zeros_like(reset)
    first[0] = True
    if not bidirectional:
        hx = [random(1, 1, module.proj_size or H, seed=2)] + [random(1, 1, H)] * (kind == "LSTM")
        state = tuple(hx) if kind == "LSTM" else hx[0]
        same(module(x, state, reset=first), module(x))


@alike
@pytest.mark.parametrize("steps", [1, 3, 7, 20])
def test_bptt_steps_is_as_chunks_with_the_state_detached(kind, options, steps):
    module = build(kind, num_layers=2, **options)
    x = random(T, B, I).requires_grad_()
    module.bptt_steps = steps
    whole = module(x)
    module.bptt_steps = 0
    state, outputs = None, []
    for chunk in x.split(steps):
        y, state = module(chunk, state)
        outputs.append(y)
        final = state
        state = tuple(h.detach() for h in state) if kind == "LSTM" else state.detach()
    chunks = torch.cat(outputs), final
    same(whole, chunks)
    weights = [x, *module.parameters()]
    losses = [sum((t * random(*t.shape)).sum() for t in leaves(out)) for out in (whole, chunks)]
    same(*(torch.autograd.grad(loss, weights) for loss in losses))


@alike
def test_the_state_carries_on(kind, options):
    module = build(kind, num_layers=2, **options)
    x = random(T, B, I)
    first, state = module(x[:3])
    second, last = module(x[3:], state)
    same((torch.cat([first, second]), last), module(x))


def test_all_states():
    module = build("LSTM", num_layers=2, bidirectional=True, return_all_states=True)
    x = random(T, B, I)
    y, (h_n, c_n), c = module(x)
    assert c.shape == (T, B, 2 * H)
    same([c[-1, :, :H], c[0, :, H:]], [c_n[2], c_n[3]])
    module.return_all_states = False
    same(module(x), (y, (h_n, c_n)))
    packed = pack_padded_sequence(x, torch.tensor([7, 5, 2, 1]))
    module.return_all_states = True
    _, _, c = module(packed)
    assert torch.equal(c.batch_sizes, packed.batch_sizes) and c.data.shape == (15, 2 * H)


def test_the_update_gate_of_lectures():
    """h_t = i n + (1 - i) h_{t-1}, written out, and our GRU with its weights converted."""
    module = build("GRU", reset_after=False)
    lectures = {name: w.clone() for name, w in module.state_dict().items()}
    module.load_state_dict(functional.flip_update_gate(lectures))
    x, h = random(T, B, I), torch.zeros(B, H, dtype=F64, device=DEVICE)
    w, u, b, c = (lectures[f"{k}_l0"] for k in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    for t in range(T):
        r, i = torch.sigmoid(x[t] @ w.T + b + h @ u.T + c)[:, : 2 * H].chunk(2, 1)
        n = torch.tanh(x[t] @ w[2 * H :].T + b[2 * H :] + (r * h) @ u[2 * H :].T + c[2 * H :])
        h = i * n + (1 - i) * h
    same(module(x)[1][0], h)
    same(functional.flip_update_gate(functional.flip_update_gate(w)), w)
    with pytest.raises(ValueError, match=r"must be \[3 H, ...\]"):
        functional.flip_update_gate(torch.zeros(4))


def test_parameters_of_extras():
    module = build("LSTM", num_layers=2, bidirectional=True, peephole=True, layer_norm=True)
    assert module.weight_ch_l1_reverse.shape == (3, H)
    assert build("LSTM", forget_gate="coupled", peephole=True).weight_ch_l0.shape == (2, H)
    assert build("LSTM", forget_gate="none").weight_ih_l0.shape == (3 * H, I)
    assert (module.weight_ln_ih_l0 == 1).all() and (module.bias_ln_c_l0 == 0).all()
    assert module.weight_ch_l0.abs().max() <= H**-0.5 and module.weight_ch_l0.std() > 0
    assert module.weight_ln_hh_l0.shape == (4 * H,) and module.weight_ln_c_l0.shape == (H,)
    assert build("GRU", layer_norm=True).weight_ln_hh_l0.shape == (3 * H,)
    assert not hasattr(build("RNN", layer_norm=True), "weight_ln_c_l0")
    assert "peephole=True, layer_norm=True" in repr(module)
    other = build("LSTM", num_layers=2, bidirectional=True, peephole=True, layer_norm=True)
    other.load_state_dict(module.state_dict())


# ---- masks


@pytest.mark.parametrize("option", ["zoneout", "recurrent_dropout", "weight_dropout"])
def test_masks_repeat_with_the_seed_and_differ_without(option):
    module = build("LSTM", **{option: 0.5})
    x = random(T, B, I)

    def once(seed=None):
        if seed is not None:
            torch.manual_seed(seed)
        return module(x)[0]

    assert torch.equal(once(1), once(1)) and not torch.equal(once(1), once(2))
    assert not torch.equal(once(1), once())
    module.dropout_seed = torch.tensor([7])
    assert torch.equal(once(1), once(2))
    module.eval()
    assert torch.equal(once(1), once(2))


def test_zoneout_keeps_so_many_units():
    module = adl_kernels.LSTM(3, 50, zoneout=(0.3, 0.1), return_all_states=True)
    with torch.no_grad():
        y, _, c = module(torch.randn(200, 8, 3))
    for states, share in ((y, 0.3), (c, 0.1)):
        kept = (states[1:] == states[:-1]).double().mean().item()
        assert abs(kept - share) < 5 * math.sqrt(share * (1 - share) / states.numel())


def test_zoneout_in_eval_is_the_expectation():
    """Of one step, which is linear in the masks."""
    module = build("GRU", zoneout=0.3)
    x, h = random(1, B, I), random(1, B, H, seed=2)
    plain = build("GRU")
    same(module.eval()(x, h)[0], 0.3 * h + 0.7 * plain(x, h)[0])


def test_recurrent_dropout_has_one_mask_per_sequence():
    """With weights that only pass h on, what is dropped once is dropped at every step."""
    module = adl_kernels.RNN(1, 40, nonlinearity="relu", recurrent_dropout=0.5, dtype=F64)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module.weight_hh_l0.copy_(torch.eye(40))
    y, _ = module(torch.zeros(3, 5, 1, dtype=F64), torch.ones(1, 5, 40, dtype=F64))
    assert torch.equal(y[0] == 0, y[2] == 0) and set(y[2].unique().tolist()) == {0.0, 8.0}
    assert len({tuple(row.tolist()) for row in y[0]}) == 5


def test_weight_dropout_drops_weights():
    module = build("RNN", nonlinearity="relu", weight_dropout=0.5, bidirectional=True)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.abs_()  # so that no unit is zero by itself
    module(random(2, 1, I).abs())[0].sum().backward()
    for weight in (module.weight_hh_l0, module.weight_hh_l0_reverse):
        assert 0 < (weight.grad == 0).double().mean() < 1


def test_no_two_masks_are_alike():
    """Of layers, directions and states."""
    x, seed = torch.empty(1, B, I, dtype=F64, device=DEVICE), torch.tensor([7])
    asked = LayerOptions(zoneout=(0.5, 0.5))
    zones, masks, weights = [], [], []
    for k in range(3):
        drawn = engine.draw_masks(x, [(2, B, H)] * 2, asked, 0.5, k, seed)
        zones += [*drawn.zoneout_h, *drawn.zoneout_c]
        masks += [*drawn.recurrent_mask]
        weights += engine.drop_weights([torch.ones_like(x)] * 4, 0.5, k, 2, seed)[1::2]
    assert (len(zones), len(masks), len(weights)) == (12, 6, 6)
    for kind in (zones, masks, weights):
        assert not any(torch.equal(a, b) for a, b in itertools.combinations(kind, 2))


# ---- what is refused


@pytest.mark.parametrize(
    "kind, options, error, text",
    [
        ("LSTM", {"forget_gate": "on"}, ValueError, "forget_gate must be 'learned', 'coupled'"),
        ("LSTM", {"cell_activation": "elu"}, ValueError, "cell_activation must be one of tanh"),
        ("LSTM", {"zoneout": (0.1, 0.2, 0.3)}, ValueError, r"or a pair \(of h, of c\)"),
        ("GRU", {"zoneout": (0.1, 0.2)}, ValueError, r"zoneout must be a number in \[0, 1\], got"),
        ("GRU", {"peephole": True}, TypeError, "peephole"),
        ("RNN", {"recurrent_dropout": 1.0}, ValueError, r"recurrent_dropout must be a number in"),
        ("RNN", {"weight_dropout": True}, ValueError, r"weight_dropout must be a number in"),
        ("RNN", {"nonlinearity": "elu"}, ValueError, "Unknown nonlinearity 'elu'"),
        ("LSTM", {"bptt_steps": -1}, ValueError, "bptt_steps must be an integer of at least 0"),
        ("LSTM", {"layer_norm": 1}, TypeError, "layer_norm must be True or False"),
    ],
)
def test_wrong_options(kind, options, error, text):
    with pytest.raises(error, match=text):
        build(kind, **options)


@pytest.mark.parametrize(
    "given, text",
    [
        ({"lengths": torch.tensor([9, 1, 1, 1])}, r"lengths\[0\] = 9 exceeds T = 7"),
        ({"lengths": torch.tensor([1, 1, -1, 1])}, r"lengths\[2\] = -1 is negative"),
        ({"lengths": torch.tensor([1, 1])}, r"lengths must be integers \[4\] \(batch\)"),
        (
            {"lengths": torch.ones(4)},
            r"lengths must be integers \[4\] \(batch\), got torch.float32",
        ),
        ({"lengths": [1, 2, 3, 4]}, "lengths must be a Tensor, got list"),
        ({"reset": torch.zeros(4, 7, dtype=torch.bool)}, r"reset must be bool \[7, 4\]"),
        ({"reset": torch.zeros(7, 4)}, r"reset must be bool \[7, 4\]"),
    ],
    ids=str,
)
@pytest.mark.cpu_only
def test_wrong_rows(given, text):
    with pytest.raises((RuntimeError, TypeError), match=text):
        build("GRU")(random(T, B, I), **given)


def test_lengths_and_reset_are_for_padded_batches():
    module, x = build("GRU"), random(T, B, I)
    packed = pack_padded_sequence(x, torch.tensor([7, 5, 2, 1]))
    with pytest.raises(ValueError, match="lengths are for padded input"):
        module(packed, lengths=torch.tensor([1, 1, 1, 1]))
    with pytest.raises(ValueError, match="instead of a PackedSequence give lengths"):
        module(packed, reset=torch.zeros(T, B, dtype=torch.bool))
    with pytest.raises(RuntimeError, match="lengths are for batched input"):
        module(x[:, 0], lengths=torch.tensor([3]))


def test_revert_leaves_what_torch_has_not():
    model = torch.nn.ModuleList(
        [build("LSTM", peephole=True), build("RNN", nonlinearity="sigmoid")]
    )
    report = adl_kernels.revert(model)
    assert not report.replaced
    assert [why for _, _, why in report.left] == [
        "torch.nn has no peephole",
        "torch.nn has no nonlinearity",
    ]
