from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, dtype

tiers: list[str]

def cells() -> list[dict[str, Any]]: ...
def checksum(tensors: list[Tensor]) -> int: ...
def isa() -> str: ...
def fma_gflops(threads: int, seconds: float) -> float: ...
def bf16_gflops(threads: int, seconds: float) -> float: ...
def read_gbytes(bytes: int, threads: int, seconds: float) -> float: ...
def eager(
    cell: int,
    parameters: Mapping[str, Tensor | None],
    names: Sequence[str],
    input: Any,
    hx: Any,
    directions: int,
    batch_first: bool,
    step: bool,
    options: tuple[Any, ...] | None,
) -> Any: ...
def options() -> list[tuple[str, str, Any, str]]: ...
def prefers_cudnn(
    cell: int,
    directions: int,
    x: Tensor,
    hx: Sequence[Tensor],
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    dtype: dtype,
) -> bool: ...
def set_batched_grad_fallback(callable: Callable[..., list[Tensor | None]]) -> None: ...
def cuda_plan(
    *,
    gates: int,
    pre_activations: int,
    hidden_size: int,
    sequences: int,
    steps: int,
    directions: int,
    layers: int = ...,
    input_size: int = ...,
    dtype: str,
    backward: bool,
    training: bool = ...,
    cudnn: bool = ...,
    tier: str = ...,
    multiprocessors: int = ...,
    shared_bytes: int = ...,
    clusters_of_8: int = ...,
    clusters_of_16: int = ...,
) -> dict[str, Any]: ...
