"""Train the embedded policy: ``python -m saerl_fast.demo.train_policy --out DIR``.

A Qwen2 model of about a million parameters learns to answer generated train problems. Some of its lessons give the
plain answer, the others work it out item by item ("dan 7 eva 10"): the policy learns both ways, of which only the
second is reliable. So a tuned policy can become better than the one that is trained here.

The depth of the questions grows as the loss falls, from one fact to all five levels.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from saerl_fast.demo.lessons import IGNORED, Lesson, LessonBatch, collate, draw_lesson
from saerl_fast.demo.policy import Accuracy, accuracy, answer
from saerl_fast.demo.problems import generate
from saerl_fast.demo.structures import LEVELS
from saerl_fast.demo.vocabulary import build_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights. ``tokens`` is the size of a step; learning rates are at their peak."""

    steps: int = 4000
    tokens: int = 2200
    worked_share: float = 0.7
    full_share: float = 0.3
    deeper_below: float = 0.45
    least_steps: int = 60
    muon_rate: float = 0.02
    adam_rate: float = 5e-3
    warmup: int = 50
    constant_share: float = 0.6
    seed: int = 1
    width: int = 128
    layers: int = 4
    heads: int = 4
    mlp_width: int = 384
    start_scale: float = 0.08


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """An untrained policy."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(recipe.seed)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=recipe.width,
            intermediate_size=recipe.mlp_width,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            max_position_embeddings=512,
            initializer_range=recipe.start_scale,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def train(
    recipe: Recipe,
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    *,
    compiled: bool = False,
    every: int = 250,
    after: Callable[[int], None] = lambda _step: None,
) -> None:
    """Train ``model`` in place; ``after(step)`` is called every ``every`` steps."""
    core = torch.compile(model.model, dynamic=True) if compiled else model.model
    optimizers = _optimizers(recipe, model)
    rng = random.Random(recipe.seed)
    losses: deque[float] = deque(maxlen=50)
    deepest, since, begun = 1, 0, time.monotonic()
    for step in range(1, recipe.steps + 1):
        _set_rates(recipe, optimizers, step)
        loss = _step(core, model.lm_head, _batch(recipe, rng, tokenizer, deepest))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        since += 1
        mean = sum(losses) / len(losses)
        if deepest < LEVELS and since >= recipe.least_steps and mean < recipe.deeper_below:
            deepest, since = deepest + 1, 0
            log.info("step %d: questions up to level %d", step, deepest)
        if step % 50 == 0:
            log.info("step %d: loss %.3f, %.0f s", step, mean, time.monotonic() - begun)
        if step % every == 0:
            after(step)


def _batch(recipe: Recipe, rng: random.Random, tokenizer: PreTrainedTokenizerFast, deepest: int) -> LessonBatch:
    """About ``recipe.tokens`` tokens of lessons: some full texts, most of the short ones as deep as possible."""

    def encode(text: str) -> list[int]:
        return list(tokenizer(text)["input_ids"])

    lessons: list[Lesson] = []
    while sum(map(len, lessons)) < recipe.tokens:
        full = deepest == LEVELS or rng.random() < recipe.full_share
        depth = deepest if full or rng.random() < 0.7 else rng.randint(1, deepest)
        lessons.append(
            draw_lesson(
                rng,
                encode,
                tokenizer.eos_token_id,
                worked_share=recipe.worked_share,
                deepest=depth,
                short=not full,
            )
        )
    return collate(lessons, pad=tokenizer.pad_token_id, multiple=8)


def _step(core: Callable[..., object], head: Callable[[Tensor], Tensor], batch: LessonBatch) -> Tensor:
    """Mean cross-entropy of the answers' tokens."""
    output = core(
        input_ids=batch.tokens,
        attention_mask=batch.visible,
        position_ids=batch.positions,
        use_cache=False,
    )
    states: Tensor = output.last_hidden_state  # type: ignore[attr-defined]
    asked = batch.targets != IGNORED
    return functional.cross_entropy(head(states[asked]), batch.targets[asked])


def _optimizers(recipe: Recipe, model: Qwen2ForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the embedding, norms and biases."""
    named = list(model.named_parameters())
    matrices = [weight for name, weight in named if weight.ndim == 2 and "embed" not in name]
    rest = [weight for name, weight in named if weight.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=recipe.muon_rate, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=recipe.adam_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def _set_rates(recipe: Recipe, optimizers: list[torch.optim.Optimizer], step: int) -> None:
    """Linear warm-up, constant, linear down to 3 %."""
    left = (recipe.steps - step) / (recipe.steps * (1 - recipe.constant_share))
    factor = min(1.0, step / recipe.warmup, 0.03 + 0.97 * left)
    for optimizer, rate in zip(optimizers, (recipe.muon_rate, recipe.adam_rate), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate * factor


def save(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Weights as fp16 safetensors, config and tokenizer; the model itself stays as it is."""
    from copy import deepcopy

    deepcopy(model).half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # the class name that every version of transformers since 4 knows
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def measure(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, count: int, *, greedy: bool) -> Accuracy:
    """Accuracy on the first ``count`` sound held-out problems of seed 0."""
    problems = generate(count, split="held_out", seed=0, defect_share=0.0)
    was_training = model.training
    completions = answer(model.eval(), tokenizer, [problem.text for problem in problems], greedy=greedy)
    model.train(was_training)
    return accuracy(problems, completions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="faster; needs a C++ compiler")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    recipe = Recipe(steps=arguments.steps)
    tokenizer = build_tokenizer()
    model = build_model(recipe, tokenizer)
    log.info("%d parameters, %d tokens", sum(p.numel() for p in model.parameters()), len(tokenizer))

    def after(step: int) -> None:
        save(model, tokenizer, arguments.out)
        log.info("step %d: sampled %s", step, measure(model, tokenizer, 200, greedy=False))

    train(recipe, model, tokenizer, compiled=arguments.compile, after=after)
    save(model, tokenizer, arguments.out)
    result = {
        "recipe": asdict(recipe),
        "sampled": asdict(measure(model, tokenizer, 2000, greedy=False)),
        "greedy": asdict(measure(model, tokenizer, 2000, greedy=True)),
    }
    (arguments.out / "figures.json").write_text(json.dumps(result, indent=2) + "\n")
    log.info("%s", json.dumps(result))


if __name__ == "__main__":
    main()
