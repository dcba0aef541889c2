"""What is trained, and for how long."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from saerl_fast.errors import InputError

Kind = Literal["topk", "batchtopk"]
KINDS = ("topk", "batchtopk")


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
        if self.kind not in KINDS:
            raise InputError(f"kind must be one of {KINDS}; got {self.kind!r}")
        for name in ("k", "width", "tokens", "batch_rows"):
            found = getattr(self, name)
            if type(found) is not int or found < 1:
                raise InputError(f"{name}: wanted a whole number from 1 up; got {found!r}")
        if self.k > self.width:
            raise InputError(f"k = {self.k} latents cannot be active of width = {self.width}; lower k or raise width")
        if self.tokens < self.batch_rows:
            raise InputError(
                f"tokens = {self.tokens} are too few for one step of batch_rows = {self.batch_rows}; raise tokens"
            )
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise InputError(f"lr: wanted a number above 0; got {self.lr!r}")

    @property
    def steps(self) -> int:
        return self.tokens // self.batch_rows
