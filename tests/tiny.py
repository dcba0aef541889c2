"""Tiny random models of real architectures, a tokenizer trained on the spot, and SAEs that fit them."""

from __future__ import annotations

from dataclasses import replace

import torch

from saerl_fast.sae import SAE

WIDTH = 32
WIDTH_OUT = 24
LAYERS = 4
WORDS = (
    "a train leaves the station at nine and travels west how many apples does Mary have left if she gives away three "
    "of her twelve apples find the sum of all integers between one and ten solve for x in the equation below"
).split()
CHAT_TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"


def tokenizer(*, bos: bool = True, eos: bool = False, pad: bool = False):
    """A byte-level BPE tokenizer; with BOS and EOS put around each text where asked."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    form = f"{'<s> ' if bos else ''}$A{' </s>' if eos else ''}"
    backend.post_processor = processors.TemplateProcessing(single=form, special_tokens=[("<s>", 0), ("</s>", 1)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        **({"pad_token": "<pad>"} if pad else {}),
    )
    made.chat_template = CHAT_TEMPLATE
    return made


def causal_lm(family: str = "qwen2", seed: int = 0):
    """A random causal LM of a real architecture, float32, eval."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    torch.manual_seed(seed)
    sizes = {
        "vocab_size": 400,
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
    }
    if family == "gpt2":
        sizes = {"vocab_size": 400, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": 4, "n_positions": 64}
    if family == "gpt_neox":
        sizes.pop("num_key_value_heads")
    config = CONFIG_MAPPING[family](**sizes)
    return AutoModelForCausalLM.from_config(config).eval()


def encoder(family: str = "bert", seed: int = 0):
    """A random encoder of a real architecture, float32, eval."""
    from transformers import CONFIG_MAPPING, AutoModel

    torch.manual_seed(seed)
    config = CONFIG_MAPPING[family](
        vocab_size=400,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=67 if family == "roberta" else 64,
        pad_token_id=2,
    )
    return AutoModel.from_config(config).eval()


def sae(kind: str = "topk", *, d_in: int = WIDTH, d_sae: int = 96, seed: int = 1, **settings) -> SAE:
    """A random SAE of unit-norm-ish decoder rows with biases that are not zero."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * scale

    defaults = {
        "k": 8 if kind in ("topk", "abstopk") else None,
        "threshold": normal(d_sae, scale=0.1).abs() + 0.05 if kind == "jumprelu" else None,
        "metadata": {"hook_name": "blocks.1.hook_resid_post"},
    }
    if kind == "gated":
        other = torch.Generator().manual_seed(seed + 1)
        defaults |= {name: torch.randn(d_sae, generator=other) * 0.3 for name in ("r_mag", "b_mag")}
    return SAE(
        w_enc=normal(d_sae, d_in, scale=d_in**-0.5),
        b_enc=normal(d_sae, scale=0.1),
        w_dec=normal(d_sae, d_in, scale=d_in**-0.5),
        b_dec=normal(d_in, scale=0.1),
        kind=kind,
        **{**defaults, **settings},
    )


def transcoder(kind: str = "standard", *, d_sae: int = 96, seed: int = 1, **settings) -> SAE:
    """A random transcoder, from WIDTH channels to WIDTH_OUT."""
    generator = torch.Generator().manual_seed(seed)
    made = sae(kind, d_sae=d_sae, seed=seed, apply_b_dec=False)
    w_dec = torch.randn(d_sae, WIDTH_OUT, generator=generator) * WIDTH_OUT**-0.5
    b_dec = torch.randn(WIDTH_OUT, generator=generator)
    return replace(made, w_dec=w_dec, b_dec=b_dec, transcoder=True, **settings)


def texts(count: int, seed: int = 0, longest: int = 30) -> list[str]:
    """Texts of very different lengths out of the tokenizer's words."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest, (count,), generator=generator).tolist()
    return [
        " ".join(WORDS[int(torch.randint(len(WORDS), (1,), generator=generator))] for _ in range(length))
        for length in lengths
    ]
