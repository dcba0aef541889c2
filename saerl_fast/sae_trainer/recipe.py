"""What is trained, and for how long."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from saerl_fast.errors import InputError
from saerl_fast.extract.arguments import ARGUMENTS
from saerl_fast.kinds import Kind as ArgumentKind
from saerl_fast.kinds import instance, is_number, one_of, whole

Kind = Literal["topk", "batchtopk"]
KINDS: tuple[Kind, ...] = ("topk", "batchtopk")

SHARED = (
    *("model", "out", "tokenizer", "layer", "hook", "text_field", "skip_first", "tokens_per_batch", "device", "dtype"),
    *("source", "progress"),
)
TRAINING: Mapping[str, ArgumentKind] = {
    **{name: ARGUMENTS[name] for name in SHARED},
    **{name: whole(1) for name in ("tokens", "k", "batch_rows", "max_length", "checkpoint_every")},
    **{name: whole(1).or_none for name in ("width", "expansion", "buffer_rows")},
    "kind": one_of(KINDS),
    "lr": ArgumentKind("a number above 0", is_number, lambda value: math.isfinite(value) and value > 0, float),
    "seed": whole(0),
    "metadata": instance("a dict of notes", Mapping).or_none,
}
"""What each argument of train_sae may be, but for texts and held_out."""


@dataclass(frozen=True)
class Recipe:
    """Kind and size of an SAE, and the steps of its training; InputError for what cannot be trained.

    k: latents active on a token (topk), or on average over a batch (batchtopk). tokens: rows trained on; the steps are
    tokens // batch_rows. The learning rate rises over the first 5 % of the steps and falls to 0 over the last 20 %.
    """

    kind: Kind
    k: int
    width: int
    tokens: int
    batch_rows: int
    lr: float
    seed: int

    def __post_init__(self) -> None:
        if self.k > self.width:
            raise InputError(f"k = {self.k} latents cannot be active of width = {self.width}; lower k or raise width")
        if self.tokens < self.batch_rows:
            raise InputError(
                f"tokens = {self.tokens} are too few for one step of batch_rows = {self.batch_rows}; raise tokens"
            )

    @classmethod
    def of(cls, asked: Mapping[str, Any], width: int) -> Recipe:
        """From the arguments of train_sae, in their plain form."""
        return cls(width=width, **{name: asked[name] for name in ("kind", "k", "tokens", "batch_rows", "lr", "seed")})

    @property
    def steps(self) -> int:
        return self.tokens // self.batch_rows
