from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

tiers: list[str]

def cells() -> list[dict[str, Any]]: ...
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
) -> Any: ...
def set_definition(
    definition: Callable[[str, list[Tensor], list[Tensor | None], list[bool]], list[Tensor | None]],
) -> None: ...
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
