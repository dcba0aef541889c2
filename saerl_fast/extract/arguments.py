"""What each argument of the public calls may be: one table, held against before anything is loaded."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from saerl_fast.errors import DtypeError, InputError
from saerl_fast.extract.compiling import COMPILE_WISHES
from saerl_fast.extract.conversation import PoolOver
from saerl_fast.extract.packing import WISHES
from saerl_fast.sae import SAE

Pool = Literal["mean", "max", "sum", "last", "count"]
POOLS: tuple[Pool, ...] = ("mean", "max", "sum", "last", "count")
LongTexts = Literal["truncate", "window", "error"]
LONG_TEXTS: tuple[LongTexts, ...] = ("truncate", "window", "error")
POOL_OVER: tuple[PoolOver, ...] = ("all", "prompt", "completion", "last_user")
DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}
AUTO = "auto"
"""The dtype of the checkpoint."""

SHOWN = (str, bytes, int, float, list, tuple, dict, np.generic, type(None), torch.dtype, torch.device)
"""What a message shows as it came; of anything else it names the type."""


@dataclass(frozen=True)
class Kind:
    """What an argument may be. wanted: in words; is_one: its type; fits: its value; plain: the form it is used in."""

    wanted: str
    is_one: Callable[[Any], bool]
    fits: Callable[[Any], bool] = lambda value: True
    plain: Callable[[Any], Any] = lambda value: value

    @property
    def or_none(self) -> Kind:
        return replace(
            self,
            wanted=f"{self.wanted}, or None",
            is_one=lambda value: value is None or self.is_one(value),
            fits=lambda value: value is None or self.fits(value),
            plain=lambda value: None if value is None else self.plain(value),
        )

    def take(self, name: str, value: Any) -> Any:
        """The value in its plain form. Raises DtypeError for another type, InputError for a value out of range."""
        if not self.is_one(value):
            raise DtypeError(f"{name} must be {self.wanted}; got {_show(value)}")
        if not self.fits(value):
            raise InputError(f"{name} must be {self.wanted}; got {_show(value)}")
        return self.plain(value)


def _show(value: Any) -> str:
    named = type(value).__name__
    return f"{value!r:.80} ({named})" if isinstance(value, SHOWN) else named


def _is_whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether it is a number, and no bool."""
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def whole(least: int | None = None) -> Kind:
    """A whole number of any type but bool, from ``least`` up."""
    wanted = "a whole number" if least is None else f"a whole number from {least} up"
    return Kind(wanted, _is_whole, lambda value: least is None or value >= least, int)


def one_of(choices: Sequence[str]) -> Kind:
    """One of some words; any other value, of whatever type, is out of range."""
    return Kind(
        f"one of {tuple(choices)}", lambda value: True, lambda value: isinstance(value, str) and value in choices
    )


def instance(wanted: str, *types: Any) -> Kind:
    return Kind(wanted, lambda value: isinstance(value, types))


def _is_model(value: Any) -> bool:
    if isinstance(value, nn.Module):
        return hasattr(value, "config") and hasattr(value, "get_input_embeddings")
    return _is_path(value)


def _is_path(value: Any) -> bool:
    return isinstance(value, (str, os.PathLike)) and value != ""


def _is_sae(value: Any) -> bool:
    by_sae_lens = any(base.__module__.partition(".")[0] == "sae_lens" for base in type(value).__mro__)
    return isinstance(value, SAE) or _is_path(value) or (by_sae_lens and isinstance(value, nn.Module))


def _is_share(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2 and all(map(_is_whole, value))


def _is_device(value: Any) -> bool:
    try:
        return torch.device(value).type != "meta"
    except RuntimeError:
        return False


def _is_dtype(value: Any) -> bool:
    return isinstance(value, (str, torch.dtype))


def _is_floating(value: Any) -> bool:
    return value in (AUTO, *DTYPES) or (isinstance(value, torch.dtype) and value in DTYPES.values())


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


SWITCH = Kind("True or False", lambda value: isinstance(value, (bool, np.bool_)), plain=bool)
WORDS = instance("a string", str)

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
    "out": Kind("a folder to write", _is_path).or_none,
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
    "device": Kind(
        "a torch.device, or a string that torch knows, such as 'cuda:1'",
        lambda value: isinstance(value, (str, torch.device)),
        _is_device,
    ).or_none,
    "device_map": Kind(
        "'auto' (or another word of transformers), or a dict from module to device",
        lambda value: isinstance(value, (str, Mapping)),
        bool,
    ).or_none,
    "dtype": Kind(
        f"a floating dtype: one of {', '.join(DTYPES)}, '{AUTO}' (the checkpoint's), or the torch.dtype",
        _is_dtype, _is_floating, lambda value: DTYPES.get(value, value) if isinstance(value, str) else value,
    ).or_none,
    "on_nonfinite": one_of(("raise", "mark")),
    "progress": SWITCH,
}  # fmt: skip


def check_arguments(given: Mapping[str, Any], kinds: Mapping[str, Kind] = ARGUMENTS) -> dict[str, Any]:
    """The arguments by name in their plain form; DtypeError or InputError, with the name, for what cannot be taken."""
    return {name: kinds[name].take(name, value) for name, value in given.items()}
