"""Libraries that train, explain, count, adapt or offload models, on converted ones."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import adl_kernels as adl
from bench.clients.models import load_those_that_others_import

pytestmark = [pytest.mark.cpu_only, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(autouse=True)
def as_in_use():
    """Their own code is not all deterministic, and fills no memory with NaN."""
    torch.use_deterministic_algorithms(False)
    load_those_that_others_import()


def library(name):
    return pytest.importorskip(name, exc_type=ImportError)


class Net(nn.Module):
    """An image, seen as a sequence in the end; no batch norm, which opacus has not."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 1),
            nn.Conv2d(8, 8, 3, padding=1, groups=8),
            nn.GroupNorm(2, 8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 1),
        )
        self.rnn = nn.GRU(8, 12, batch_first=True)
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        y = self.features(x).flatten(2).transpose(1, 2)
        return self.head(self.rnn(y)[0][:, -1])


def pair(make=Net):
    """Torch's and the converted one."""
    theirs = make()
    ours = copy.deepcopy(theirs)
    assert adl.convert(ours).replaced
    return theirs, ours


def images(batch=6):
    return torch.randn(batch, 3, 6, 6), torch.randint(3, (batch,))


def same(found, expected, **how):
    torch.testing.assert_close(found, expected, **how)


def test_lightning_trains_saves_and_loads(tmp_path):
    lightning = library("lightning")

    class Task(lightning.LightningModule):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def training_step(self, batch, _):
            x, y = batch
            return nn.functional.cross_entropy(self.net(x), y)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*images(24)), 6)
    found = []
    for name, net in zip(("theirs", "ours"), pair(), strict=True):
        task = Task(net)
        how = {"logger": False, "enable_progress_bar": False, "enable_model_summary": True}
        trainer = lightning.Trainer(
            max_epochs=3, accelerator="cpu", default_root_dir=tmp_path / name, **how
        )
        trainer.fit(task, data)
        trainer.save_checkpoint(tmp_path / f"{name}.ckpt")
        fresh = Net()
        adl.convert(fresh)
        loaded = Task.load_from_checkpoint(tmp_path / f"{name}.ckpt", net=fresh)
        found.append(loaded.net.state_dict())
    same(found[1], found[0], rtol=1e-4, atol=1e-5)


def test_opacus_takes_gradients_of_single_samples():
    opacus = library("opacus")

    def features():  # opacus has recurrent layers of its own, and takes no others
        return nn.Sequential(*Net().features, nn.AdaptiveAvgPool2d(1), nn.Flatten())

    theirs, ours = pair(features)
    (x, y), found = images(24), []
    for net in (theirs, ours):
        wrapped = opacus.GradSampleModule(copy.deepcopy(net))
        wrapped(x).square().sum().backward()
        found.append([p.grad_sample for p in wrapped.parameters()])
    same(found[1], found[0])
    found = []
    for net in (theirs, ours):  # and a step of private training
        torch.manual_seed(0)
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 6)
        module, optimizer, _ = opacus.PrivacyEngine().make_private(
            module=net,
            optimizer=torch.optim.SGD(net.parameters(), lr=0.1),
            data_loader=loader,
            noise_multiplier=1.0,
            max_grad_norm=1.0,
        )
        nn.functional.cross_entropy(module(x), y).backward()
        optimizer.step()
        found.append(list(net.parameters()))
    same(found[1], found[0])


def test_captum_attributes():
    attr = library("captum.attr")
    (theirs, ours), x = pair(), images(3)[0]

    def found(net):
        net.eval()
        yield attr.IntegratedGradients(net).attribute(x, target=1, n_steps=8)
        yield attr.Saliency(net).attribute(x, target=0)
        yield attr.DeepLift(net).attribute(x, target=2)
        yield attr.LayerGradCam(net, net.features[1]).attribute(x, target=1)
        yield attr.LayerActivation(net, net.features[1]).attribute(x)
        yield attr.Occlusion(net).attribute(x, (3, 2, 2), target=1)

    same(list(found(ours)), list(found(theirs)), rtol=1e-4, atol=1e-6)


def test_captum_knows_torchs_classes_alone_for_lrp():
    attr = library("captum.attr")
    (_, ours), x = pair(lambda: Net().features), images(1)[0]
    with pytest.raises(TypeError, match=r"DepthwiseConv2d.* has no rule defined"):
        attr.LRP(ours).attribute(x, target=(0, 0, 0))


@pytest.mark.parametrize("fully", [True, False], ids=["offloaded", "hooked"])
def test_accelerate_offloads(fully):
    accelerate = library("accelerate")
    (theirs, ours), x = pair(), images()[0]
    with torch.no_grad():
        expected = theirs(x)
        if fully:  # weights are meta tensors until a layer is called
            accelerate.cpu_offload(ours, execution_device=torch.device("cpu"))
            assert all(p.is_meta for p in ours.parameters())
        else:
            places = {"features": "cpu", "rnn": "cpu", "head": "cpu"}
            accelerate.dispatch_model(ours, places, force_hooks=True)
        same(ours(x), expected)
        same(ours(x), expected)


def test_accelerate_prepares_and_loads(tmp_path):
    accelerate = library("accelerate")
    found, (x, y) = [], images()
    for name, net in zip(("theirs", "ours"), pair(), strict=True):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        accelerator = accelerate.Accelerator(cpu=True)
        net, optimizer = accelerator.prepare(net, optimizer)
        for _ in range(3):
            optimizer.zero_grad()
            accelerator.backward(nn.functional.cross_entropy(net(x), y))
            optimizer.step()
        accelerator.save_model(net, tmp_path / name)
        found.append(net(x))
        with accelerate.init_empty_weights():
            fresh = Net()
        adl.convert(fresh)
        accelerate.load_checkpoint_and_dispatch(fresh, tmp_path / name, device_map={"": "cpu"})
        same(fresh(x), found[-1])
    same(found[1], found[0], rtol=1e-4, atol=1e-5)


LORA_TARGETS = {
    "pointwise": ["features.0", "features.4"],
    "depthwise": ["features.1"],
    "linear": ["head"],
}


def trained_by_lora(net, targets, x, y, convert=False):
    """After training; without gradients; without the adapters; with them merged."""
    peft = library("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(target_modules=targets, r=8, init_lora_weights=False)
    adapted = peft.get_peft_model(net, config)
    if convert:
        assert adl.convert(adapted).replaced
    optimizer = torch.optim.SGD(adapted.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(adapted(x).flatten(1)[:, :3], y).backward()
        optimizer.step()
    with torch.no_grad():
        trained = adapted(x)
        served = adapted.eval()(x)
        with adapted.disable_adapter():
            without = adapted(x)
        if targets in (["features.1"], ["depthwise"]):  # peft merges none with groups
            return trained, served, without, served
        return trained, served, without, adapted.merge_and_unload()(x)


@pytest.mark.parametrize("targets", LORA_TARGETS.values(), ids=LORA_TARGETS)
def test_lora(targets):
    (theirs, ours), (x, y) = pair(), images()
    later = copy.deepcopy(theirs)
    expected = trained_by_lora(theirs, targets, x, y)
    found = trained_by_lora(later, targets, x, y, convert=True)
    same(found, expected, rtol=1e-4, atol=1e-5)
    if "features.1" not in targets:  # whose adapter peft makes of its class
        found = trained_by_lora(ours, targets, x, y)
        same(found, expected, rtol=1e-4, atol=1e-5)
    trained, served, without, merged = found
    same(served, trained)
    same(merged, served, rtol=1e-4, atol=1e-5)
    assert (without - served).abs().max() > 1e-3


@pytest.mark.parametrize("targets", [["pointwise"], ["depthwise"]], ids=["pointwise", "depthwise"])
def test_lora_inside_a_block(targets):
    """Adapters count in eval without gradients, where a block may run as one operator."""
    block = adl.SeparableConv2d(8, 4, 3, padding=1, norm=True, dw_activation="relu")
    block.eval()  # so that the statistics of the batch norm stay
    x, y = torch.randn(6, 8, 6, 6), torch.randint(3, (6,))
    trained, served, without, merged = trained_by_lora(block, targets, x, y)
    same(served, trained)
    same(merged, served, rtol=1e-4, atol=1e-5)
    assert (without - served).abs().max() > 1e-3


@pytest.mark.parametrize("backend", ["pytorch", "aten"])
@pytest.mark.parametrize(
    "make", [Net, lambda: nn.LSTM(8, 6, 2, batch_first=True)], ids=["net", "lstm"]
)
def test_ptflops_counts_as_of_torchs_layers(make, backend):
    ptflops = library("ptflops")
    size = (5, 8) if isinstance(make(), nn.LSTM) else (3, 6, 6)
    how = {"as_strings": False, "print_per_layer_stat": False, "backend": backend}

    def count(net, **more):
        return ptflops.get_model_complexity_info(net, size, **how, **more)

    theirs, ours = pair(make)
    expected = count(theirs)
    if isinstance(theirs, nn.LSTM) and backend == "aten":  # of a fused LSTM it knows nothing
        expected = (15 + 5) * 0 + 4 * 6 * (5 * (8 + 6 + 2) + 5 * (6 + 6 + 2)), expected[1]
    assert count(ours, custom_modules_hooks=adl.flops.ptflops_hooks()) == expected
    assert count(ours)[0] < expected[0]


def test_fvcore_counts_convolutions_as_torchs_and_recurrent_layers_too():
    fvcore = library("fvcore.nn")
    theirs, ours = pair()
    x = images(2)[0]

    def count(net, **handles):
        analysis = fvcore.FlopCountAnalysis(net, x).set_op_handle(**handles)
        return analysis.unsupported_ops_warnings(False).by_module()

    expected, found = count(theirs), count(ours, **adl.flops.fvcore_handles())
    assert expected["rnn"] == 0  # which fvcore does not know
    assert found["rnn"] == 2 * 36 * 3 * 12 * (8 + 12)
    for name in ("features", "features.1", "head"):
        assert found[name] == expected[name] > 0
    lstm = pair(lambda: nn.LSTM(4, 5, 2, bidirectional=True, proj_size=3))[1]
    analysis = fvcore.FlopCountAnalysis(lstm, torch.randn(7, 2, 4))
    total = analysis.set_op_handle(**adl.flops.fvcore_handles()).total()
    assert total == 14 * 2 * (20 * (4 + 3) + 15 + 20 * (6 + 3) + 15)


@pytest.mark.parametrize("recurrent", [True, False], ids=["sequences", "steps"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_torchrl_splits_trajectories(kind, recurrent):
    """With is_init it gives mask= to layers that are not torch's own class."""
    modules, tensordict = library("torchrl.modules"), library("tensordict")
    cls = getattr(modules, f"{kind}Module")
    states = ["h", "c"] if kind == "LSTM" else ["h"]
    module = cls(
        input_size=4,
        hidden_size=5,
        num_layers=2,
        in_keys=["x", *states],
        out_keys=["y", *(("next", s) for s in states)],
    )
    theirs, ours = pair(lambda: module)
    steps = 7 if recurrent else 1
    x = torch.randn(3, steps, 4, requires_grad=True)
    is_init = torch.zeros(3, steps, 1, dtype=torch.bool)
    if recurrent:
        is_init[:, 0] = is_init[0, 3] = is_init[2, 5] = is_init[2, 6] = True
    given = {"x": x, "is_init": is_init}
    given |= {s: torch.randn(3, steps, 2, 5) for s in states}
    found = []
    with modules.set_recurrent_mode(recurrent):
        for net in (theirs, ours):
            data = net(tensordict.TensorDict(dict(given), [3, steps]))
            y = data["y"]
            gradients = torch.autograd.grad(y.square().sum(), [x, *net.parameters()])
            found.append([y, *(data["next", s] for s in states), *gradients])
    same(found[1], found[0])


def test_recurrent_ppo_earns_the_same(tmp_path):
    """A hundred updates from one seed; and an agent that was saved acts as before."""
    sb3, gymnasium = library("sb3_contrib"), library("gymnasium")
    rewards = []
    for convert in (False, True):
        env = gymnasium.make("CartPole-v1")
        agent = sb3.RecurrentPPO(
            "MlpLstmPolicy",
            env,
            n_steps=32,
            batch_size=32,
            n_epochs=2,
            seed=0,
            device="cpu",
            policy_kwargs={"lstm_hidden_size": 32},
        )
        if convert:
            assert len(adl.convert(agent.policy).replaced) == 2
        agent.learn(32 * 100)
        assert agent._n_updates == 200  # two epochs each
        rewards.append([episode["r"] for episode in agent.ep_info_buffer])
        agent.save(tmp_path / "agent")
        loaded = sb3.RecurrentPPO.load(tmp_path / "agent", device="cpu")
        adl.convert(loaded.policy)
        seen = env.observation_space.sample()
        for acting in (agent, loaded):
            acting.policy.set_training_mode(False)
        actions = [a.predict(seen, deterministic=True) for a in (agent, loaded)]
        same(torch.tensor(actions[1][1][0]), torch.tensor(actions[0][1][0]))
        assert actions[0][0] == actions[1][0]
    assert rewards[1] == rewards[0] and len(rewards[0]) > 10


# transformers


def test_transformers_subclasses_that_are_only_made_otherwise():
    transformers = library("transformers")
    size = {"width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640}
    theirs = transformers.EfficientNetModel(transformers.EfficientNetConfig(**size)).eval()
    ours, x = copy.deepcopy(theirs), torch.randn(1, 3, 64, 64)
    report = adl.convert(ours, verify=x)
    assert len(report.replaced) == 10 and not report.left and not report.uncalled
    with torch.no_grad():
        same(ours(x).last_hidden_state, theirs(x).last_hidden_state)


def test_transformers_layers_that_are_only_read():
    transformers = library("transformers")
    config = transformers.MambaConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2)
    model, tokens = transformers.MambaModel(config).eval(), torch.randint(50, (1, 9))
    report = adl.convert(model, verify=tokens)
    assert report.uncalled == [path for path, *_ in report.replaced] and len(report.uncalled) == 2
