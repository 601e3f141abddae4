"""The layers as functions, for those who hold the weights themselves."""

from ._dropout import seeded_dropout
from .depthwise.causal import causal_conv1d, causal_conv1d_step
from .depthwise.functional import (
    depthwise_conv1d,
    depthwise_conv2d,
    depthwise_conv3d,
    separable_conv1d,
    separable_conv2d,
)
from .depthwise.separate import separate_kernel
from .recurrent.functional import flip_update_gate, gru, lstm, rnn

__all__ = [
    "causal_conv1d",
    "causal_conv1d_step",
    "depthwise_conv1d",
    "depthwise_conv2d",
    "depthwise_conv3d",
    "flip_update_gate",
    "gru",
    "lstm",
    "rnn",
    "seeded_dropout",
    "separable_conv1d",
    "separable_conv2d",
    "separate_kernel",
]


def __dir__() -> list[str]:
    return __all__
