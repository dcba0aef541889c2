"""blocks.L.ln2.hook_normalized: the stream behind the norm in front of the MLP, before that norm's own weights."""

import pytest
import torch
from torch import nn

from saerl_fast.errors import ModelMismatchError
from saerl_fast.extract.capture import Capture
from saerl_fast.extract.hooks import find_module, hook_width, parse_hook
from saerl_fast.extract.norms import without_weights
from tests import families, tiny
from tests.extract.test_hooks import LAYER, hooks_of, read, tokens

HOOK = f"blocks.{LAYER}.ln2.hook_normalized"
NORMS = families.NORMS
CLOSE = {"rtol": 2e-6, "atol": 2e-6}


def watched(model, family, text):
    """The norm, and what went into it and came out of it in a forward pass of the test's own."""
    norm = model.get_submodule(f"{families.blocks_path(family)}.{LAYER}.{NORMS[family][0]}")
    seen = []
    handle = norm.register_forward_hook(lambda m, i, o: seen.append((i[0].clone(), o.clone())))
    with torch.inference_mode():
        model(input_ids=torch.as_tensor(text[0].input_ids)[None])
    handle.remove()
    before, after = (value.reshape(-1, tiny.WIDTH) for value in seen[0])
    return norm, before, after


def normalised(x, norm):
    """The formula, in float64."""
    x = x.double()
    if isinstance(norm, nn.LayerNorm):
        x = x - x.mean(-1, keepdim=True)
    eps = next(getattr(norm, name) for name in ("variance_epsilon", "eps") if hasattr(norm, name))
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


@pytest.mark.parametrize("family", NORMS)
def test_is_the_formula_and_times_the_weights_what_the_module_gives(family):
    model, text = families.model(family), tokens(23)
    norm, before, after = watched(model, family, text)
    assert norm.weight.std() > 0.1
    found = read(model, parse_hook(HOOK), text)
    assert found.shape == (23, tiny.WIDTH)
    assert hook_width(model, parse_hook(HOOK)) == tiny.WIDTH
    torch.testing.assert_close(found.double(), normalised(before, norm), **CLOSE)
    bias = 0 if getattr(norm, "bias", None) is None else norm.bias
    torch.testing.assert_close(found * (norm.weight + NORMS[family][1]) + bias, after, **CLOSE)


@pytest.mark.parametrize("family", ["gemma2", "llama", "gpt2"])
def test_nothing_above_the_norm_runs_and_nothing_of_the_model_changes(family):
    model, text = families.build(family), tokens(11)
    norm, _, after = watched(model, family, text)
    before, hooks = {name: tensor.clone() for name, tensor in model.state_dict().items()}, hooks_of(model)
    ran = []
    block = model.get_submodule(f"{families.blocks_path(family)}.{LAYER}")
    block.mlp.register_forward_hook(lambda *_: ran.append("mlp"))
    norm.register_forward_hook(lambda *_: ran.append("norm"))
    read(model, parse_hook(HOOK), text)
    assert ran == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    block.mlp._forward_hooks.clear()
    norm._forward_hooks.clear()
    assert hooks_of(model) == hooks
    assert torch.equal(watched(model, family, text)[2], after)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_texts_are_normed_row_by_row(side):
    model = families.model("gemma2")
    texts = tokens(3, 17, 9)
    found = read(model, parse_hook(HOOK), texts, side).split([3, 17, 9])
    for rows, text in zip(found, texts, strict=True):
        torch.testing.assert_close(rows, read(model, parse_hook(HOOK), [text]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["gemma2", "llama"])
def test_bfloat16_is_rounded_once_where_the_module_rounds(family):
    model = families.build(family).bfloat16()
    norm, before, _ = watched(model, family, tokens(23))
    found = read(model, parse_hook(HOOK), tokens(23))
    assert found.dtype == torch.bfloat16
    wanted = normalised(before, norm)
    assert ((found.double() - wanted).abs() <= 2.0**-8 * wanted.abs() + 1e-6).all()


def test_gains_of_zero_and_of_one_are_told_apart_whatever_the_weights_are():
    for family, neutral in (("gemma2", 0.0), ("llama", 1.0)):
        model = families.build(family)
        norm = model.model.layers[LAYER].get_submodule(NORMS[family][0])
        x = torch.randn(5, tiny.WIDTH, generator=torch.Generator().manual_seed(3))
        wanted = normalised(x, norm).float()
        for value in (0.0, 1.0, -1.0, float("nan")):
            with torch.no_grad():
                norm.weight.fill_(value)
            torch.testing.assert_close(without_weights(norm)(x), wanted, **CLOSE)
        with torch.no_grad():
            norm.weight.fill_(neutral)
            assert torch.equal(norm(x), without_weights(norm)(x))


def test_where_no_norm_stands_before_the_mlp_the_reason_is_said():
    assert set(families.FAMILIES) - set(NORMS) == {"olmo2", "bert", "roberta", "distilbert"}
    for family in ("olmo2", "bert", "roberta", "distilbert"):
        with pytest.raises(ModelMismatchError, match=r"norms of \w+ stand behind attention and MLP; the MLP reads the"):
            find_module(families.model(family), parse_hook(HOOK))


class Doubled(nn.LayerNorm):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Linear(tiny.WIDTH, tiny.WIDTH), r"Linear is no norm over rows: .* it has \['bias', 'weight'\]"),
        (nn.Identity(), r"Identity is no norm over rows: .* it has \[\]"),
        (Doubled(tiny.WIDTH), "Doubled is no norm over rows: .* root mean square 1, and it has 2"),
    ],
)
def test_what_is_no_norm_is_refused(module, message):
    model = families.build("llama")
    model.model.layers[LAYER].post_attention_layernorm = module
    with pytest.raises(ModelMismatchError, match=message):
        Capture(model, parse_hook(HOOK))
