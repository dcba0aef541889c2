"""What each argument of the public calls may be: one table, held against before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import nn

from saerl_fast.extract.compiling import COMPILE_WISHES
from saerl_fast.extract.conversation import PoolOver
from saerl_fast.extract.learning import Learner
from saerl_fast.extract.packing import WISHES
from saerl_fast.kinds import DEVICE, SWITCH, WORDS, Kind, floating, is_path, is_whole, one_of, whole
from saerl_fast.sae import SAE

Pool = Literal["mean", "max", "sum", "last", "count"]
POOLS: tuple[Pool, ...] = ("mean", "max", "sum", "last", "count")
LongTexts = Literal["truncate", "window", "error"]
LONG_TEXTS: tuple[LongTexts, ...] = ("truncate", "window", "error")
POOL_OVER: tuple[PoolOver, ...] = ("all", "prompt", "completion", "last_user")
AUTO = "auto"
"""The dtype of the checkpoint."""


def _is_model(value: Any) -> bool:
    if isinstance(value, nn.Module):
        return hasattr(value, "config") and hasattr(value, "get_input_embeddings")
    return is_path(value)


def _is_sae(value: Any) -> bool:
    by_sae_lens = any(base.__module__.partition(".")[0] == "sae_lens" for base in type(value).__mro__)
    return isinstance(value, SAE) or is_path(value) or (by_sae_lens and isinstance(value, nn.Module))


def _is_share(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2 and all(map(is_whole, value))


def _is_learner(value: Any) -> bool:
    return isinstance(value, Learner) and not isinstance(value, type)


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


ARGUMENTS: Mapping[str, Kind] = {
    "model": Kind("a Hugging Face model (with its config), the folder of one, or a hub id", _is_model),
    "sae": Kind(
        "an SAE, its folder, RELEASE/SAE_ID of sae-lens, or an SAE object of sae-lens (load_sae has what is read)",
        _is_sae,
    ),
    "tokenizer": Kind(
        "a Hugging Face tokenizer (of a processor, its .tokenizer; of a path, AutoTokenizer.from_pretrained(path))",
        lambda value: callable(value) and hasattr(value, "pad_token_id"),
    ).or_none,
    "layer": whole().or_none,
    "hook": WORDS.or_none,
    "pool": one_of(POOLS),
    "max_length": whole(1).or_none,
    "text_field": WORDS.or_none,
    "completion_field": WORDS.or_none,
    "out": Kind("a folder to write", is_path).or_none,
    "part": Kind("(i, n), the share i (from 0) of n", _is_share, plain=tuple).or_none,
    "keep_hidden": SWITCH,
    "include_special": SWITCH,
    "pool_over": one_of(POOL_OVER),
    "skip_first": whole(0),
    "long_texts": one_of(LONG_TEXTS),
    "window_stride": whole(1).or_none,
    "ids": Kind("one string or whole number per text", lambda value: not isinstance(value, (str, bytes, Mapping)) and
                hasattr(value, "__len__") and hasattr(value, "__iter__")).or_none,
    "columns": Kind("one dict per text", lambda value: isinstance(value, Sequence) and not isinstance(value, str) and
                    all(isinstance(row, dict) for row in value)).or_none,
    "source": Kind("a dict of notes that JSON can hold", lambda value: isinstance(value, dict), _is_json).or_none,
    "tokens_per_batch": whole(1).or_none,
    "shard_rows": whole(1),
    "padding_side": one_of(("left", "right")),
    "packing": one_of(WISHES),
    "compile": one_of(COMPILE_WISHES),
    "each_shard": Kind("a function of one argument", callable).or_none,
    "kmeans": Kind("a StreamingKMeans, or another that has its `learning`", _is_learner).or_none,
    "device": DEVICE.or_none,
    "device_map": Kind(
        "'auto' (or another word of transformers), or a dict from module to device",
        lambda value: isinstance(value, (str, Mapping)),
        bool,
    ).or_none,
    "dtype": floating(AUTO).or_none,
    "on_nonfinite": one_of(("raise", "mark")),
    "progress": SWITCH,
}  # fmt: skip
