"""What featurize was asked to do: the settings, checked, and the fingerprint of everything that changes a bit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import torch

from saerl_fast import __version__
from saerl_fast.errors import InputError
from saerl_fast.extract.arguments import ARGUMENTS, LongTexts, Pool
from saerl_fast.extract.compiling import CompileWish, Forward, choose_forward
from saerl_fast.extract.conversation import PoolOver
from saerl_fast.extract.loading import DeviceMap
from saerl_fast.extract.packing import Layout, Wish, choose_layout
from saerl_fast.extract.reader import Reader
from saerl_fast.extract.tokens import Text
from saerl_fast.kinds import check_arguments
from saerl_fast.ops.choice import wanted_backend
from saerl_fast.sae import SAE
from saerl_fast.sae.rules import encode_operation

SHARD_ROWS = 1024
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
        """Raise InputError for a stride that does not fit the windows."""
        if self.window_stride is None:
            return
        if self.long_texts != "window":
            raise InputError(f"window_stride goes with long_texts='window'; got long_texts={self.long_texts!r}")
        if not 1 <= self.window_stride <= limit:
            raise InputError(f"window_stride must be 1 to {limit}, the tokens of a window; got {self.window_stride}")


@dataclass(frozen=True)
class Request(Reading):
    """What featurize was asked, beside texts, model and SAE; its docstring has the meaning of each.

    Raises DtypeError or InputError, with the name, for a value that cannot be taken (``arguments.py`` has the table).
    """

    tokenizer: Any = None
    layer: int | None = None
    hook: str | None = None
    pool: Pool = "mean"
    max_length: int | None = None
    text_field: str | None = None
    completion_field: str | None = None
    keep_hidden: bool = False
    ids: Sequence[str | int] | None = None
    columns: Sequence[dict[str, Any]] | None = None
    source: dict[str, Any] | None = None
    tokens_per_batch: int | None = None
    shard_rows: int = SHARD_ROWS
    padding_side: Literal["right", "left"] = "right"
    packing: Wish = "auto"
    compile: CompileWish = "auto"
    device: torch.device | str | None = None
    device_map: DeviceMap | None = None
    dtype: torch.dtype | str | None = None
    on_nonfinite: Literal["raise", "mark"] = "raise"

    def __post_init__(self) -> None:
        for name, value in check_arguments(vars(self), ARGUMENTS).items():
            object.__setattr__(self, name, value)

    @property
    def reading(self) -> Reading:
        return Reading(**{field.name: getattr(self, field.name) for field in fields(Reading)})


@dataclass(frozen=True)
class Settings:
    """What featurize was asked to do, with all that model and SAE say to it."""

    pool: Pool
    limit: int
    reading: Reading
    keep_hidden: bool
    tokens_per_batch: int
    padding_side: str
    on_nonfinite: str
    layout: Layout
    forward: Forward


def settle(request: Request, reader: Reader, sae: SAE) -> Settings:
    """The settings of a run; raises InputError for what does not fit this model and SAE."""
    limits = [limit for limit in (reader.max_positions, sae.context_size, request.max_length) if limit]
    limit = min(limits, default=2**31 - 1)
    request.check(limit)
    layout = choose_layout(reader, request.packing, limit)
    usual = TOKENS_PER_BATCH[reader.device.type if reader.device.type == "cuda" else "cpu"]
    return Settings(
        pool=request.pool,
        limit=limit,
        reading=request.reading,
        keep_hidden=request.keep_hidden,
        tokens_per_batch=request.tokens_per_batch or usual,
        padding_side=request.padding_side,
        on_nonfinite=request.on_nonfinite,
        layout=layout,
        forward=choose_forward(reader, layout, request.compile),
    )


def name_contents(
    sae: SAE, texts: Sequence[Text], ids: Sequence[str | int], columns: bytes | None
) -> dict[str, str | int | None]:
    """What is read and by which SAE, as a fingerprint has it: hashes and names; and the backends that were asked for.

    Left open, a backend has no key: which one runs depends on the machine, and folders may go on elsewhere.
    """
    named = {
        "sae": sae.weights_hash(),
        "sae_kind": sae.kind,
        "sae_k": sae.k,
        "sae_model": sae.model_name,
        "sae_hook": sae.hook_name,
        "texts": hash_each(texts),
        "ids": hash_each(ids),
    }
    wishes = {f"{op}_backend": wanted_backend(op) for op in (encode_operation(sae), "segment_pool")}
    named |= {key: name for key, name in wishes.items() if name is not None}
    return named if columns is None else named | {"columns": hashlib.sha256(columns).hexdigest()}


def job_fingerprint(reader: Reader, settings: Settings, contents: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that changes a bit of the result. contents: ``name_contents``."""
    return {
        **reader.fingerprint(),
        "layer": reader.hook.layer,
        "hook": str(reader.hook),
        "pool": settings.pool,
        "max_tokens": settings.limit,
        **asdict(settings.reading),
        "keep_hidden": settings.keep_hidden,
        "tokens_per_batch": settings.tokens_per_batch,
        "padding_side": settings.padding_side,
        "layout": settings.layout.name,
        "forward": settings.forward.name,
        "on_nonfinite": settings.on_nonfinite,
        "torch": torch.__version__,
        "saerl_fast": __version__,
        **contents,
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
