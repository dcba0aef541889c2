"""A tiny random model of each family's real architecture, and where each hook point lies in it, written out by hand."""

from __future__ import annotations

from functools import lru_cache

import torch

from tests import tiny

_BASE = {
    "vocab_size": 400,
    "hidden_size": tiny.WIDTH,
    "num_hidden_layers": tiny.LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 2,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
_GROUPED = {**_BASE, "num_key_value_heads": 2}
# head_dim x heads is not the width there, and the window is shorter than the texts
_GEMMA = {**_GROUPED, "head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16}
_GPT2 = {"vocab_size": 400, "n_embd": tiny.WIDTH, "n_layer": tiny.LAYERS, "n_head": 4, "n_positions": 64}

CAUSAL = {
    "qwen2": _GROUPED,
    "qwen3": {**_GROUPED, "head_dim": 16},
    "qwen3_moe": {
        **_GROUPED,
        "head_dim": 16,
        "moe_intermediate_size": 32,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    },
    "llama": _GROUPED,
    "mistral": {**_GROUPED, "sliding_window": 8},
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "phi3": _GROUPED,
    "olmo2": _GROUPED,
    "gpt2": {**_GPT2, "bos_token_id": 0, "eos_token_id": 1},
    "gpt_neox": {**_BASE, "rotary_pct": 0.5},
}
ENCODERS = {
    "bert": _BASE,
    "roberta": {**_BASE, "max_position_embeddings": 67},
    "distilbert": {
        "vocab_size": 400,
        "dim": tiny.WIDTH,
        "n_layers": tiny.LAYERS,
        "n_heads": 4,
        "hidden_dim": 64,
        "max_position_embeddings": 64,
        "pad_token_id": 2,
    },
    "modernbert": {
        **_BASE,
        "local_attention": 8,
        "global_attn_every_n_layers": 2,
        "cls_token_id": 0,
        "sep_token_id": 1,
    },
}
FAMILIES = [*CAUSAL, *ENCODERS]

LLAMA_LIKE = {
    "resid_pre": ("", "input"),
    "resid_mid": ("post_attention_layernorm", "input"),
    "resid_post": ("", "output"),
    "attn_out": ("self_attn", "output"),
    "attn_z": ("self_attn.o_proj", "input"),
    "mlp_in": ("mlp", "input"),
    "mlp_out": ("mlp", "output"),
}
GEMMA_LIKE = {
    **LLAMA_LIKE,
    "resid_mid": ("pre_feedforward_layernorm", "input"),
    "attn_out": ("post_attention_layernorm", "output"),
    "mlp_out": ("post_feedforward_layernorm", "output"),
}
BERT_LIKE = {
    "resid_pre": ("", "input"),
    "resid_mid": ("attention", "output"),
    "resid_post": ("", "output"),
    "attn_out": ("attention.output.dense", "output"),
    "attn_z": ("attention.output.dense", "input"),
    "mlp_in": ("intermediate", "input"),
    "mlp_out": ("output.dense", "output"),
}
PLACES = {
    **dict.fromkeys(["qwen2", "qwen3", "qwen3_moe", "llama", "mistral", "phi3"], LLAMA_LIKE),
    "gemma2": GEMMA_LIKE,
    "gemma3_text": GEMMA_LIKE,
    "olmo2": {**GEMMA_LIKE, "resid_mid": ("mlp", "input")},
    "gpt2": {
        **LLAMA_LIKE,
        "resid_mid": ("ln_2", "input"),
        "attn_out": ("attn", "output"),
        "attn_z": ("attn.c_proj", "input"),
    },
    # attention and MLP side by side: nothing between them
    "gpt_neox": {
        **LLAMA_LIKE,
        "resid_mid": None,
        "attn_out": ("attention", "output"),
        "attn_z": ("attention.dense", "input"),
    },
    "bert": BERT_LIKE,
    "roberta": BERT_LIKE,
    "distilbert": {
        "resid_pre": ("", "input"),
        "resid_mid": ("sa_layer_norm", "output"),
        "resid_post": ("", "output"),
        "attn_out": ("attention.out_lin", "output"),
        "attn_z": ("attention.out_lin", "input"),
        "mlp_in": ("ffn", "input"),
        "mlp_out": ("ffn.lin2", "output"),
    },
    "modernbert": {
        **LLAMA_LIKE,
        "resid_mid": ("mlp_norm", "input"),
        "attn_out": ("attn", "output"),
        "attn_z": ("attn.Wo", "input"),
    },
}
"""family -> point -> (module inside a block, side)"""

NORMS = {
    **dict.fromkeys(["qwen2", "qwen3", "qwen3_moe", "llama", "mistral", "phi3"], ("post_attention_layernorm", 0.0)),
    **dict.fromkeys(["gemma2", "gemma3_text"], ("pre_feedforward_layernorm", 1.0)),
    "gpt2": ("ln_2", 0.0),
    "gpt_neox": ("post_attention_layernorm", 0.0),
    "modernbert": ("mlp_norm", 0.0),
}
"""family -> (the norm in front of the MLP, what is added to its weight before it multiplies)"""

SAE_LENS = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "attn_z": "attn.hook_z",
    "mlp_in": "mlp.hook_in",
    "mlp_out": "hook_mlp_out",
}
BLOCKS = {
    "gpt2": "transformer.h",
    "gpt_neox": "gpt_neox.layers",
    "bert": "encoder.layer",
    "roberta": "encoder.layer",
    "distilbert": "transformer.layer",
    "modernbert": "layers",
}
"""Where the list of blocks is; model.layers elsewhere."""


def blocks_path(family: str) -> str:
    return BLOCKS.get(family, "model.layers")


@lru_cache
def model(family: str) -> torch.nn.Module:
    """One model per family and test process; weights wide enough that a wrong mask or position shows. Do not train it."""
    return build(family)


def build(family: str, seed: int = 0) -> torch.nn.Module:
    """A new random model, float32, eval."""
    from transformers import CONFIG_MAPPING, AutoModel, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = CONFIG_MAPPING[family](**{**CAUSAL, **ENCODERS}[family])
    made = (AutoModelForCausalLM if family in CAUSAL else AutoModel).from_config(config).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.15)
            elif name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.1)
            else:  # norms: gains that differ, so that a hook on the wrong side of one shows
                parameter.add_(0.2 * torch.randn_like(parameter))
    return made
