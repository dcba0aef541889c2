"""Inputs of the GPU suite: activations in the type of the model, texts as long as maths problems, a model of a
published shape with random weights."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saerl_fast.bench.data import Encoder, Integers, encoder

TOKEN_EDGES = (0, 16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 512, 768, 1024, 2048)
TOKEN_COUNTS = (338, 1398, 1715, 1274, 731, 434, 324, 191, 252, 168, 107, 77, 168, 98, 97, 61, 23, 16)
"""Histogram of the lengths of 7,474 of the 7,500 MATH training problems (Hendrycks et al., 2021), in tokens of the
uncased WordPiece vocabulary of BERT, without special tokens; the two above 2,048 are left out. Mean 84.7, median 50."""

QWEN2_1_5B: Mapping[str, int] = {
    "vocab_size": 151936,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
}
"""The shape of Qwen2.5-1.5B."""
TINY: Mapping[str, int] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
PAD = "[PAD]"
SHAPES: Mapping[str, Mapping[str, int]] = {"qwen2.5-1.5b": QWEN2_1_5B, "tiny": TINY}
"""By the name that a row's shape has."""


def problem_lengths(texts: int, longest: int = TOKEN_EDGES[-1]) -> Integers:
    """Lengths [texts] drawn from the histogram, at least 1 and at most `longest`, in random order."""
    rng = np.random.default_rng(6)
    share = np.array(TOKEN_COUNTS) / sum(TOKEN_COUNTS)
    bins = rng.choice(len(share), size=texts, p=share)
    low, high = np.array(TOKEN_EDGES[:-1])[bins], np.array(TOKEN_EDGES[1:])[bins]
    return np.clip(rng.integers(low, high), 1, longest)


def random_ids(lengths: Integers, vocabulary: int) -> list[Integers]:
    """Token ids of each text; 0 is left for padding."""
    rng = np.random.default_rng(7)
    return [rng.integers(1, vocabulary, size=length) for length in lengths]


def random_model(shape: str, device: torch.device) -> Any:
    """A Qwen2 without its head: random weights, bfloat16 on CUDA and float32 elsewhere, sdpa."""
    from transformers import AutoModel, Qwen2Config

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        torch.manual_seed(8)
        model = AutoModel.from_config(Qwen2Config(**SHAPES[shape]), dtype=dtype, attn_implementation="sdpa")
    return model.to(device).eval()


def operations_of(shape: str, blocks: int, lengths: Sequence[int] | Integers) -> float:
    """Multiplications and additions of the first `blocks` blocks on texts of these lengths, causal, nothing padded."""
    sizes = SHAPES[shape]
    width, hidden = sizes["hidden_size"], sizes["intermediate_size"]
    shared = width * sizes["num_key_value_heads"] // sizes["num_attention_heads"]
    length = np.asarray(lengths, dtype=np.float64)
    products = 2.0 * (2 * width * width + 2 * width * shared + 3 * width * hidden) * length.sum()
    attention = 4.0 * width * (length * (length + 1) / 2).sum()
    return float(blocks * (products + attention))


_encoder = functools.lru_cache(maxsize=1)(encoder)
"""Rows of the suite that differ in k alone follow each other."""


def centred_encoder(rows: int, width: int, latents: int, device: torch.device, dtype: torch.dtype) -> Encoder:
    """`data.encoder` with b_dec taken off beforehand: the encode and the product alone read the same tensors."""
    made = _encoder(rows, width, latents)
    x, w_enc, b_enc = (part.to(device, dtype) for part in (made.x - made.b_dec, made.w_enc, made.b_enc))
    return Encoder(x, w_enc, b_enc, torch.zeros(width, device=device, dtype=dtype))


def word_tokenizer(vocabulary: int) -> Any:
    """One token a word, words t1, t2, ...: texts of any number of tokens, and no file to read."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {PAD: 0, **{f"t{i}": i for i in range(1, vocabulary)}}
    backend = Tokenizer(models.WordLevel(words, unk_token=PAD))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=PAD)


def as_text(ids: Integers) -> str:
    """The text that `word_tokenizer` turns into these ids."""
    return " ".join(f"t{i}" for i in ids)


def repeated(tensor: Tensor, times: int) -> Tensor:
    """The rows, so many times over."""
    return tensor.repeat(times, *(1 for _ in tensor.shape[1:]))
