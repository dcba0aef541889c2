"""Capture: a forward pass that ends at the place whose activations are wanted.

A forward hook hands them over and raises; what lies above never runs. The model is left as it was found, also
when something fails on the way.
"""

from __future__ import annotations

import inspect
import logging
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from saerl_fast.errors import InputError, ModelMismatchError
from saerl_fast.extract.batching import Batch
from saerl_fast.extract.hooks import Hook, find_module
from saerl_fast.extract.norms import without_weights

logger = logging.getLogger(__name__)


class _Captured(Exception):
    """Ends the forward pass; carries the activations out of it."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


def first_position(model: nn.Module) -> int:
    """The position id of a first token: 0, or past the padding row for RoBERTa-like position tables."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0


class Capture:
    """Runs batches through a model up to one hook point and returns what is read there.

    Use as a context manager; the hook exists only inside it::

        with Capture(model, block_output(14)) as capture:
            hidden = capture(batch)          # [B, T, D]

    The output of block L equals ``hidden_states[L + 1]`` of a full forward (before the final norm, where the last
    block is asked for). Raises ModelMismatchError where the model has no such place.
    """

    def __init__(self, model: nn.Module, hook: Hook) -> None:
        self.model = model
        self.hook = hook
        self._module, self._side = find_module(model, hook)
        self._normed = without_weights(self._module) if hook.point == "mlp_normed" else None
        self._accepted = set(inspect.signature(model.forward).parameters)
        self._handle: torch.utils.hooks.RemovableHandle | None = None
        self._training: list[nn.Module] = []

    def __enter__(self) -> Capture:
        self._training = [module for module in self.model.modules() if module.training]
        self.model.eval()
        if self._side == "input":
            self._handle = self._module.register_forward_pre_hook(_stop_before, with_kwargs=True)
        else:
            self._handle = self._module.register_forward_hook(_stop_after)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        for module in self._training:
            module.training = True

    def __call__(self, batch: Batch) -> Tensor:
        """What is read for a padded batch, [B, T, D]; positions of padding hold arbitrary finite values."""
        if self._handle is None:
            raise InputError("Capture: call it inside its `with` block")
        with torch.inference_mode():
            try:
                self.model(**self._inputs(batch))
            except _Captured as captured:
                return self._shaped(captured.hidden, batch)
        raise ModelMismatchError(f"{type(self.model).__name__}: the forward pass ended without reaching {self.hook}")

    def _shaped(self, hidden: Tensor, batch: Batch) -> Tensor:
        """[B, T, D] on the batch's device (a model spread over several has its blocks elsewhere)."""
        size = batch.input_ids.shape
        if hidden.numel() % size.numel() or hidden.shape[:-1].numel() != size.numel():
            raise ModelMismatchError(
                f"{self.hook} of {type(self.model).__name__} is not one row per token: it has the shape "
                f"{list(hidden.shape)} for {list(size)} tokens"
            )
        if self._normed is not None:
            hidden = self._normed(hidden)
        hidden = hidden.reshape(*size, -1).to(batch.input_ids.device)
        return hidden - hidden.mean(dim=-1, keepdim=True) if self.hook.centred else hidden

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        offered = {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "use_cache": False,
            "return_dict": True,
        }
        if batch.left_padded or batch.packing is not None:  # otherwise the model's own positions are right
            offered["position_ids"] = batch.position_ids + first_position(self.model)
        taken = {name: value for name, value in offered.items() if self._takes(name)}
        # the keyword that attention.py reads; a model that does not hand it on says so
        return taken if batch.packing is None else taken | {"packing": batch.packing}

    def _takes(self, name: str) -> bool:
        return name in self._accepted or (name in ("use_cache", "return_dict") and "kwargs" in self._accepted)


def _stop_after(module: nn.Module, inputs: Any, output: Any) -> None:
    raise _Captured(output[0] if isinstance(output, tuple) else output)


def _stop_before(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
    raise _Captured(inputs[0] if inputs else named["hidden_states"])
