"""accelerate: a sae-lens object keeps its contract, faster; and what would differ is left to sae-lens."""

import copy

import pytest
import torch

from saerl_fast import accelerate
from saerl_fast.errors import FormatError, InputError
from saerl_fast.formats import save_sae
from saerl_fast.ops import TopKCodes
from tests import tiny
from tests.test_sae import dense

sae_lens = pytest.importorskip("sae_lens")

CASES = {
    "topk": tiny.sae(),
    "topk-rescaled": tiny.sae(rescale_by_decoder_norm=True),
    "topk-no-b_dec": tiny.sae(apply_b_dec=False),
    "abstopk": tiny.sae("abstopk"),
    "jumprelu": tiny.sae("jumprelu"),
    "standard": tiny.sae("standard"),
    "gated": tiny.sae("gated"),
    "layer-norm": tiny.sae(input_norm="layer_norm"),
    "transcoder": tiny.transcoder(),
}


def pair(case, tmp_path):
    """The same SAE twice: as sae-lens has it, and accelerated; both eval."""
    save_sae(CASES[case], tmp_path)
    plain, fast = (sae_lens.SAE.load_from_disk(str(tmp_path), device="cpu").eval() for _ in range(2))
    return plain, accelerate(fast)


def rows(*shape, seed=3):
    return torch.randn(*shape, tiny.WIDTH, generator=torch.Generator().manual_seed(seed)) * 2


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", [(50,), (4, 7), (2, 3, 5), (), (0,)])
def test_dense_encode_keeps_its_contract(case, shape, tmp_path):
    plain, fast = pair(case, tmp_path)
    x = rows(*shape)
    with torch.no_grad():
        wanted, got = plain.encode(x), fast.encode(x)
        assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)
        assert torch.equal(got != 0, wanted != 0)
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(fast(x), plain(x), rtol=1e-4, atol=1e-4)
        sparse = fast.encode_sparse(x)
        torch.testing.assert_close(dense(sparse, 96), wanted.reshape(-1, 96), rtol=1e-5, atol=1e-5)


def test_our_kernels_really_run(tmp_path, monkeypatch):
    _, fast = pair("topk", tmp_path)
    called, encode = [], type(CASES["topk"]).encode
    monkeypatch.setattr(type(CASES["topk"]), "encode", lambda *a: called.append(a) or encode(*a))
    with torch.no_grad():
        fast.encode(rows(3))
    assert len(called) == 1


def test_gradients_hooks_and_training_are_left_to_sae_lens(tmp_path, caplog):
    plain, fast = pair("topk", tmp_path)
    x = rows(5)
    with caplog.at_level("INFO", logger="saerl_fast"):
        fast.encode(x).sum().backward()
        plain.encode(x).sum().backward()
    assert torch.equal(fast.W_enc.grad, plain.W_enc.grad)
    assert caplog.text.count("gradients are recorded") == 1
    seen = []
    fast.hook_sae_acts_pre.add_hook(lambda value, hook: seen.append(value.shape))
    with torch.no_grad():
        fast.encode(x)
        assert seen == [(5, 96)]
        fast.reset_hooks()
        fast.hook_sae_acts_post.add_hook(lambda value, hook: value * 2)
        torch.testing.assert_close(fast.encode(x), plain.encode(x) * 2, rtol=1e-5, atol=1e-5)
    assert seen == [(5, 96)]


def test_a_change_of_weights_is_seen(tmp_path):
    plain, fast = pair("topk-rescaled", tmp_path)
    x = rows(20)
    changes = (
        lambda sae: sae.fold_W_dec_norm(),
        lambda sae: sae.fold_activation_norm_scaling_factor(1.7),
        lambda sae: sae.b_enc.data.add_(0.3),
        lambda sae: sae.load_state_dict({k: v * 0.9 for k, v in sae.state_dict().items()}),
        lambda sae: setattr(sae.W_enc, "data", sae.W_enc.data * 1.1),
        lambda sae: sae.to(dtype=torch.float64),
        lambda sae: setattr(sae.cfg, "apply_b_dec_to_input", False),
    )
    with torch.no_grad():
        for change in changes:
            before = fast.encode(x)
            change(plain)
            change(fast)
            got, wanted = fast.encode(x), plain.encode(x)
            assert got.dtype == wanted.dtype
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
            assert change is changes[1] or change is changes[0] or not torch.equal(got, before.to(got.dtype))


@pytest.mark.parametrize("case", ["topk", "abstopk", "gated"])
def test_the_error_term_is_taken_with_the_hooks_turned_off(case, tmp_path):
    plain, fast = pair(case, tmp_path)
    x = rows(9)
    for sae in (plain, fast):
        sae.use_error_term = True
        sae.hook_sae_acts_post.add_hook(lambda acts, hook: acts * 0)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), plain(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", ["topk-rescaled", "jumprelu"])
def test_a_deep_copy_has_its_own_weights(case, tmp_path):
    plain, fast = pair(case, tmp_path)
    x = rows(20)
    with torch.no_grad():
        before = fast.encode(x)
        other, wanted = copy.deepcopy(fast), copy.deepcopy(plain)
        for sae in (other, wanted):
            sae.fold_W_dec_norm()
            sae.b_enc.data.add_(0.2)
        torch.testing.assert_close(other.encode(x), wanted.encode(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(dense(other.encode_sparse(x), 96), wanted.encode(x), rtol=1e-5, atol=1e-5)
        assert torch.equal(fast.encode(x), before)
        assert not torch.equal(other.encode(x), before)


def test_what_is_no_inference_sae_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match="needs an inference SAE of sae-lens; got SAE"):
        accelerate(tiny.sae())
    from sae_lens.saes.matching_pursuit_sae import MatchingPursuitSAE, MatchingPursuitSAEConfig

    with pytest.raises(FormatError, match="iterative"):
        accelerate(MatchingPursuitSAE(MatchingPursuitSAEConfig(d_in=8, d_sae=16)))
    _, fast = pair("topk", tmp_path)
    assert accelerate(fast) is fast
    assert isinstance(fast.encode_sparse(rows(3)), TopKCodes)
