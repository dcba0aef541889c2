"""Whether two names mean one model: a hub id, a TransformerLens alias, a folder, a place in a cache.

Weights make a model, so a base and its instruct version are two, and so are a model and what was trained from it
(``gpt2`` and ``distilgpt2``, ``gemma-2-2b`` and ``out/gemma-2-2b/checkpoint-500``). Names are compared whole; only what
tells where a copy lies, or who published it, is taken off.
"""

from __future__ import annotations

import re

ALIASES = {
    "gpt2small": "gpt2",
    "gpt2xs": "distilgpt2",
    "distillgpt2": "distilgpt2",
    "gptj": "gptj6b",
    "gptneosmall": "gptneo125m",
    "neosmall": "gptneo125m",
    "neo": "gptneo125m",
    "gptneomedium": "gptneo1.3b",
    "neomedium": "gptneo1.3b",
    "gptneolarge": "gptneo2.7b",
    "neolarge": "gptneo2.7b",
    "gptneox": "gptneox20b",
    "neox": "gptneox20b",
    "pythia": "pythia70m",
    "pythiav0": "pythia70mv0",
    "opt": "opt125m",
    "optsmall": "opt125m",
    "optmedium": "opt1.3b",
    "optlarge": "opt2.7b",
    "optxl": "opt6.7b",
    "optxxl": "opt13b",
    "optxxxl": "opt30b",
    "optxxxxl": "opt66b",
    "phi3": "phi3mini4kinstruct",
    "gptoss": "gptoss20b",
    "mistral7b": "mistral7bv0.1",
    "mistral7binstruct": "mistral7binstructv0.1",
    "mixtral": "mixtral8x7bv0.1",
    "mixtral8x7b": "mixtral8x7bv0.1",
    "mixtralinstruct": "mixtral8x7binstructv0.1",
    "mixtral8x7binstruct": "mixtral8x7binstructv0.1",
    "olmo21b": "olmo204251b",
    "olmo27b": "olmo211247b",
    "olmoe": "olmoe1b7b0924",
    "apertus": "apertus8b2509",
    "apertus8b": "apertus8b2509",
    "apertusinstruct": "apertus8binstruct2509",
    "apertus8binstruct": "apertus8binstruct2509",
}
"""TransformerLens's names for models that no rule below reaches."""

PYTHIA_SIZES = {
    "19m": "70m",
    "125m": "160m",
    "350m": "410m",
    "800m": "1b",
    "1.3b": "1.4b",
    "2.7b": "2.8b",
    "6.7b": "6.9b",
    "13b": "12b",
}
"""The sizes by which Pythia's models were named at first."""

NAMELESS = ("model", "hf", "main", "0_transformer")
"""Folders that hold a model and do not name it; the one above does."""

TRAINED = {"sft", "dpo", "rl", "rlhf", "grpo", "ppo", "ft", "lora", "distil", "distilled", "tuned", "trained", "my"}
TRAINED |= {"finetune", "finetuned", "merged", "new", "custom", "untrained", "random", "tiny"}
"""In front of a name and a _, these make another model; any other word there is who published the copy."""

_URL = re.compile(r"^(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/")
_CACHE = re.compile(r"(?:^|/)models--([^/]+?)(?:/(?:snapshots|refs|blobs)(?:/.*)?)?$")


def same_model(trained_on: str, read: str) -> bool:
    """Whether both names mean the same weights, as far as names tell."""
    first, second = _bare(trained_on), _bare(read)
    wanted, found = _canonical(first), _canonical(second)
    return (
        wanted == found
        or wanted == _canonical(_without_publisher(second))
        or found == _canonical(_without_publisher(first))
    )


def _bare(name: str) -> str:
    """The part of an id or path that names the model."""
    name = _URL.sub("", name.strip().replace("\\", "/")).rstrip("/")
    if (cached := _CACHE.search(name)) is not None:
        return cached[1].split("--")[-1]
    parts = [part for part in name.split("/") if part not in ("", ".")]
    while len(parts) > 1 and parts[-1].lower() in NAMELESS:
        parts.pop()
    return parts[-1] if parts else ""


def _without_publisher(bare: str) -> str:
    """``google--gemma-2-2b``, ``google__gemma-2-2b`` and ``google_gemma-2-2b`` less what stands in front."""
    for mark in ("--", "__", "_"):
        publisher, parted, rest = bare.partition(mark)
        if parted and rest and publisher.lower() not in TRAINED:
            return rest
    return bare


def _canonical(bare: str) -> str:
    """One spelling for all of a model's names: small letters, digits, and points between digits."""
    plain = re.sub(r"(?<=\d)_(?=\d)", ".", bare.lower())
    plain = re.sub(r"[^a-z0-9.]|(?<!\d)\.|\.(?!\d)", "", plain).removesuffix("hf")
    if plain.startswith("metallama"):
        plain = plain.removeprefix("meta")
    if (stories := re.fullmatch(r"(tinystories(?:instruct)?)(\d)l(\d+m)", plain)) is not None:
        plain = f"{stories[1]}{stories[2]}layer{'' if stories[2] == '1' else 's'}{stories[3]}"
    if (pythia := re.fullmatch(r"pythia([\d.]+[mb])(.*)", plain)) is not None:
        plain = f"pythia{PYTHIA_SIZES.get(pythia[1], pythia[1])}{pythia[2]}"
    return ALIASES.get(plain, plain)
