"""adl_kernels: torch.nn's recurrent layers and depthwise convolutions, faster, same numbers.

Put ``adl_kernels.LSTM`` where ``nn.LSTM`` stood, or call ``adl_kernels.convert(model)``.
"""

import torch

from . import _build_check

_build_check.check(torch.__version__, torch.version.cuda)

# ruff: noqa: E402 (the check above comes first)
from . import _C as _C  # registers the ops
from . import _late as _late  # the rules for DTensors
from . import diagnostics, flops, functional
from ._build_info import VERSION as __version__
from .conversion import Report, convert, revert
from .depthwise import fakes as _fakes_of_convolutions  # noqa: F401
from .depthwise.layers import CausalConv1d, DepthwiseConv1d, DepthwiseConv2d, DepthwiseConv3d
from .depthwise.separable import SeparableConv1d, SeparableConv2d
from .depthwise.separate import SpatiallySeparableConv2d
from .recurrent import autograd as _autograd  # noqa: F401
from .recurrent import fakes as _fakes  # noqa: F401
from .recurrent.cells import GRUCell, LSTMCell, RNNCell
from .recurrent.layers import GRU, LSTM, RNN

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "CausalConv1d",
    "DepthwiseConv1d",
    "DepthwiseConv2d",
    "DepthwiseConv3d",
    "GRUCell",
    "LSTMCell",
    "RNNCell",
    "Report",
    "SeparableConv1d",
    "SeparableConv2d",
    "SpatiallySeparableConv2d",
    "__version__",
    "convert",
    "diagnostics",
    "flops",
    "functional",
    "revert",
]


def __dir__() -> list[str]:
    return __all__
