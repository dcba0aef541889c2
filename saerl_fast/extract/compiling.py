"""Blocks compiled by torch.compile, one graph for all of them, or as they are: chosen with a reason.

What is compiled is the ``forward`` of each block below the hook, whole (no graph break), for any number of texts and
tokens; a block with the hook inside stays as it is. Hooks on a block lie outside of its forward, and fire as ever.
Compiling changes bits, so the choice is part of a job.

The graphs are made on small texts before the first batch: what a compiler reads off sizes it then reads off the same
ones in every process, and a shard computed anywhere has the same bits. A model is refused, with the reason, where its
blocks cannot be traced, differ from themselves by more than rounding, or would be compiled anew for other lengths.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from saerl_fast.errors import InputError
from saerl_fast.extract.batching import Batch
from saerl_fast.extract.capture import Capture
from saerl_fast.extract.hooks import Hook, find_blocks
from saerl_fast.extract.packing import Layout, distance, rounding_of
from saerl_fast.extract.reader import Reader
from saerl_fast.extract.tokens import TokenizedText

logger = logging.getLogger(__name__)

CompileWish = Literal["auto", "on", "off"]
COMPILE_WISHES: tuple[CompileWish, ...] = ("auto", "on", "off")

PAYS: tuple[str, ...] = ()
"""Devices where "auto" compiles: those where a results file shows that it is faster. None so far."""
BACKEND = "inductor"
GRAPHS = 64
"""The most graphs of one block's code before torch gives up; a model needs about three (one text, several, none)."""
WARM_UP = ((5, 3, 9), (7,), (6, 6), (4, 2, 8, 7))
"""Lengths of the texts of each batch that the graphs are made on; the last one has to find them all made."""
WHOLE_BLOCK = ("resid_pre", "resid_post", "embed")

# what tracing, lowering and the compilers behind it raise
_FAILURES = (RuntimeError, TypeError, ValueError, KeyError, AttributeError, IndexError, ImportError, OSError)


@dataclass(frozen=True)
class Forward:
    """How the blocks run: backend is None where they run as they are; reason says why, for people."""

    backend: str | None
    reason: str
    asked: bool = False
    """Whether compiling was wished for, or would have been taken: the reason is then kept beside the rows."""

    @property
    def name(self) -> str:
        """What goes into a fingerprint: compiling changes bits."""
        return "eager" if self.backend is None else f"compiled, {self.backend}"

    @contextmanager
    def on(self, reader: Reader) -> Iterator[None]:
        """Inside the block the model's blocks run as chosen; afterwards as before."""
        if self.backend is None:
            yield
            return
        import torch._dynamo.config

        blocks = _blocks_to_compile(reader.model, reader.hook)
        with torch._dynamo.config.patch(recompile_limit=GRAPHS):
            try:
                for block in blocks:
                    block.forward = _compiled(block, self.backend)
                yield
            finally:
                for block in blocks:
                    block.__dict__.pop("forward", None)


def choose_forward(reader: Reader, layout: Layout, wish: CompileWish) -> Forward:
    """Compiled blocks or not; one line of log says why. InputError where they were asked for and cannot be had."""
    if wish not in COMPILE_WISHES:
        raise InputError(f"compile must be one of {COMPILE_WISHES}; got {wish!r}")
    device = reader.device.type
    if wish == "off":
        forward = Forward(None, "compile='off'")
    elif wish == "auto" and device not in PAYS:
        forward = Forward(None, f"no measurement shows that compiling pays on {device}; compile='on' asks for it")
    elif (reason := _refusal(reader, layout)) is None:
        forward = Forward(BACKEND, "the blocks passed their self-check", asked=True)
    elif wish == "on":
        raise InputError(f"compile='on', but the blocks cannot be compiled: {reason}. Leave compile='auto'")
    else:
        forward = Forward(None, reason, asked=True)
    level = logging.WARNING if forward.asked and forward.backend is None else logging.INFO
    logger.log(level, "%s: blocks are %s (%s)", reader.name, forward.name, forward.reason)
    return forward


def _blocks_to_compile(model: nn.Module, hook: Hook) -> list[nn.Module]:
    """The blocks that run, but for one with the hook inside: the pass ends in the middle of it."""
    if hook.point == "embed" or (hook.point == "resid_pre" and hook.layer == 0):
        return []
    blocks = list(find_blocks(model))
    return blocks[: hook.layer + (hook.point in WHOLE_BLOCK)]


_made: weakref.WeakKeyDictionary[nn.Module, dict[str, Any]] = weakref.WeakKeyDictionary()
_checked: weakref.WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], str | None]] = weakref.WeakKeyDictionary()


def _compiled(block: nn.Module, backend: str) -> Any:
    """The block's forward, compiled; one callable per block for as long as it lives."""
    made = _made.setdefault(block, {})
    if backend not in made:
        kind, itself = type(block).forward, weakref.ref(block)

        def forward(*args: Any, **kwargs: Any) -> Any:
            return kind(itself(), *args, **kwargs)

        made[backend] = torch.compile(forward, backend=backend, dynamic=True, fullgraph=True)
    return made[backend]


def _refusal(reader: Reader, layout: Layout) -> str | None:
    """Why the blocks cannot be compiled, or None; found out once for a model, a place and a layout."""
    known = _checked.setdefault(reader.model, {})
    question = (BACKEND, str(reader.hook), layout.name, reader.device, next(reader.model.parameters()).dtype)
    if question not in known:
        known[question] = _missing(reader) or _check(reader, layout)
    return known[question]


def _missing(reader: Reader) -> str | None:
    blocks = _blocks_to_compile(reader.model, reader.hook)
    if not blocks:
        return f"no whole block runs before {reader.hook}"
    if reader.device.type == "cuda" and BACKEND == "inductor" and find_spec("triton") is None:
        return "triton is not installed, which compiles for CUDA"
    if any("forward" in block.__dict__ for block in blocks):
        return "the forward of its blocks is replaced (a device_map does that)"
    if any(_has_hooks(module) for block in blocks for module in block.modules() if module is not block):
        return "there are hooks inside of its blocks, which a compiled block need not run"
    return None


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _check(reader: Reader, layout: Layout) -> str | None:
    """Small texts, compiled and not."""
    batches = [_batch(reader, layout, lengths) for lengths in WARM_UP]
    try:
        with Capture(reader.model, reader.hook) as capture, layout.on(reader.model):
            plain = [capture(batch) for batch in batches]
            with Forward(BACKEND, "").on(reader):
                found = [capture(batch) for batch in batches[:-1]]
                before = _graphs()
                found.append(capture(batches[-1]))
                if _graphs() != before:
                    return "they would be compiled anew for texts of other lengths"
    except _FAILURES as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    allowed = rounding_of(reader.model)
    worst = max(_worst(got, wanted, batch) for got, wanted, batch in zip(found, plain, batches, strict=True))
    return None if worst <= allowed else f"compiled, activations differ by {worst:.2g} of their size"


def _batch(reader: Reader, layout: Layout, lengths: tuple[int, ...]) -> Batch:
    rng = np.random.default_rng(0)
    tokens = reader.model.get_input_embeddings().num_embeddings
    limit = reader.max_positions or max(lengths)
    texts = [
        TokenizedText(rng.integers(tokens, size=min(n, limit)), np.ones(min(n, limit), dtype=bool), "ok")
        for n in lengths
    ]
    return layout.collate(texts, reader.pad_id, "right", reader.device)


def _worst(found: Tensor, wanted: Tensor, batch: Batch) -> float:
    """The largest relative difference of a token that counts; infinite where one is not finite."""
    rows = [part.flatten(0, 1).index_select(0, batch.kept) for part in (found, wanted)]
    off = distance(*rows)
    return off if off == off else float("inf")


def _graphs() -> int:
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])
