"""Finds depthwise-separable chains in a model, and runs each as one operator in eval.

A chain is dw -[BN]-[activation]- 1x1 -[BN]-[activation]-[+ x]. The module whose forward has all of
it is traced by torch.fx, and gets a class of its own that runs the traced graph with the chain as
one node. Its submodules stay where they are; in training its forward is as before.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from .fold import Chain, Folder, foldable, fusion_blocker, is_pointwise
from .layers import Depthwise, DepthwiseConv1d, DepthwiseConv2d
from .reference import ACTIVATIONS

MODULES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.Hardswish: "hardswish",
    nn.SiLU: "silu",
    nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh",
}
FUNCTIONS: dict[Any, str] = {
    **{getattr(F, name): name for name in ("relu", "relu6", "hardswish", "silu")},
    **{getattr(torch, name): name for name in ("relu", "sigmoid", "tanh")},
    torch.relu_: "relu",
    **{name: name.rstrip("_") for name in ("relu", "relu_", "sigmoid", "sigmoid_", "tanh")},
}
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
NOTHING_IN_EVAL = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d)
ADDITIONS = (operator.add, operator.iadd, torch.add)


class Found(NamedTuple):
    """A chain in a graph."""

    chain: Chain
    nodes: list[fx.Node]  # from the depthwise convolution to what the chain's result replaces
    residual: fx.Node | None
    text: str  # for the report


class _Runner(nn.Module):
    """A chain as a node of a graph; where it cannot be one operator, module by module."""

    chain: Any
    folder: Any

    def __init__(self, name: str, chain: Chain) -> None:
        super().__init__()
        # Hidden from nn.Module: they are registered where they were.
        self.__dict__["chain"], self.__dict__["folder"], self.name = chain, Folder(), name

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        chain = self.chain
        if fusion_blocker(chain, x) is None:
            fits = residual is None or (residual.shape == x.shape and self._keeps_shape())
            y = self.folder.run(self.name, chain, x, residual if fits else None)
            return y if fits else y + residual
        y = chain.depthwise(x)
        y = y if chain.dw_norm is None else chain.dw_norm(y)
        y = chain.pointwise(ACTIVATIONS[chain.dw_activation](y))
        y = ACTIVATIONS[chain.activation](y if chain.norm is None else chain.norm(y))
        return y if residual is None else y + residual

    def _keeps_shape(self) -> bool:
        """Whether the result is of the shape of x, as far as the modules tell."""
        dw, pw = self.chain.depthwise, self.chain.pointwise
        reach = [d * (k - 1) for d, k in zip(dw.dilation, dw.kernel_size, strict=True)]
        same = dw.padding == "same" or all(
            isinstance(p, int) and 2 * p == r for p, r in zip(dw.padding, reach, strict=False)
        )
        return same and max(dw.stride) == 1 and pw.out_channels == dw.in_channels


class _Tracer(fx.Tracer):
    """Looks into modules that are no layers themselves; `strict`: into nn.Sequential alone."""

    def __init__(self, strict: bool) -> None:
        super().__init__()
        self.strict = strict

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if self.strict or isinstance(m, (Depthwise, _BatchNorm, Fused)):
            return isinstance(m, Fused) or not isinstance(m, nn.Sequential)
        if isinstance(m, nn.Sequential):
            return False
        return m.__module__.startswith(("torch.nn", "adl_kernels"))


class Fused:
    """What a block with chains inherits from, before its own class."""

    _adl_base: type[nn.Module]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        run: Any = self
        if run.training or not run._adl_plan.holds():
            return self._adl_base.forward(run, *args, **kwargs)
        return run._adl_plan.graph(*args, **kwargs)

    def train(self, mode: bool = True) -> Any:
        run: Any = self
        for runner in run._adl_plan.graph.children():
            if isinstance(runner, _Runner):
                runner.folder.kept = None
        return self._adl_base.train(run, mode)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copies and pickles are fused anew."""
        state = {k: v for k, v in self.__dict__.items() if k != "_adl_plan"}
        return _restore, (self._adl_base, state)


@dataclass
class Plan:
    """The graph of a block, and what it was traced from."""

    graph: fx.GraphModule
    parents: list[tuple[nn.Module, str, nn.Module]]  # every submodule, and where it is
    found: list[Found]

    def holds(self) -> bool:
        """Whether no submodule was exchanged, and no hook wants to see one that is left out."""
        return all(
            parent._modules.get(name) is child
            and not (child._forward_hooks or child._forward_pre_hooks)
            for parent, name, child in self.parents
        )


def fuse(model: nn.Module) -> list[tuple[str, str, str]]:
    """Fuses every chain of `model` that is found; rows for the report: path, chain, what runs."""
    plans: dict[int, tuple[nn.Module, Plan]] = {}  # of the block that has a convolution, by its id
    before = {id(m) for b in model.modules() if isinstance(b, Fused) for m in b.modules()}
    for block in reversed(list(model.modules())):  # the innermost first
        inside = [m for m in block.modules() if is_depthwise(m) and id(m) not in before]
        if isinstance(block, Fused) or is_depthwise(block) or not inside:
            continue
        if all(_is_complete(m, plans) for m in inside):
            continue
        plan = plan_of(block)
        if plan is not None and _gains(plan, inside, plans):
            for found in plan.found:
                plans[id(found.chain.depthwise)] = block, plan
    blocks = {id(block): (block, plan) for block, plan in plans.values()}
    for block, plan in blocks.values():
        install(block, plan)
    names = {id(module): path for path, module in model.named_modules()}
    rows = [
        (names[id(f.chain.depthwise)], f.text) for _, plan in blocks.values() for f in plan.found
    ]
    return [(*row, "one separable_conv op in eval without gradients") for row in sorted(rows)]


def _is_complete(dw: nn.Module, plans: dict[int, tuple[nn.Module, Plan]]) -> bool:
    """Whether a chain with all that one can have was found."""
    return any(
        found.residual is not None
        for found in (plans[id(dw)][1].found if id(dw) in plans else ())
        if found.chain.depthwise is dw
    )


def _gains(plan: Plan, inside: list[nn.Module], plans: dict[int, tuple[nn.Module, Plan]]) -> bool:
    """Whether a plan has all chains of the plans inside its block, and more or longer ones."""
    before = {
        id(f.chain.depthwise): f.text
        for m in inside
        if id(m) in plans
        for f in plans[id(m)][1].found
    }
    now = {id(f.chain.depthwise): f.text for f in plan.found}
    return before.keys() <= now.keys() and any(
        len(text) > len(before.get(key, "")) for key, text in now.items()
    )


def plan_of(block: nn.Module) -> Plan | None:
    """None where there is no chain, or torch.fx cannot trace the block."""
    for strict in (False, True):
        try:
            with torch.no_grad():
                graph = _Tracer(strict).trace(block)
        except Exception:  # whatever the forward does to torch.fx's proxies
            continue
        found = chains(graph, block)
        if found:
            return Plan(_rewritten(block, graph, found), _places(block), found)
    return None


def _places(block: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    return [
        (parent, name, child)
        for parent in block.modules()
        for name, child in parent._modules.items()
        if child is not None
    ]


def install(block: nn.Module, plan: Plan) -> None:
    cls = type(block)
    block.__class__ = type(
        cls.__name__, (Fused, cls), {"_adl_base": cls, "__module__": cls.__module__}
    )
    object.__setattr__(block, "_adl_plan", plan)


def unfuse_block(block: Any) -> None:
    block.__class__ = block._adl_base
    block.__dict__.pop("_adl_plan", None)


def unfuse(model: nn.Module) -> list[str]:
    """Gives every block its forward back; their paths."""
    paths = [path for path, module in model.named_modules() if isinstance(module, Fused)]
    for path in paths:
        unfuse_block(model.get_submodule(path))
    return paths


def _restore(cls: type[nn.Module], state: dict[str, Any]) -> nn.Module:
    block = cls.__new__(cls)
    block.__dict__.update(state)
    plan = plan_of(block)
    if plan is not None:
        install(block, plan)
    return block


def is_depthwise(module: nn.Module) -> bool:
    kinds = (nn.Conv1d, nn.Conv2d, DepthwiseConv1d, DepthwiseConv2d)
    conv: Any = module
    return type(module) in kinds and conv.groups == conv.in_channels > 1


def chains(graph: fx.Graph, block: nn.Module) -> list[Found]:
    modules = dict(block.named_modules())
    found = []
    for node in graph.nodes:
        if node.op == "call_module" and is_depthwise(modules[node.target]):
            one = _chain(node, modules)
            if one is not None:
                found.append(one)
    return found


class _Walk:
    """Goes along nodes that have one user each."""

    def __init__(self, node: fx.Node, modules: dict[str, nn.Module]) -> None:
        self.nodes, self.modules = [node], modules
        self.skip()

    @property
    def node(self) -> fx.Node:
        return self.nodes[-1]

    def next(self) -> fx.Node | None:
        users = list(self.node.users)
        return users[0] if len(users) == 1 else None

    def module(self) -> Any:
        """Of the next node, if it is one and takes nothing but this node's result."""
        node = self.next()
        is_call = node is not None and node.op == "call_module"
        return self.modules[node.target] if is_call and len(node.args) == 1 else None  # type: ignore[union-attr,index]

    def go(self) -> None:
        self.step()
        self.skip()

    def step(self) -> None:
        node = self.next()
        assert node is not None
        self.nodes.append(node)

    def skip(self) -> None:
        while type(self.module()) in NOTHING_IN_EVAL:
            self.step()

    def norm(self) -> Any:
        module = self.module()
        if type(module) in NORMS and foldable(module):
            self.go()
            return module
        return None

    def activation(self) -> str:
        module, node = self.module(), self.next()
        name = MODULES.get(type(module), "none")
        if node is not None and node.op in ("call_function", "call_method"):
            plain = set(node.kwargs) <= {"inplace"} and len(node.args) == 1
            name = FUNCTIONS.get(node.target, "none") if plain else "none"
        if name != "none":
            self.go()
        return name

    def residual(self) -> fx.Node | None:
        node = self.next()
        if node is None or node.op != "call_function" or node.target not in ADDITIONS:
            return None
        others = [a for a in node.args if a is not self.node]
        if node.kwargs or len(node.args) != 2 or len(others) != 1:
            return None
        if not isinstance(others[0], fx.Node):
            return None
        self.step()
        return others[0]


def _chain(node: fx.Node, modules: dict[str, nn.Module]) -> Found | None:
    walk = _Walk(node, modules)
    dw: Any = modules[str(node.target)]
    own = getattr(dw, "activation", "none")
    dw_norm = walk.norm() if own == "none" else None
    dw_activation = walk.activation() if own == "none" else own
    pw = walk.module()
    is_conv = type(pw) in (nn.Conv1d, nn.Conv2d) and len(pw.kernel_size) == len(dw.kernel_size)
    if not is_conv or not is_pointwise(pw) or len(node.args) != 1:
        return None
    walk.go()
    norm, activation = walk.norm(), walk.activation()
    residual = walk.residual()
    chain = Chain(dw, dw_norm, dw_activation, pw, norm, activation)
    parts = ["depthwise", "batch norm" if dw_norm else "", dw_activation, "1x1"]
    parts += ["batch norm" if norm else "", activation, "addition" if residual else ""]
    text = " + ".join(part for part in parts if part not in ("", "none"))
    return Found(chain, walk.nodes, residual, text)


def _rewritten(block: nn.Module, graph: fx.Graph, found: list[Found]) -> fx.GraphModule:
    """The graph with one node for each chain."""
    targets: dict[str, Any] = {}
    for k, one in enumerate(found):
        name = f"adl_chain_{k}"
        targets[name] = _Runner("separable_conv", one.chain)
        more = () if one.residual is None else (one.residual,)
        with graph.inserting_after(one.nodes[-1]):
            new = graph.call_module(name, (one.nodes[0].args[0], *more))
        one.nodes[-1].replace_all_uses_with(new)
        for node in reversed(one.nodes):
            graph.erase_node(node)
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr") and node.target not in targets:
            targets[node.target] = operator.attrgetter(node.target)(block)
    return fx.GraphModule(targets, graph, type(block).__name__)
