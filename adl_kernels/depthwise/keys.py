"""State dicts of separable convolutions by others, under the names of SeparableConv1d and 2d."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

State = dict[str, Any]

# timm, then mmcv.
NAMES = {
    "conv_dw.": "depthwise.",
    "bn1.": "dw_norm.",
    "conv_pw.": "pointwise.",
    "bn2.": "norm.",
    "bn.": "norm.",
    "depthwise_conv.conv.": "depthwise.",
    "depthwise_conv.bn.": "dw_norm.",
    "pointwise_conv.conv.": "pointwise.",
    "pointwise_conv.bn.": "norm.",
}
_NUMBERED = re.compile(r"((?:\d+\.)+)(\w+)")


def rename(state: State, prefix: str, has_bias: bool) -> None:
    """Changes what is below `prefix` in place; has_bias: whether depthwise.bias is a parameter."""
    own = {key[len(prefix) :]: key for key in state if key.startswith(prefix)}
    if any(key.startswith(("depthwise.", "pointwise.")) for key in own):
        return
    for name, key in own.items():
        for theirs, ours in NAMES.items():
            if name.startswith(theirs):
                state[prefix + ours + name.removeprefix(theirs)] = state.pop(key)
                break
    _numbered(state, prefix, own)
    _keras(state, prefix, own, has_bias)


def _numbered(state: State, prefix: str, own: dict[str, str]) -> None:
    """Of an nn.Sequential: the first weight of a convolution is the depthwise one's."""
    groups: dict[str, list[str]] = {}
    for name in own:
        match = _NUMBERED.fullmatch(name)
        if match:
            groups.setdefault(match[1], []).append(match[2])
    convs = 0
    for where in sorted(groups, key=lambda w: [int(k) for k in w.split(".")[:-1]]):
        weight = state.get(f"{prefix}{where}weight")
        is_conv = isinstance(weight, Tensor) and weight.dim() > 1
        convs += is_conv
        target = ("depthwise.", "pointwise.") if is_conv else ("dw_norm.", "norm.")
        if convs in (1, 2):
            for part in groups[where]:
                state[prefix + target[convs - 1] + part] = state.pop(f"{prefix}{where}{part}")


def _keras(state: State, prefix: str, own: dict[str, str], has_bias: bool) -> None:
    """Kernels [k.., C, M] and [1.., C M, N]; the one bias comes last."""
    if "depthwise_kernel" not in own or "pointwise_kernel" not in own:
        return
    dw, pw = state.pop(own["depthwise_kernel"]), state.pop(own["pointwise_kernel"])
    n = dw.dim() - 2
    weight = dw.permute(n, n + 1, *range(n)).reshape(-1, 1, *dw.shape[:n])
    state[f"{prefix}depthwise.weight"] = weight
    state[f"{prefix}pointwise.weight"] = pw.permute(n + 1, n, *range(n))
    if "bias" in own:
        state[f"{prefix}pointwise.bias"] = state.pop(own["bias"])
    if has_bias:
        state[f"{prefix}depthwise.bias"] = weight.new_zeros(weight.shape[0])
