"""The policy's tokenizer, learned from generated problems.

Byte-level BPE, so that any text can be read; lower case. Every word of the problems is a single token, and so is every
number of up to two digits: what a small policy learns about numbers is a table of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from saerl_fast.demo.problems import generate_with_facts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD = "<pad>"
EOS = "<eos>"
LARGEST_VOCABULARY = 1024
_PIECES = r" ?[0-9]{1,2}| ?[a-z]+| ?[^\sa-z0-9]+|\s+"


def build_tokenizer(count: int = 12_000, seed: int = 0) -> PreTrainedTokenizerFast:
    """A tokenizer trained on ``count`` train problems; the same bytes for the same arguments.

    Pads on the left (for generation) and adds no special token to a text.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Prepend(" ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=LARGEST_VOCABULARY,
        special_tokens=[PAD, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(count, seed), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )


def _texts(count: int, seed: int) -> Iterator[str]:
    """Problems, worked answers, and every number often enough to become a token."""
    for problem, instance in generate_with_facts(count, seed=seed):
        yield problem.text
        yield instance.worked()
    yield from [" ".join(map(str, range(100)))] * count
