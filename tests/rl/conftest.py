"""A model of a few thousand parameters with its tokenizer, made on the spot; plans and datasets for it."""

from __future__ import annotations

LETTERS = "0123456789abcdefghijklmnopqrstuvwxyz +-=?"


def tiny_tokenizer():
    """One token per character; pad, end and unknown as special tokens."""
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<end>", "<unk>", *LETTERS]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Split(Regex("."), behavior="isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", unk_token="<unk>", padding_side="left"
    )


def tiny_model():
    """Qwen2 with random weights, the same every time; the global random state is put back."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=len(LETTERS) + 3,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Qwen2ForCausalLM(config)


def problems(count: int):
    """``count`` prompts with an id; the id is in the prompt, so that a reward function can read it."""
    from datasets import Dataset

    return Dataset.from_dict(
        {"id": [f"q{row}" for row in range(count)], "prompt": [f"q{row} = ?" for row in range(count)]}
    )


def plan_for(count: int, **settings):
    """A plan over ``problems(count)``: three clusters, difficulties that have nothing to do with the row."""
    import numpy as np

    from saerl_fast.curriculum import make_plan

    rng = np.random.default_rng(7)
    settings = {"prompts_per_step": 4, "epochs": 2, "policy": "saerl"} | settings
    return make_plan(
        [f"q{row}" for row in range(count)],
        clusters=rng.integers(0, 3, count),
        difficulty=rng.normal(size=count),
        **settings,
    )


# settings that make a run small and quiet
SMALL = {
    "max_completion_length": 3,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "logging_strategy": "no",
}


def trainer_for(plan, dataset, out, seen, *, config=None, guarded=True, **settings):
    """A GRPOTrainer whose reward function notes the rows of each call in ``seen``."""
    from trl import GRPOTrainer

    from saerl_fast.rl.trl import PlanGuard, grpo_config

    def reward(completions, id, **columns):
        assert len(columns.get("saerl_cluster", id)) == len(completions)
        seen.append([int(name.removeprefix("q")) for name in id])
        return [float(len(completion)) for completion in completions]

    if config is None:
        config = grpo_config(plan, output_dir=str(out), num_generations=2, **SMALL | settings)
    return GRPOTrainer(
        tiny_model(),
        reward,
        args=config,
        train_dataset=dataset,
        processing_class=tiny_tokenizer(),
        callbacks=[PlanGuard(plan)] if guarded else [],
    )


def train(plan, dataset, out, *, resume=None, **settings):
    """The rows that the reward function saw, call by call."""
    seen = []
    trainer_for(plan, dataset, out, seen, **settings).train(resume_from_checkpoint=resume)
    return seen
