"""Completions of a policy, each drawn with random numbers of its own.

Token t of a completion is the inverse of the cumulative distribution softmax(logits / temperature) at u_t,
and u_1, u_2, ... come from a generator seeded by (seed, row id). So what is drawn for a row does not depend on
the rows beside it or on what was drawn before (but for the rounding of the forward pass, which may depend on
the shape of the batch). The distribution is the policy's own: no top-k, no top-p, no penalty, as in GRPO.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saerl_fast.errors import DtypeError, InputError, NonFiniteError
from saerl_fast.extract.loading import load_tokenizer

Prompt = str | Sequence[Mapping[str, Any]]

_PROBE_ELEMENTS = 1024


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn. temperature 0 is greedy."""

    rollouts: int = 8
    max_new_tokens: int = 512
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rollouts", "max_new_tokens"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise InputError(f"{name}: wanted a whole number from 1 up; got {value!r}")
        if type(self.seed) is not int or self.seed < 0:
            raise InputError(f"seed: wanted a whole number from 0 up; got {self.seed!r}")
        if not (isinstance(self.temperature, (int, float)) and 0 <= self.temperature < float("inf")):
            raise InputError(f"temperature: wanted a number from 0 up; got {self.temperature!r}")
        if self.temperature == 0 and self.rollouts > 1:
            raise InputError(f"rollouts: at temperature 0 all are the same; wanted 1, got {self.rollouts}")


class DrawToken:
    """A logits processor that leaves one token possible: the one that ``uniforms`` draws.

    uniforms [R, T] float64 in [0, 1): one row per completion, one column per new token.
    """

    def __init__(self, uniforms: Tensor, prompt_length: int, temperature: float) -> None:
        self.uniforms = uniforms
        self.prompt_length = prompt_length
        self.temperature = temperature
        self.failed = torch.zeros(len(uniforms), dtype=torch.bool, device=uniforms.device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self.prompt_length
        # float64, so that a vocabulary of any size sums to one closely enough for the tail to be reachable
        cumulative = torch.softmax(scores.double() / self.temperature, dim=-1).cumsum(dim=-1)
        self.failed |= ~torch.isfinite(cumulative[:, -1])
        point = self.uniforms[:, step : step + 1] * cumulative[:, -1:]
        token = torch.searchsorted(cumulative, point, right=True).clamp_(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -float("inf")).scatter_(1, token, 0.0)


def generate(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], ids: Sequence[object], sampling: Sampling
) -> list[list[str]]:
    """``sampling.rollouts`` completions of each prompt (token ids), special tokens taken off.

    All prompts are completed at once, padded on the left: len(prompts) * rollouts sequences. The global
    random state is neither read nor changed. Raises NonFiniteError where the model's logits are.
    """
    from transformers import GenerationConfig

    device = model.get_input_embeddings().weight.device
    ends = end_tokens(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (ends[0] if ends else 0)
    longest = max(len(prompt) for prompt in prompts)
    tokens = torch.full((len(prompts), longest), pad, dtype=torch.int64)
    mask = torch.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        tokens[row, longest - len(prompt) :] = torch.tensor(list(prompt))
        mask[row, longest - len(prompt) :] = 1
    config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        pad_token_id=pad,
        eos_token_id=ends or None,
    )
    processors: list[Any] = []
    if sampling.temperature > 0:
        uniforms = np.concatenate([_uniforms(row_id, sampling) for row_id in ids])
        processors.append(DrawToken(torch.from_numpy(uniforms).to(device), longest, sampling.temperature))
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            made = model.generate(
                input_ids=tokens.repeat_interleave(sampling.rollouts, 0).to(device),
                attention_mask=mask.repeat_interleave(sampling.rollouts, 0).to(device),
                generation_config=config,
                logits_processor=processors,
            )
    finally:
        model.train(was_training)
    if processors and bool(processors[0].failed.any()):
        row = int(torch.nonzero(processors[0].failed)[0]) // sampling.rollouts
        raise NonFiniteError(f"the model's logits for row {ids[row]!r} are not finite; is its dtype too narrow for it?")
    texts = tokenizer.batch_decode(made[:, longest:], skip_special_tokens=True)
    return [texts[start : start + sampling.rollouts] for start in range(0, len(texts), sampling.rollouts)]


def _uniforms(row_id: object, sampling: Sampling) -> np.ndarray[Any, np.dtype[np.float64]]:
    """[rollouts, max_new_tokens] of one row."""
    words = np.frombuffer(hashlib.sha256(json.dumps(row_id).encode()).digest(), dtype="<u4").tolist()
    return np.random.default_rng([sampling.seed, *words]).random((sampling.rollouts, sampling.max_new_tokens))


def encode_prompt(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Token ids as GRPOTrainer makes them: a string as it is, messages under the chat template."""
    if isinstance(prompt, str):
        return list(tokenizer(prompt, verbose=False)["input_ids"])
    if not _is_conversation(prompt):
        raise DtypeError(f"a prompt is a string or a list of chat messages; got {type(prompt).__name__}")
    if not getattr(tokenizer, "chat_template", None):
        raise InputError("the prompt is a list of messages, and the tokenizer has no chat template; use plain text")
    rendered = tokenizer.apply_chat_template(list(prompt), add_generation_prompt=True, tokenize=False)
    return list(tokenizer(rendered, add_special_tokens=False, verbose=False)["input_ids"])


def _is_conversation(prompt: object) -> bool:
    return isinstance(prompt, Sequence) and all(
        isinstance(message, Mapping) and "role" in message and "content" in message for message in prompt
    )


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Tokens that end a completion: the model's own and the tokenizer's, each once."""
    found = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    wanted = found if isinstance(found, list) else [found]
    return list(dict.fromkeys(int(token) for token in [*wanted, tokenizer.eos_token_id] if token is not None))


def longest_context(model: Any) -> int | None:
    """Positions the model's config allows, None where it sets no limit."""
    from saerl_fast.extract.hooks import text_config

    limit = getattr(text_config(model.config), "max_position_embeddings", None)
    return None if limit is None else int(limit)


def fingerprint_policy(model: Any, tokenizer: Any) -> dict[str, Any]:
    """What changes the completions: dtype, an even sample of every parameter, tokenizer, end tokens."""
    state = hashlib.sha256()
    for name, parameter in model.named_parameters():
        flat = parameter.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // _PROBE_ELEMENTS)].float().cpu().numpy()
        state.update(f"{name} {tuple(parameter.shape)}".encode())
        state.update(sample.tobytes())
    vocabulary = sorted(tokenizer.get_vocab().items())
    template = getattr(tokenizer, "chat_template", None)
    return {
        "weights": state.hexdigest(),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "tokenizer": hashlib.sha256(json.dumps([vocabulary, template]).encode()).hexdigest(),
        "end_tokens": end_tokens(model, tokenizer),
    }


def load_policy(name: str, device: str | None = None) -> tuple[Any, Any]:
    """A causal LM (a folder or a hub id) in eval mode and its tokenizer.

    device: default CUDA where there is one. The dtype is the checkpoint's on CUDA, float32 on a CPU.
    """
    from transformers import AutoModelForCausalLM

    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        tokenizer = load_tokenizer(name)
        model = AutoModelForCausalLM.from_pretrained(name, dtype="auto" if target.type == "cuda" else torch.float32)
    except (OSError, ValueError, InputError) as error:
        raise InputError(f"model: cannot load a causal LM and its tokenizer from {name!r}: {error}") from error
    return model.to(target).eval(), tokenizer
