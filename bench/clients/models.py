"""Models of public libraries, made without downloads, that convert() is tried on and timed with."""

from __future__ import annotations

import contextlib
import importlib
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

Args = tuple[Any, ...]


def load(name: str) -> Any:
    """A module of a library.

    The builds of torchvision and torchaudio on PyPI want CUDA's libraries for their own kernels.
    Beside a torch without CUDA their models, which need none of these, are to be had all the same.
    """
    library = name.split(".")[0]
    try:
        return importlib.import_module(name)
    except (RuntimeError, OSError):
        if library not in ("torchvision", "torchaudio") or torch.version.cuda:
            raise
    for loaded in [n for n in sys.modules if n.split(".")[0] == library]:
        del sys.modules[loaded]
    if library == "torchvision":
        for op in ("nms", "qnms"):
            schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            with contextlib.suppress(RuntimeError):
                torch.library.define(f"torchvision::{op}", schema)
    else:
        extension: Any = types.ModuleType("torchaudio._extension")
        extension._IS_TORCHAUDIO_EXT_AVAILABLE = False
        extension.fail_if_no_align = lambda function: function
        sys.modules[extension.__name__] = extension
    return importlib.import_module(name)


def load_those_that_others_import() -> None:
    """timm, ptflops, Lightning and peft import torchvision if it is there."""
    for library in ("torchvision", "torchaudio"):
        with contextlib.suppress(ImportError):
            load(library)


@dataclass(frozen=True)
class Client:
    library: str
    name: str
    make: Callable[[], nn.Module]
    args: Callable[[], Args]  # as in use, which is timed
    small: Callable[[], Args]  # for tests
    replaced: int
    exports: tuple[str, ...] = ("export", "trace")  # what the code around the layers allows

    def model(self) -> nn.Module:
        """In eval, and with statistics and weights that begin as zeros as after some training."""
        model = self.make().eval()
        for name, t in (*model.named_parameters(), *model.named_buffers()):
            if name.endswith(("running_mean", "bias", "gamma")):
                t.data.add_(torch.randn_like(t) * 0.1)
        return model

    def __str__(self) -> str:
        return f"{self.library}-{self.name}"


def image(size: int, batch: int = 1) -> Callable[[], Args]:
    return lambda: (torch.randn(batch, 3, size, size),)


def _timm(name: str, replaced: int) -> Client:
    def make() -> nn.Module:
        return load("timm").create_model(name, pretrained=False, num_classes=10)

    return Client("timm", name, make, image(224), image(64, 2), replaced)


def _torchvision(name: str, replaced: int) -> Client:
    def make() -> nn.Module:
        return getattr(load("torchvision.models"), name)(weights=None, num_classes=10)

    return Client("torchvision", name, make, image(224), image(64, 2), replaced)


def _conformer() -> nn.Module:
    return load("torchaudio.models").Conformer(
        input_dim=80, num_heads=4, ffn_dim=128, num_layers=4, depthwise_conv_kernel_size=31
    )


def _frames(batch: int, steps: int) -> Callable[[], Args]:
    return lambda: (
        torch.randn(batch, steps, 80),
        torch.arange(steps, steps - batch, -1),
    )


def _tacotron() -> nn.Module:
    return load("torchaudio.models").Tacotron2(n_symbol=40)


def _speech(batch: int, tokens: int, frames: int) -> Callable[[], Args]:
    return lambda: (
        torch.randint(40, (batch, tokens)),
        torch.arange(tokens, tokens - batch, -1),
        torch.randn(batch, 80, frames),
        torch.arange(frames, frames - batch, -1),
    )


def _unmix() -> nn.Module:
    return load("openunmix.model").OpenUnmix(nb_bins=513, nb_channels=2, hidden_size=256)


def _spectrogram(frames: int) -> Callable[[], Args]:
    return lambda: (torch.rand(1, 2, 513, frames),)


class Trajectories(nn.Module):
    """torchrl's layer over trajectories that begin anew in between."""

    def __init__(self) -> None:
        super().__init__()
        names = {"in_keys": ["x", "h", "c"], "out_keys": ["y", ("next", "h"), ("next", "c")]}
        self.module = load("torchrl.modules").LSTMModule(
            input_size=128, hidden_size=256, num_layers=1, **names
        )

    def forward(self, x: torch.Tensor, begins: torch.Tensor) -> torch.Tensor:
        state = x.new_zeros(*x.shape[:2], 1, 256)
        data = {"x": x, "is_init": begins[..., None], "h": state, "c": state}
        with load("torchrl.modules").set_recurrent_mode(True):
            return self.module(load("tensordict").TensorDict(data, x.shape[:2]))["y"]


class Values(nn.Module):
    """What RecurrentPPO's critic thinks of steps of many environments."""

    def __init__(self) -> None:
        super().__init__()
        spaces = load("gymnasium.spaces")
        policy = load("sb3_contrib.common.recurrent.policies").RecurrentActorCriticPolicy
        observed = spaces.Box(-1, 1, (4,))
        self.policy = policy(observed, spaces.Discrete(2), lambda _: 1e-3)

    def forward(self, x: torch.Tensor, begins: torch.Tensor) -> torch.Tensor:
        state = x.new_zeros(1, x.shape[0], 256)
        flat = x.flatten(0, 1), (state, state), begins.flatten().to(x.dtype)
        latent, _ = self.policy._process_sequence(*flat, self.policy.lstm_critic)
        return self.policy.value_net(self.policy.mlp_extractor.forward_critic(latent))


def _steps(batch: int, steps: int, features: int) -> Callable[[], Args]:
    def make() -> Args:
        begins = torch.zeros(batch, steps, dtype=torch.bool)
        begins[:, 0] = begins[0, steps // 2] = begins[-1, steps // 3] = True
        return torch.randn(batch, steps, features), begins

    return make


CLIENTS = [
    _timm("mobilenetv3_large_100", 15),
    _timm("mobilenetv4_conv_small", 15),
    _timm("efficientnet_lite0", 16),
    _timm("lcnet_100", 13),
    _timm("convnext_atto", 12),
    _torchvision("mobilenet_v2", 17),
    _torchvision("mnasnet1_0", 17),
    Client("torchaudio", "Conformer", _conformer, _frames(8, 400), _frames(2, 30), 4, ("trace",)),
    Client(
        "torchaudio", "Tacotron2", _tacotron, _speech(4, 60, 100), _speech(2, 9, 7), 3, ("script",)
    ),
    Client("openunmix", "OpenUnmix", _unmix, _spectrogram(256), _spectrogram(11), 1),
    Client("torchrl", "LSTMModule", Trajectories, _steps(16, 64, 128), _steps(3, 7, 128), 1, ()),
    Client("sb3_contrib", "MlpLstmPolicy", Values, _steps(16, 64, 4), _steps(3, 7, 4), 2, ()),
]
