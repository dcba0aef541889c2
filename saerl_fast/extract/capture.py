"""The hook: a forward pass that ends at the layer whose output is wanted.

The hook hands the block's output over and raises; the blocks above never run. The model is left as it
was found, also when something fails on the way.
"""

from __future__ import annotations

import inspect
import logging
import re
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from saerl_fast.errors import InputError, ModelMismatchError
from saerl_fast.extract.batching import Batch

logger = logging.getLogger(__name__)

_BLOCK_IN_HOOK = re.compile(r"(?:^|\.)(?:blocks|layers|layer|h|block)\.(\d+)(?:\.hook_resid_post|\.output)?$")


class _Captured(Exception):
    """Ends the forward pass; carries the activations out of it."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


def layer_of_hook(hook_name: str) -> int:
    """Block number of a hook on the residual stream after a block.

    Understands sae-lens names (``blocks.14.hook_resid_post``) and Hugging Face module paths
    (``model.layers.14``, ``encoder.layer.3``, ``transformer.h.5``).
    """
    match = _BLOCK_IN_HOOK.search(hook_name)
    if match is None:
        raise InputError(
            f"hook {hook_name!r} is not the output of a block (such as blocks.L.hook_resid_post or model.layers.L); "
            "only residual-stream hooks are supported. Pass layer=L to choose the block yourself."
        )
    return int(match.group(1))


def find_blocks(model: nn.Module) -> nn.ModuleList:
    """The list of transformer blocks of a Hugging Face model: the module list as long as its config says."""
    config = text_config(model.config)
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    blocks = [(name, module) for name, module in lists if len(module) == config.num_hidden_layers]
    if not blocks:
        raise ModelMismatchError(
            f"{type(model).__name__}: no list of {config.num_hidden_layers} blocks found among "
            f"{[(name, len(module)) for name, module in lists]}"
        )
    return min(blocks, key=lambda found: found[0].count("."))[1]


def text_config(config: Any) -> Any:
    """The part of a config that describes the text model (multimodal configs nest it)."""
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def first_position(model: nn.Module) -> int:
    """The position id of a first token: 0, or past the padding row for RoBERTa-like position tables."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0


class Capture:
    """Runs batches through a model up to one block and returns that block's output.

    Use as a context manager; the hook exists only inside it::

        with Capture(model, layer=14) as capture:
            hidden = capture(batch)          # [B, T, D]

    layer counts blocks from 0; the result equals ``hidden_states[layer + 1]`` of a full forward (before
    the final norm, where the last block is asked for).
    """

    def __init__(self, model: nn.Module, layer: int) -> None:
        blocks = find_blocks(model)
        if not 0 <= layer < len(blocks):
            raise ModelMismatchError(
                f"layer {layer} is out of range: {type(model).__name__} has blocks 0 to {len(blocks) - 1}"
            )
        self.model = model
        self._block = blocks[layer]
        self._accepted = set(inspect.signature(model.forward).parameters)
        self._handle: torch.utils.hooks.RemovableHandle | None = None
        self._training: list[nn.Module] = []

    def __enter__(self) -> Capture:
        self._training = [module for module in self.model.modules() if module.training]
        self.model.eval()
        self._handle = self._block.register_forward_hook(_stop)
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
        """The block's output [B, T, D] for a padded batch; positions of padding hold arbitrary finite values."""
        if self._handle is None:
            raise InputError("Capture: call it inside its `with` block")
        with torch.inference_mode():
            try:
                self.model(**self._inputs(batch))
            except _Captured as captured:
                return captured.hidden
        raise ModelMismatchError(
            f"{type(self.model).__name__}: the forward pass ended without reaching block {self._block}"
        )

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        offered = {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "use_cache": False,
            "return_dict": True,
        }
        if batch.left_padded:  # otherwise the model's own positions are right
            offered["position_ids"] = batch.position_ids + first_position(self.model)
        return {name: value for name, value in offered.items() if self._takes(name)}

    def _takes(self, name: str) -> bool:
        return name in self._accepted or (name in ("use_cache", "return_dict") and "kwargs" in self._accepted)


def _stop(module: nn.Module, inputs: Any, output: Any) -> None:
    raise _Captured(output[0] if isinstance(output, tuple) else output)
