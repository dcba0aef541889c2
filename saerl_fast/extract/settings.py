"""What featurize was asked to do: the settings, checked, and the fingerprint of everything that changes a bit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from saerl_fast import __version__
from saerl_fast.errors import InputError
from saerl_fast.extract.conversation import PoolOver
from saerl_fast.extract.packing import Layout, Wish, choose_layout
from saerl_fast.extract.reader import Reader
from saerl_fast.extract.tokens import Text
from saerl_fast.sae import SAE

Pool = Literal["mean", "max", "sum", "last", "count"]
POOLS: tuple[Pool, ...] = ("mean", "max", "sum", "last", "count")
LongTexts = Literal["truncate", "window", "error"]
LONG_TEXTS: tuple[LongTexts, ...] = ("truncate", "window", "error")
POOL_OVER: tuple[PoolOver, ...] = ("all", "prompt", "completion", "last_user")
TOKENS_PER_BATCH = {"cpu": 1024, "cuda": 32768}
"""More than 1,024 make a forward on a CPU slower: what lies between its layers leaves the cache, or is so large that
malloc maps it anew for each layer; and fewer texts of one length fill a batch."""


@dataclass(frozen=True)
class Reading:
    """Which tokens of a text are pooled, and what becomes of a text longer than the limit."""

    include_special: bool = False
    pool_over: PoolOver = "all"
    skip_first: int = 0
    long_texts: LongTexts = "truncate"
    window_stride: int | None = None

    def check(self, limit: int) -> None:
        """Raise InputError for a setting that is out of range."""
        if self.pool_over not in POOL_OVER:
            raise InputError(f"pool_over must be one of {POOL_OVER}; got {self.pool_over!r}")
        if self.long_texts not in LONG_TEXTS:
            raise InputError(f"long_texts must be one of {LONG_TEXTS}; got {self.long_texts!r}")
        if self.skip_first < 0:
            raise InputError(f"skip_first must be 0 or more; got {self.skip_first}")
        if self.window_stride is None:
            return
        if self.long_texts != "window":
            raise InputError(f"window_stride goes with long_texts='window'; got long_texts={self.long_texts!r}")
        if not 1 <= self.window_stride <= limit:
            raise InputError(f"window_stride must be 1 to {limit}, the tokens of a window; got {self.window_stride}")


@dataclass(frozen=True)
class Settings:
    """What featurize was asked to do, checked."""

    pool: Pool
    limit: int
    reading: Reading
    keep_hidden: bool
    tokens_per_batch: int
    padding_side: str
    on_nonfinite: str
    layout: Layout


def check_settings(
    reader: Reader,
    sae: SAE,
    pool: Pool,
    max_length: int | None,
    reading: Reading,
    keep_hidden: bool,
    tokens_per_batch: int | None,
    padding_side: str,
    on_nonfinite: str,
    packing: Wish,
) -> Settings:
    """The settings of a run; raises InputError for one that is out of range."""
    if pool not in POOLS:
        raise InputError(f"pool must be one of {POOLS}; got {pool!r}")
    if padding_side not in ("left", "right"):
        raise InputError(f"padding_side must be left or right; got {padding_side!r}")
    if on_nonfinite not in ("raise", "mark"):
        raise InputError(f"on_nonfinite must be raise or mark; got {on_nonfinite!r}")
    if max_length is not None and max_length < 1:
        raise InputError(f"max_length must be at least 1; got {max_length}")
    if tokens_per_batch is not None and tokens_per_batch < 1:
        raise InputError(f"tokens_per_batch must be at least 1; got {tokens_per_batch}")
    limits = [limit for limit in (reader.max_positions, sae.context_size, max_length) if limit]
    limit = min(limits, default=2**31 - 1)
    reading.check(limit)
    return Settings(
        pool=pool,
        limit=limit,
        reading=reading,
        keep_hidden=keep_hidden,
        tokens_per_batch=tokens_per_batch
        or TOKENS_PER_BATCH[reader.device.type if reader.device.type == "cuda" else "cpu"],
        padding_side=padding_side,
        on_nonfinite=on_nonfinite,
        layout=choose_layout(reader, packing, limit),
    )


def job_fingerprint(
    reader: Reader, sae: SAE, settings: Settings, texts: Sequence[Text], ids: Sequence[str | int]
) -> dict[str, Any]:
    """Everything that changes a bit of the result."""
    return {
        **reader.fingerprint(),
        "layer": reader.hook.layer,
        "hook": str(reader.hook),
        "sae": sae.weights_hash(),
        "sae_kind": sae.kind,
        "sae_k": sae.k,
        "sae_model": sae.model_name,
        "sae_hook": sae.hook_name,
        "pool": settings.pool,
        "max_tokens": settings.limit,
        **asdict(settings.reading),
        "keep_hidden": settings.keep_hidden,
        "tokens_per_batch": settings.tokens_per_batch,
        "padding_side": settings.padding_side,
        "layout": settings.layout.name,
        "on_nonfinite": settings.on_nonfinite,
        "torch": torch.__version__,
        "saerl_fast": __version__,
        "texts": hash_each(texts),
        "ids": hash_each(ids),
    }


def hash_each(items: Sequence[Any]) -> str:
    digest = hashlib.sha256()
    for item in _plain(items):
        digest.update(item)
        digest.update(b"\n")
    return digest.hexdigest()


def _plain(items: Sequence[Any]) -> Iterator[bytes]:
    for item in items:
        yield json.dumps(item, ensure_ascii=True, default=str).encode()
