"""Train the embedded policy: ``python -m saerl_fast.demo.train_policy --out DIR``.

A Qwen2 model of about a million parameters learns to work out the answers of generated train problems: it finds the
fact that tells what is asked, then goes through the facts up to it ("eva second dan 7 eva + 3 10"). Training ends while
its sums are still unsure. An answer of more steps has more places to go wrong in, and a wrong sum is carried on; so the
policy solves fewer problems the higher their level, though nothing in the training looks at the level.
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

from saerl_fast.demo.figures import write_figures
from saerl_fast.demo.lessons import IGNORED, Lesson, LessonBatch, draw_lesson, pack
from saerl_fast.demo.policy import Accuracy, accuracy, answer, certainty
from saerl_fast.demo.problems import generate, generate_with_facts
from saerl_fast.demo.structures import ORDINALS
from saerl_fast.demo.vocabulary import build_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights. A step has ``rows`` of ``row_tokens``; rates are at their peak.

    Rates are planned for ``steps`` but training ends at ``stop``, early: what is not yet sure in one step of an answer
    adds up over its steps. ``ordinal_weight`` is the weight of an ordinal in the loss, that of other tokens being 1:
    there is one in an answer, and it is the hardest to find.
    """

    steps: int = 1500
    stop: int = 1000
    rows: int = 6
    row_tokens: int = 400
    text_weight: float = 0.1
    ordinal_weight: float = 6.0
    muon_rate: float = 0.015
    adam_rate: float = 3e-3
    warmup: int = 50
    constant_share: float = 0.6
    seed: int = 1
    width: int = 128
    layers: int = 4
    heads: int = 8
    mlp_width: int = 384
    start_scale: float = 0.08
    offsets: tuple[int, ...] = (1, 2, 3, 4)
    offset_strength: float = 6.0


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """An untrained policy."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(recipe.seed)
    model = Qwen2ForCausalLM(
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
            rope_parameters={"rope_type": "default", "rope_theta": 300.0},
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    look_back(model, recipe.offsets, recipe.offset_strength)
    return model


def look_back(model: Qwen2ForCausalLM, offsets: tuple[int, ...], strength: float) -> None:
    """Start head i of the first block as one that looks ``offsets[i]`` tokens back, through its biases.

    Under rotary positions a constant query and key score q R(i - j) k: a bias turned by the offset peaks there. Small
    models spend most of a short training on finding such heads; here the training begins with them.
    """
    attention = model.model.layers[0].self_attn
    width = attention.head_dim
    turns = model.model.rotary_emb.inv_freq[: width // 2]
    for head, offset in enumerate(offsets):
        rows = slice(head * width, (head + 1) * width)
        key = torch.full_like(turns, strength * (8 / len(turns)) ** 0.5)
        with torch.no_grad():
            # what the tokens are must not blur where they are
            attention.q_proj.weight[rows] *= 0.1
            attention.k_proj.weight[rows] *= 0.1
            attention.k_proj.bias[rows] = torch.cat([key, torch.zeros_like(key)])
            attention.q_proj.bias[rows] = torch.cat(
                [key * torch.cos(-turns * offset), key * torch.sin(-turns * offset)]
            )


def train(
    recipe: Recipe,
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    *,
    compiled: bool = False,
    every: int = 500,
    after: Callable[[int], None] = lambda _step: None,
) -> None:
    """Train ``model`` in place; ``after(step)`` is called every ``every`` steps."""
    core = torch.compile(model.model, dynamic=False) if compiled else model.model
    optimizers = _optimizers(recipe, model)
    rng = random.Random(recipe.seed)
    losses: deque[float] = deque(maxlen=50)
    weights = torch.ones(len(tokenizer))
    weights[tokenizer(" ".join(ORDINALS))["input_ids"]] = recipe.ordinal_weight
    lessons: list[Lesson] = []
    begun = time.monotonic()
    for step in range(1, recipe.stop + 1):
        _set_rates(recipe, optimizers, step)
        lessons.extend(_draw(recipe, rng, tokenizer, sum(map(len, lessons))))
        batch, lessons = pack(lessons, rows=recipe.rows, width=recipe.row_tokens, pad=tokenizer.pad_token_id)
        loss, text_loss = _losses(core, model.lm_head, batch, weights)
        (loss + recipe.text_weight * text_loss).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        if step % 50 == 0:
            mean, seconds = sum(losses) / len(losses), time.monotonic() - begun
            log.info("step %d: loss %.3f, of the texts %.3f, %.0f s", step, mean, text_loss.item(), seconds)
        if step % every == 0:
            after(step)


def _draw(recipe: Recipe, rng: random.Random, tokenizer: PreTrainedTokenizerFast, held: int) -> list[Lesson]:
    """Lessons that fill a step beside ``held`` tokens."""

    def encode(text: str) -> list[int]:
        return list(tokenizer(text)["input_ids"])

    lessons: list[Lesson] = []
    while held + sum(map(len, lessons)) < 1.05 * recipe.rows * recipe.row_tokens:
        lessons.append(draw_lesson(rng, encode, tokenizer.eos_token_id))
    return lessons


def _losses(
    core: Callable[..., object], head: Callable[[Tensor], Tensor], batch: LessonBatch, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of the answers' tokens, by their ``weights`` [V], and of the facts' tokens."""
    output = core(
        input_ids=batch.tokens,
        attention_mask=batch.visible,
        position_ids=batch.positions,
        use_cache=False,
    )
    states: Tensor = output.last_hidden_state  # type: ignore[attr-defined]

    def loss(targets: Tensor, weights: Tensor | None = None) -> Tensor:
        counted = targets != IGNORED
        return functional.cross_entropy(head(states[counted]), targets[counted], weights)

    return loss(batch.answers, weights), loss(batch.texts)


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
    parser.add_argument("--stop", type=int, default=Recipe.stop, help="steps after which training ends")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="faster; needs a C++ compiler")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    recipe = Recipe(stop=arguments.stop)
    tokenizer = build_tokenizer()
    model = build_model(recipe, tokenizer)
    log.info("%d parameters, %d tokens", sum(p.numel() for p in model.parameters()), len(tokenizer))

    def after(step: int) -> None:
        save(model, tokenizer, arguments.out)
        log.info("step %d: sampled %s", step, measure(model, tokenizer, 200, greedy=False))

    begun = time.monotonic()
    train(recipe, model, tokenizer, compiled=arguments.compile, after=after)
    minutes = (time.monotonic() - begun) / 60
    save(model, tokenizer, arguments.out)
    result = {
        "recipe": asdict(recipe),
        "sampled": asdict(measure(model, tokenizer, 4000, greedy=False)),
        "greedy": asdict(measure(model, tokenizer, 4000, greedy=True)),
        "certainty": certainty(
            model.eval(), tokenizer, generate_with_facts(1000, split="held_out", seed=0, defect_share=0.0)
        ),
    }
    write_figures(arguments.out, result, minutes=minutes)
    log.info("%s", json.dumps(result))


if __name__ == "__main__":
    main()
