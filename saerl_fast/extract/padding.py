"""Attention over padded texts without the masks of transformers, which ask the device whether a batch is padded at all,
and wait for the answer.

    out = softmax(scale * q k^T) v over the keys that hold a token; causal, in a window, with a softcap

Causal attention over texts padded on the right needs no mask: no token sees what lies behind it. A place without a
token sees itself at least, so that nothing there becomes NaN.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional

from saerl_fast.extract.attention import Laid, Rule, inside, with_softcap


@dataclass(frozen=True)
class Padding(Laid):
    """Where the tokens of a padded batch lie: real bool [B, T] on the device, None where every place holds one."""

    real: Tensor | None
    left: bool
    windows: list[tuple[int | None, bool]] = field(default_factory=list)
    """The window of each layer that has run, and whether it is causal; what a model's self-check looks at."""
    masks: dict[tuple[bool, int | None], Tensor] = field(default_factory=dict)
    """Made once for a batch."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """query [B, H, T, d], key and value [B, G, T, d] -> [B, T, H, d]."""
        self.windows.append((rule.window, rule.causal))
        # a window as long as the batch is none
        window = rule.window if rule.window is not None and rule.window < query.shape[2] else None
        rule = replace(rule, window=window)
        if rule.softcap is not None:
            return with_softcap(query, key, value, self._all_seen(query, rule), rule).transpose(1, 2)
        seen = self._seen(query, rule)
        grouped = query.shape[1] != key.shape[1]
        if grouped and seen is not None:
            # with a mask and fewer key heads, CUDA has only its slowest kernel
            times = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(times, dim=1), value.repeat_interleave(times, dim=1)
        done = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=seen, is_causal=rule.causal and seen is None, scale=rule.scale,
            enable_gqa=grouped and seen is None,
        )  # fmt: skip
        return done.transpose(1, 2)

    def _seen(self, query: Tensor, rule: Rule) -> Tensor | None:
        """bool [B or 1, 1, T, T], or None where the kernel's own causal rule says it all."""
        if rule.window is None and (self.real is None or (rule.causal and not self.left)):
            return None
        return self._all_seen(query, rule)

    def _all_seen(self, query: Tensor, rule: Rule) -> Tensor:
        made = (rule.causal, rule.window)
        if made not in self.masks:
            place = torch.arange(query.shape[2], device=query.device)
            seen = inside(place[:, None], place[None, :], rule)[None, None]
            if self.real is not None and (self.left or not rule.causal):
                seen = (seen & self.real[:, None, None, :]) | (place[:, None] == place[None, :])
            self.masks[made] = seen
        return self.masks[made]
