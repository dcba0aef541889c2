"""A Gemma Scope transcoder from its file to features: at the place, and on the values, that its owners would read."""

import pytest
import torch

from saerl_fast import featurize
from saerl_fast.errors import MismatchWarning
from saerl_fast.extract.norms import without_weights
from tests import families, tiny
from tests.formats import test_golden as golden
from tests.formats.owners import gemma_scope_by_sae_lens

LAYER = 2


def transformer_lens_norm(norm, kind, eps, gain):
    """TransformerLens's own module with these weights, and a list that keeps what its hook_normalized holds."""
    components = pytest.importorskip("transformer_lens.components")
    from transformer_lens.config import HookedTransformerConfig

    config = HookedTransformerConfig(
        n_layers=1, d_model=tiny.WIDTH, d_head=8, n_ctx=8, d_vocab=8, act_fn="relu", eps=eps, device="cpu"
    )
    theirs = getattr(components, kind)(config)
    with torch.no_grad():
        theirs.w.copy_(gain)
        if kind == "LayerNorm":
            theirs.b.copy_(norm.bias)
    seen = []
    theirs.hook_normalized.register_forward_hook(lambda m, i, o: seen.append(o))
    return theirs, seen


@pytest.mark.parametrize(
    ("family", "path", "kind", "plus"),
    [
        ("gemma2", "pre_feedforward_layernorm", "RMSNorm", 1),
        ("llama", "post_attention_layernorm", "RMSNorm", 0),
        ("gpt2", "ln_2", "LayerNorm", 0),
    ],
)
def test_it_is_what_transformer_lens_has_under_that_name(family, path, kind, plus):
    model = families.model(family)
    norm = model.get_submodule(f"{families.blocks_path(family)}.{LAYER}.{path}")
    eps = getattr(norm, "eps", None) or norm.variance_epsilon
    theirs, seen = transformer_lens_norm(norm, kind, eps, norm.weight + plus)
    x = torch.randn(1, 40, tiny.WIDTH, generator=torch.Generator().manual_seed(0)) * 3
    with torch.no_grad():
        torch.testing.assert_close(theirs(x), norm(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(without_weights(norm)(x), seen[0], rtol=2e-6, atol=2e-6)


def test_featurize_gives_what_sae_lens_encodes_there(tmp_path, monkeypatch):
    folder = tmp_path / "gemma-scope-2b-pt-transcoders" / f"layer_{LAYER}" / "width_16k" / "average_l0_14"
    golden.gemma_folder(folder)
    theirs = gemma_scope_by_sae_lens(monkeypatch, folder, "transcoders")
    model, tokenizer = families.model("gemma2"), tiny.tokenizer()
    texts = tiny.texts(5)
    with pytest.warns(MismatchWarning):
        ours = featurize(texts, model=model, sae=folder, tokenizer=tokenizer, pool="sum", skip_first=1)
    norm = model.model.layers[LAYER].pre_feedforward_layernorm
    lens, normed = transformer_lens_norm(norm, "RMSNorm", norm.eps, 1 + norm.weight)
    stream = []
    handle = norm.register_forward_hook(lambda m, i, o: stream.append(i[0]))
    wanted = []
    with torch.no_grad():
        for text in texts:
            model(**tokenizer(text, return_tensors="pt"))
            lens(stream.pop())
            wanted.append(theirs.encode(normed.pop()[0, 1:]).sum(0))
    handle.remove()
    found = torch.as_tensor(ours.to_scipy().toarray())
    wanted = torch.stack(wanted)
    assert 0.02 < (wanted != 0).float().mean() < 0.98
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-3)
