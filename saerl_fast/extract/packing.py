"""Padded or packed: how the texts of a batch lie before the model, chosen by a pure function that gives its reasons.

Packed texts need a kernel that attends within them (attention.py) and a model that lets it, with positions of their
own for each text. Neither is taken on trust: a model's first use runs a few tiny texts, and packing is refused where
a text sees its neighbours, or differs from the same text alone.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from saerl_fast.errors import InputError, SaerlError
from saerl_fast.extract import attention
from saerl_fast.extract.batching import Batch, collate, group_by_length, lay_end_to_end, pack_by_budget
from saerl_fast.extract.capture import Capture
from saerl_fast.extract.hooks import text_config
from saerl_fast.extract.reader import Reader
from saerl_fast.extract.tokens import TokenizedText

logger = logging.getLogger(__name__)

Wish = Literal["auto", "on", "off"]
WISHES: tuple[Wish, ...] = ("auto", "on", "off")

PADDED = "padded"
OWN_MASKS = "padded, own masks"
"""In place of a kernel: texts are padded, and attention asks the device nothing (padding.py)."""
CHECK_LENGTHS = (5, 1, 9, 4)
"""Texts of the self-check; one longer than a window is added where the model has a short one."""
SHORT_WINDOW = 64
LIKE_PADDING = 4.0
"""A packed text may differ from the text alone by this many times what a padded one does, or by ROUNDING."""
ROUNDING = {torch.float64: 2.0**-44, torch.float32: 2.0**-15}
HALF_ROUNDING = 2.0**-4

# what a model that cannot take packed texts may raise on the way to saying so
_FAILURES = (SaerlError, TypeError, ValueError, RuntimeError, KeyError, AttributeError, IndexError, ImportError)


@dataclass(frozen=True)
class Layout:
    """How batches are laid out: kernel is None for padded ones; reason says why, for people."""

    kernel: str | None
    reason: str

    @property
    def name(self) -> str:
        """What goes into a fingerprint: the layout changes bits."""
        if self.kernel == OWN_MASKS:
            return OWN_MASKS
        return PADDED if self.kernel is None else f"packed, {self.kernel}"

    @property
    def packed(self) -> bool:
        return self.kernel not in (None, OWN_MASKS)

    def group(self, lengths: Sequence[int], token_budget: int) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
        """Row numbers of each batch."""
        return (pack_by_budget if self.packed else group_by_length)(lengths, token_budget)

    def collate(self, texts: Sequence[TokenizedText], pad_id: int, padding_side: str, device: torch.device) -> Batch:
        """One batch on the device."""
        if self.kernel is None or self.kernel == OWN_MASKS:
            return collate(texts, pad_id, padding_side, device, own_masks=self.kernel == OWN_MASKS)
        return lay_end_to_end(texts, self.kernel, device)

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """Inside the block the model attends as this layout wants; afterwards as before."""
        if self.kernel is None:
            yield
            return
        with _attending_within_texts(model):
            yield


def choose(
    wish: Wish, device: str, missing: Mapping[str, str | None], check: Callable[[str], str | None]
) -> tuple[str | None, str]:
    """The kernel for packed texts, or None for padding; and the reason.

    missing: why each kernel of attention.KERNELS cannot run here, or None. check: why the model cannot take packed
    texts with a kernel, or None; asked only about a kernel that would be chosen. Raises InputError where packing
    was asked for and cannot be had.
    """
    if wish == "off":
        return None, "packing='off'"
    if wish == "auto" and device == "cpu":
        return None, "on a CPU texts are sorted by length, and little is padded; packing='on' helps small shards"
    passed: list[str] = []
    for kernel, reason in missing.items():
        if wish == "auto" and kernel == "text_by_text":
            reason = "a call per text and layer: only where packing='on'"
        reason = reason or check(kernel)
        if reason is None:
            return kernel, "; ".join([*passed, f"{kernel} runs, and the model passed its self-check"])
        passed.append(f"{kernel}: {reason}")
    if wish == "on":
        raise InputError(f"packing='on', but these texts cannot be packed. {'; '.join(passed)}. Leave packing='auto'")
    return None, "; ".join(passed)


def choose_layout(reader: Reader, wish: Wish, limit: int) -> Layout:
    """The layout for a reader whose texts have at most ``limit`` tokens; one line of log says why."""
    if wish not in WISHES:
        raise InputError(f"packing must be one of {WISHES}; got {wish!r}")
    parameter = next(reader.model.parameters())
    softcap = getattr(text_config(reader.model.config), "attn_logit_softcapping", None) is not None
    missing = {
        name: kernel.missing(parameter.device, parameter.dtype, softcap) for name, kernel in attention.KERNELS.items()
    }
    kernel, reason = choose(wish, parameter.device.type, missing, lambda name: _refusal(reader, name, limit))
    if kernel is None and parameter.device.type == "cuda":
        refusal = _refusal(reader, OWN_MASKS, limit)
        kernel = OWN_MASKS if refusal is None else None
        reason += "; " + ("no batch waits for its masks" if refusal is None else f"transformers' masks wait: {refusal}")
    layout = Layout(kernel, reason)
    logger.info("%s: batches are %s (%s)", reader.name, layout.name, reason)
    return layout


_checked: weakref.WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], str | None]] = weakref.WeakKeyDictionary()


def _refusal(reader: Reader, kernel: str, limit: int) -> str | None:
    """Why the model cannot take packed texts with this kernel, or None; found out once for a model and layer."""
    known = _checked.setdefault(reader.model, {})
    question = (kernel, str(reader.hook), reader.device, next(reader.model.parameters()).dtype, limit)
    if question not in known:
        known[question] = _cannot_switch(reader.model) or _check(reader, kernel, limit)
    return known[question]


def _cannot_switch(model: nn.Module) -> str | None:
    can = getattr(model, "_can_set_attn_implementation", None)
    if can is None or not can():
        return f"{type(model).__name__} does not attend through transformers' AttentionInterface"
    types = getattr(text_config(model.config), "layer_types", None) or ()
    strange = sorted(set(types) - {"full_attention", "sliding_attention"})
    return f"{type(model).__name__} has layers of type {', '.join(strange)}" if strange else None


def _check(reader: Reader, kernel: str, limit: int) -> str | None:
    """Tiny texts, packed and alone."""
    try:
        with Capture(reader.model, reader.hook) as capture:
            return _compare(reader, kernel, capture, limit)
    except _FAILURES as error:
        return f"the self-check failed with {type(error).__name__}: {error}"


def _compare(reader: Reader, kernel: str, capture: Capture, limit: int) -> str | None:
    device = reader.device
    rounding = rounding_of(reader.model)
    # experts are given the tokens of all texts at once, so that rounding depends on the neighbours
    apart = rounding if _has_experts(reader.model) else 0.0
    texts, others = _check_texts(reader, limit), _check_texts(reader, limit, seed=1)
    alone = [capture(collate([text], reader.pad_id, "right", device))[0] for text in texts]
    together = capture(collate(texts, reader.pad_id, "right", device))
    padded = [row[: len(text)] for row, text in zip(together, texts, strict=True)]
    with _attending_within_texts(reader.model):
        layout = Layout(kernel, "")
        batch = layout.collate(texts, reader.pad_id, "right", device)
        packed = _split(capture(batch), texts)
        for kept in (0, 1):  # every other text stays, its neighbours change
            mixed = [text if row % 2 == kept else others[row] for row, text in enumerate(texts)]
            again = _split(capture(layout.collate(mixed, reader.pad_id, "right", device)), texts)
            for row in range(kept, len(texts), 2):
                if not packed[row].isfinite().all():
                    return "activations are not finite"
                if not torch.equal(packed[row], again[row]) and distance(again[row], packed[row]) > apart:
                    return "a text sees its neighbours"
    if reason := _wrong_windows(reader, batch, limit):
        return reason
    for row, text in enumerate(texts):
        error, allowed = distance(packed[row], alone[row]), LIKE_PADDING * distance(padded[row], alone[row])
        if not error <= max(allowed, rounding):
            return f"a text of {len(text)} tokens differs from itself alone by {error:.2g} of its size"
    return None


def _split(hidden: Tensor, texts: Sequence[TokenizedText]) -> tuple[Tensor, ...]:
    """The activations [tokens, D] of each text, packed or padded on the right."""
    if len(hidden) > 1:
        return tuple(row[: len(text)] for row, text in zip(hidden, texts, strict=True))
    return torch.split(hidden[0], [len(text) for text in texts])


def _has_experts(model: nn.Module) -> bool:
    return any(name.rpartition(".")[2] == "experts" for name, _ in model.named_modules())


def rounding_of(model: nn.Module) -> float:
    """By how much of its size a token may differ where the same thing is computed another way."""
    return ROUNDING.get(next(model.parameters()).dtype, HALF_ROUNDING)


def distance(found: Tensor, wanted: Tensor) -> float:
    """The largest relative difference of a token: norms token by token, for one token can outweigh all others."""
    error = torch.linalg.vector_norm((found - wanted).double(), dim=-1)
    return float((error / torch.linalg.vector_norm(wanted.double(), dim=-1).clamp(min=1e-300)).max())


def _check_texts(reader: Reader, limit: int, seed: int = 0) -> list[TokenizedText]:
    """Texts of random tokens, cut to the limit."""
    config = text_config(reader.model.config)
    window = getattr(config, "sliding_window", None)
    lengths = [*CHECK_LENGTHS, window + 5] if window and window <= SHORT_WINDOW else list(CHECK_LENGTHS)
    rng = np.random.default_rng(seed)
    tokens = reader.model.get_input_embeddings().num_embeddings
    cut = [min(length, limit) for length in lengths]
    return [TokenizedText(rng.integers(tokens, size=n), np.ones(n, dtype=bool), "ok") for n in cut]


def _wrong_windows(reader: Reader, batch: Batch, limit: int) -> str | None:
    """Layers that do not hand on the window their config gives them, where texts are longer than it.

    A layer that looks both ways may hand on one more: its config then counts the keys at that distance in (ModernBERT),
    and what is handed on counts those below it.
    """
    config = text_config(reader.model.config)
    window = getattr(config, "sliding_window", None)
    if not window or window >= limit or batch.packing is None:
        return None
    types = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    seen = batch.packing.windows
    wanted = [window if kind == "sliding_attention" else None for kind in types[: len(seen)]]
    kept = [found if causal or found != window + 1 else window for found, causal in seen]
    handed = [found for found, _ in seen]
    return None if kept == wanted else f"layers attend within {wanted} tokens, and hand on {handed}"


@contextmanager
def _attending_within_texts(model: nn.Module) -> Iterator[None]:
    from transformers import AttentionInterface

    AttentionInterface.register(attention.NAME, attention.attend_within_texts)
    found = [module.config for module in model.modules() if hasattr(getattr(module, "config", None), "model_type")]
    configs = list({id(config): config for config in [text_config(model.config), *found]}.values())
    before = [config._attn_implementation for config in configs]
    try:
        for config in configs:
            config._attn_implementation = attention.NAME
        yield
    finally:
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation = name
