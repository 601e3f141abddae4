"""adl_kernels: torch.nn's recurrent layers and depthwise convolutions, faster, same numbers.

Put ``adl_kernels.LSTM`` where ``nn.LSTM`` stood, or call ``adl_kernels.convert(model)``.
"""

import torch

from . import _build_check

_build_check.check(torch.__version__, torch.version.cuda)

from . import _C as _C  # noqa: E402 (registers the ops; the check above comes first)
from . import _autograd as _autograd  # noqa: E402
from . import _conv_fake as _conv_fake  # noqa: E402
from . import _fake as _fake  # noqa: E402
from . import diagnostics, functional  # noqa: E402
from ._build_info import VERSION as __version__  # noqa: E402
from .cell_modules import GRUCell, LSTMCell, RNNCell  # noqa: E402
from .conv_modules import CausalConv1d, DepthwiseConv1d, DepthwiseConv2d, DepthwiseConv3d  # noqa: E402
from .convert import Report, convert, revert  # noqa: E402
from .modules import GRU, LSTM, RNN  # noqa: E402
from .separable import SeparableConv1d, SeparableConv2d  # noqa: E402
from .separate import SpatiallySeparableConv2d  # noqa: E402

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
    "functional",
    "revert",
]
