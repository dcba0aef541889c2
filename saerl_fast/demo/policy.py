"""The embedded policy: loading it, and how often it is right."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from saerl_fast.demo.problems import Problem
from saerl_fast.demo.structures import Instance
from saerl_fast.extract.loading import load_tokenizer
from saerl_fast.rl.verify import is_correct

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

NAME = "saerl-demo-policy"

WEIGHTS = Path(__file__).parent / "weights"
POLICY, SAE_FOLDER = WEIGHTS / NAME, WEIGHTS / "saerl-demo-sae"
"""The committed policy, and the SAE of its middle layer: see the model cards there."""

LONGEST_ANSWER = 25
"""New tokens that hold every worked answer: the asked item, an ordinal, a start, five items of four tokens, the end."""


@dataclass(frozen=True)
class Accuracy:
    """Shares of right answers, 0..1."""

    overall: float
    by_level: dict[int, float]
    by_topic: dict[str, float]


def load_policy(folder: Path | str | None = None) -> tuple[Qwen2ForCausalLM, PreTrainedTokenizerFast]:
    """The committed policy (or the one in ``folder``), in fp32, in evaluation mode, and its tokenizer."""
    from transformers import Qwen2ForCausalLM

    folder = POLICY if folder is None else Path(folder)
    model = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model.eval(), load_tokenizer(folder, local_files_only=True)


@torch.no_grad()
def answer(
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    *,
    greedy: bool = False,
    seed: int = 0,
    batch_size: int = 128,
) -> list[str]:
    """One completion per text, sampled at temperature 1 (with ``seed``) or greedy."""
    completions: list[str] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for begin in range(0, len(texts), batch_size):
            prompts = tokenizer(list(texts[begin : begin + batch_size]), return_tensors="pt", padding=True)
            tokens = model.generate(
                **prompts,
                max_new_tokens=LONGEST_ANSWER,
                do_sample=not greedy,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                pad_token_id=tokenizer.pad_token_id,
            )
            new = tokens[:, prompts["input_ids"].shape[1] :]
            completions.extend(tokenizer.batch_decode(new, skip_special_tokens=True))
    return completions


def accuracy(problems: Sequence[Problem], completions: Sequence[str]) -> Accuracy:
    """How many completions hold the key, in all, per level and per topic."""
    right = [is_correct(text, problem.answer) for problem, text in zip(problems, completions, strict=True)]
    levels, topics = defaultdict(list), defaultdict(list)
    for problem, correct in zip(problems, right, strict=True):
        levels[problem.level].append(correct)
        topics[problem.topic].append(correct)
    return Accuracy(
        _share(right),
        {level: _share(levels[level]) for level in sorted(levels)},
        {topic: _share(topics[topic]) for topic in sorted(topics)},
    )


@torch.no_grad()
def certainty(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, instances: Iterable[tuple[Problem, Instance]]
) -> dict[str, dict[int, float]]:
    """Mean probability of the right token of worked answers after the right tokens before it, by what it is.

    "ordinal" by level, "sum" and "product" by the number of the step, "copied" (items, signs, amounts, the end) as 0.
    """
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for problem, instance in instances:
        words = instance.worked().split()
        asked, answered = tokenizer(problem.text)["input_ids"], tokenizer(instance.worked())["input_ids"]
        tokens = torch.tensor([[*asked, *answered, tokenizer.eos_token_id]])
        logits = model(tokens).logits[0, len(asked) - 1 : -1]
        sure = logits.softmax(-1).gather(1, tokens[0, len(asked) :, None])[:, 0].tolist()
        result, step = "product" if instance.structure == "nesting" else "sum", 0
        for place, value in enumerate(sure):
            if place == 1:
                found["ordinal"][instance.level].append(value)
            elif place < len(words) and words[place].isdigit() and words[place - 1].isdigit():
                step += 1
                found[result][step].append(value)
            else:
                found["copied"][0].append(value)
    return {kind: {key: sum(parts[key]) / len(parts[key]) for key in sorted(parts)} for kind, parts in found.items()}


def _share(right: list[bool]) -> float:
    return sum(right) / max(len(right), 1)
