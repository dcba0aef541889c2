"""A norm without its own weights: the value between normalising and scaling, which no module of a model holds."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from saerl_fast.errors import ModelMismatchError

_FAR_FROM_ONE = 0.05


def without_weights(norm: nn.Module) -> Callable[[Tensor], Tensor]:
    """What this norm makes of a row [..., D] before it multiplies by its gain and adds its bias.

    The module's own code runs, with its own epsilon and roundings, on neutral weights. The gain that changes nothing
    is 1 in most norms and 0 in Gemma's, which multiply by 1 + weight; which one it is, is found by trying, not by the
    name of the class. Hooks on the module do not run. Weights stay where they are.

    Raises ModelMismatchError for a module that is no norm: other weights than a gain and a bias, or rows of another
    size than 1 (root mean square) under neutral weights.
    """
    weights = {name: parameter.detach() for name, parameter in norm.named_parameters()}
    gain = weights.get("weight")
    if gain is None or gain.ndim != 1 or set(weights) - {"weight", "bias"}:
        raise ModelMismatchError(
            f"{type(norm).__name__} is no norm over rows: one with a gain [D], and at most a bias, was wanted; "
            f"it has {sorted(weights)}"
        )
    blank = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    bare = copy.copy(norm)
    # a dict of its own: until here the copy and the model share one
    bare.__dict__["_parameters"] = {**dict.fromkeys(norm._parameters), **blank}

    def run(x: Tensor) -> Tensor:
        found: Tensor = type(norm).forward(bare, x)
        return found

    with torch.no_grad():
        row = torch.linspace(-1, 2, len(gain), device=gain.device, dtype=gain.dtype)
        if not bool(run(row).any()):
            blank["weight"].fill_(1)
        size = float(run(row).float().square().mean().sqrt())
    if not abs(size - 1) < _FAR_FROM_ONE:
        raise ModelMismatchError(
            f"{type(norm).__name__} is no norm over rows: without its weights a row should have the root mean square "
            f"1, and it has {size:.3g}"
        )
    return run
