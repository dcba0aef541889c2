"""Attention over texts that lie end to end in one row: each text attends to itself alone, and none is padded.

With texts t of bounds [a_t, b_t) in a row of T tokens:

    out[a_t:b_t] = softmax(scale * q[a_t:b_t] k[a_t:b_t]^T) v[a_t:b_t]

causal, within a window and with a softcap where the model says so.

A model is given this function under the name NAME, through the interface that transformers keeps for attention of
one's own (``AttentionInterface``): transformers then makes no mask, so that no [T, T] array exists and nothing waits
for the device. Which kernel runs is chosen in ``packing.py``.
"""

from __future__ import annotations

import inspect
import itertools
import math
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from saerl_fast.errors import ModelMismatchError
from saerl_fast.kernels import gpu, triton_runtime

NAME = "saerl_fast_packed"

UNKNOWN_TERMS = ("s_aux", "position_bias", "cache")
"""What some models add to attention, and no kernel here knows."""


@dataclass(frozen=True)
class Laid:
    """A batch as attention sees it: packed texts below, padded ones in padding.py."""

    ticket: Tensor = field(init=False, repr=False)
    """int64 [] on the CPU: what stands for this batch in a compiled graph, which is the same for every batch."""

    def __post_init__(self) -> None:
        number = next(_numbers)
        object.__setattr__(self, "ticket", torch.tensor(number))
        _by_number[number] = self

    def attend(self, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """query [B, H, T, d], key and value [B, G, T, d] with H a multiple of G -> [B, T, H, d]."""
        raise NotImplementedError


_numbers = itertools.count()
_by_number: weakref.WeakValueDictionary[int, Laid] = weakref.WeakValueDictionary()


@dataclass(frozen=True)
class Packing(Laid):
    """Where the texts of one packed row lie, and the kernel that attends within them.

    bounds int32 [B + 1] on the device, text t is tokens bounds[t] : bounds[t + 1]; text_of int32 [T] on the device,
    the text of each token; lengths, the same on the host.
    """

    kernel: str
    bounds: Tensor
    text_of: Tensor
    lengths: tuple[int, ...]
    windows: list[tuple[int | None, bool]] = field(default_factory=list)
    """The window of each layer that has run, and whether it is causal; what a model's self-check looks at."""
    masks: dict[tuple[bool, int | None], Any] = field(default_factory=dict)
    """FlexAttention's block masks, made once for a batch."""

    @property
    def longest(self) -> int:
        return max(self.lengths)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """[1, T, H, d], by the kernel of this batch."""
        self.windows.append((rule.window, rule.causal))
        # a window as long as the longest text is none
        window = rule.window if rule.window is not None and rule.window < self.longest else None
        return KERNELS[self.kernel].run(query, key, value, self, replace(rule, window=window))


@torch.library.custom_op("saerl_fast::attend_within_texts", mutates_args=())
def attend_op(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ticket: Tensor,
    scale: float,
    causal: bool,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """`Laid.attend` as one node of a graph, whatever the texts: a compiled block is made once for all batches."""
    return _by_number[int(ticket)].attend(query, key, value, Rule(scale, causal, window, softcap)).contiguous()


@attend_op.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ticket: Tensor,
    scale: float,
    causal: bool,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    return query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[3])


@dataclass(frozen=True)
class Rule:
    """How the tokens of a text attend: score = softcap(scale q k), over earlier tokens where causal, in a window."""

    scale: float
    causal: bool
    window: int | None
    """Keys at a distance below this count."""
    softcap: float | None


def attend_within_texts(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packing: Laid | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    dropout: float = 0.0,
    **rest: Any,
) -> tuple[Tensor, None]:
    """query [1, H, T, d], key and value [1, G, T, d] with H a multiple of G -> [1, T, H, d].

    Raises ModelMismatchError where the model asks for what the kernels do not do, or hands no packing on.
    """
    if packing is None:
        raise ModelMismatchError("the model does not hand keyword arguments on to its attention")
    if dropout:
        raise ModelMismatchError(f"attention with dropout {dropout}: packed texts are for inference")
    if strange := [name for name in UNKNOWN_TERMS if rest.get(name) is not None]:
        raise ModelMismatchError(f"attention with {strange[0]}, which no kernel for packed texts knows")
    rule = Rule(
        scale=query.shape[-1] ** -0.5 if scaling is None else float(scaling),
        causal=bool(getattr(module, "is_causal", True)) if is_causal is None else is_causal,
        window=sliding_window,
        softcap=softcap,
    )
    if torch.compiler.is_compiling():
        given = (packing.ticket, rule.scale, rule.causal, rule.window, rule.softcap)
        return attend_op(query, key, value, *given), None
    return packing.attend(query, key, value, rule), None


def text_by_text(query: Tensor, key: Tensor, value: Tensor, packing: Packing, rule: Rule) -> Tensor:
    """torch's scaled_dot_product_attention, once for each text."""
    made = []
    start = 0
    for length in packing.lengths:
        span = slice(start, start + length)
        q, k, v = query[:, :, span], key[:, :, span], value[:, :, span]
        if rule.softcap is None:
            seen = None if rule.window is None else _seen(length, rule, query.device)
            done = functional.scaled_dot_product_attention(
                q, k, v, attn_mask=seen, is_causal=rule.causal and seen is None, scale=rule.scale,
                enable_gqa=query.shape[1] != key.shape[1],
            )  # fmt: skip
        else:
            done = with_softcap(q, k, v, _seen(length, rule, query.device), rule)
        made.append(done.transpose(1, 2))
        start += length
    return torch.cat(made, dim=1)


def _seen(length: int, rule: Rule, device: torch.device) -> Tensor:
    """Which keys each query of one text sees: bool [length, length]."""
    place = torch.arange(length, device=device)
    return inside(place[:, None], place[None, :], rule)


def inside(query_at: Tensor, key_at: Tensor, rule: Rule) -> Tensor:
    distance = query_at - key_at
    seen = distance >= 0 if rule.causal else torch.ones_like(distance, dtype=torch.bool)
    return seen if rule.window is None else seen & (distance.abs() < rule.window)


def with_softcap(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, rule: Rule) -> Tensor:
    """softmax(c tanh(scale q k^T / c)) v, the softmax in float32."""
    groups = query.shape[1] // key.shape[1]
    scores = query @ key.repeat_interleave(groups, dim=1).transpose(-1, -2) * rule.scale
    if rule.softcap is not None:
        scores = rule.softcap * torch.tanh(scores / rule.softcap)
    weights = scores.masked_fill(~seen, -math.inf).softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    return weights @ value.repeat_interleave(groups, dim=1)


def _window_of(rule: Rule) -> tuple[int, int]:
    """(keys before, keys after) as flash attention counts them: -1 is all."""
    reach = -1 if rule.window is None else rule.window - 1
    return reach, 0 if rule.causal else reach


def flash_attn(query: Tensor, key: Tensor, value: Tensor, packing: Packing, rule: Rule) -> Tensor:
    """The variable-length kernel of the package flash-attn."""
    from flash_attn import flash_attn_varlen_func

    q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))
    done: Tensor = flash_attn_varlen_func(
        q, k, v, packing.bounds, packing.bounds, packing.longest, packing.longest,
        softmax_scale=rule.scale, causal=rule.causal, window_size=_window_of(rule), softcap=rule.softcap or 0.0,
    )  # fmt: skip
    return done[None]


def torch_varlen(query: Tensor, key: Tensor, value: Tensor, packing: Packing, rule: Rule) -> Tensor:
    """torch's own variable-length flash attention."""
    from torch.nn.attention.varlen import varlen_attn

    groups = query.shape[1] // key.shape[1]
    q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))
    if groups > 1:  # releases differ in whether and how they take fewer key heads than query heads
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    done = varlen_attn(
        q, k, v, packing.bounds, packing.bounds, packing.longest, packing.longest,
        scale=rule.scale, window_size=_window_of(rule),
    )  # fmt: skip
    return cast(Tensor, done)[None]


def flex(query: Tensor, key: Tensor, value: Tensor, packing: Packing, rule: Rule) -> Tensor:
    """FlexAttention with a mask of texts; compiled on CUDA."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    compiled = query.is_cuda
    tokens = query.shape[2]
    made = (rule.causal, rule.window)
    if made not in packing.masks:
        text_of = packing.text_of

        def same_text(batch: Tensor, head: Tensor, query_at: Tensor, key_at: Tensor) -> Tensor:
            return (text_of[query_at] == text_of[key_at]) & inside(query_at, key_at, rule)

        packing.masks[made] = create_block_mask(
            same_text, None, None, tokens, tokens, device=query.device, _compile=compiled
        )

    def capped(score: Tensor, batch: Tensor, head: Tensor, query_at: Tensor, key_at: Tensor) -> Tensor:
        return score if rule.softcap is None else rule.softcap * torch.tanh(score / rule.softcap)

    attend = _compiled_flex() if compiled else cast(Callable[..., Any], flex_attention)
    done: Tensor = attend(
        query, key, value, score_mod=None if rule.softcap is None else capped, block_mask=packing.masks[made],
        scale=rule.scale, enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip
    return done.transpose(1, 2)


_compiled: list[Callable[..., Any]] = []


def _compiled_flex() -> Callable[..., Any]:
    """flex_attention compiled for any number of tokens, once in a process."""
    if not _compiled:
        from torch.nn.attention.flex_attention import flex_attention

        _compiled.append(torch.compile(cast(Callable[..., Any], flex_attention), dynamic=True))
    return _compiled[0]


@dataclass(frozen=True)
class Kernel:
    """One way to attend within texts."""

    run: Callable[[Tensor, Tensor, Tensor, Packing, Rule], Tensor]
    missing: Callable[[torch.device, torch.dtype, bool], str | None]
    """Why it cannot run with this device and dtype, and with a softcap or without; None where it can."""


def _half_on_cuda(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cuda":
        return f"runs on CUDA, the model is on {device.type}"
    if reason := gpu.missing():
        return reason
    if dtype not in (torch.bfloat16, torch.float16):
        return f"takes bfloat16 and float16, the model is {str(dtype).removeprefix('torch.')}"
    return None


def _flash_attn_missing(device: torch.device, dtype: torch.dtype, softcap: bool) -> str | None:
    if reason := _half_on_cuda(device, dtype):
        return reason
    try:
        from flash_attn import flash_attn_varlen_func  # noqa: F401
    except (ImportError, OSError) as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == "flash_attn"
        # it was built for another torch, as a rule
        return "flash-attn is not installed" if absent else f"flash-attn cannot be imported: {error}"
    return None


def _varlen_missing(device: torch.device, dtype: torch.dtype, softcap: bool) -> str | None:
    if reason := _half_on_cuda(device, dtype):
        return reason
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return f"torch {torch.__version__} has no variable-length attention"
    if not {"scale", "window_size"} <= set(inspect.signature(varlen_attn).parameters):
        return f"the variable-length attention of torch {torch.__version__} takes no scale or no window"
    return "has no softcap, and the model has" if softcap else None


def _flex_missing(device: torch.device, dtype: torch.dtype, softcap: bool) -> str | None:
    if device.type != "cuda":
        return f"is compiled for CUDA, the model is on {device.type}"
    if reason := gpu.missing():
        return reason
    # torch brings a release that its own compiler goes with: how old it is does not matter here
    return None if triton_runtime.installed() else "triton is not installed, which compiles it"


KERNELS: Mapping[str, Kernel] = {
    "flash_attn": Kernel(flash_attn, _flash_attn_missing),
    "torch_varlen": Kernel(torch_varlen, _varlen_missing),
    "flex": Kernel(flex, _flex_missing),
    "text_by_text": Kernel(text_by_text, lambda *_: None),
}
"""In the order of preference."""
