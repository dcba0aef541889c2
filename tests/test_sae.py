"""SAE.encode and decode against sae-lens itself, and the checks at construction."""

import numpy as np
import pytest
import torch

from saerl_fast.errors import DtypeError, InputError, ShapeError
from saerl_fast.formats import load_sae, save_sae
from saerl_fast.ops import CsrRows, TopKCodes
from tests import tiny


def dense(codes, d_sae):
    """Codes as a dense [N, d_sae] array."""
    if isinstance(codes, TopKCodes):
        out = torch.zeros(len(codes.values), d_sae)
        return out.scatter_(1, codes.indices.long(), codes.values)
    assert isinstance(codes, CsrRows)
    rows = torch.repeat_interleave(torch.arange(len(codes.indptr) - 1), codes.indptr.diff())
    out = torch.zeros(len(codes.indptr) - 1, d_sae)
    out[rows, codes.indices.long()] = codes.values
    return out


CASES = {
    "topk": {"kind": "topk"},
    "topk-no-b_dec": {"kind": "topk", "apply_b_dec": False},
    "topk-rescaled": {"kind": "topk", "rescale_by_decoder_norm": True},
    "topk-layer-norm": {"kind": "topk", "input_norm": "layer_norm"},
    "topk-constant-norm": {"kind": "topk", "input_norm": "constant_norm_rescale"},
    "topk-k-beyond-positives": {"kind": "topk", "k": 90},
    "jumprelu": {"kind": "jumprelu"},
    "jumprelu-negative-threshold": {"kind": "jumprelu", "threshold": torch.full((96,), -0.3)},
    "standard": {"kind": "standard"},
    "standard-layer-norm": {"kind": "standard", "input_norm": "layer_norm"},
}


@pytest.mark.parametrize("case", CASES)
def test_encode_and_decode_agree_with_sae_lens(case, tmp_path):
    sae_lens = pytest.importorskip("sae_lens")
    ours = tiny.sae(**CASES[case])
    save_sae(ours, tmp_path)
    theirs = sae_lens.SAE.load_from_disk(str(tmp_path), device="cpu")
    x = torch.randn(257, tiny.WIDTH, generator=torch.Generator().manual_seed(3)) * 2
    with torch.no_grad():
        wanted = theirs.encode(x)
        got = dense(ours.encode(x), ours.d_sae)
        # the same elements are active, and their values agree to rounding of one dot product of 32 terms
        assert torch.equal(got != 0, wanted != 0)
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
        if ours.input_norm == "none":
            torch.testing.assert_close(ours.decode(ours.encode(x)), theirs.decode(wanted), rtol=1e-4, atol=1e-4)


def test_hook_z_input_is_flattened_as_sae_lens_does(tmp_path):
    sae_lens = pytest.importorskip("sae_lens")
    ours = tiny.sae("standard", flatten_heads=True, metadata={"hook_name": "blocks.1.attn.hook_z"})
    save_sae(ours, tmp_path)
    theirs = sae_lens.SAE.load_from_disk(str(tmp_path), device="cpu")
    x = torch.randn(20, 4, 8, generator=torch.Generator().manual_seed(5))
    theirs.turn_on_forward_pass_hook_z_reshaping()
    with torch.no_grad():
        torch.testing.assert_close(dense(ours.encode(x), 96), theirs.encode(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["topk", "jumprelu", "standard"])
def test_row_index_gathers(kind):
    sae = tiny.sae(kind)
    x = torch.randn(50, tiny.WIDTH, generator=torch.Generator().manual_seed(0))
    rows = torch.tensor([3, 3, 49, 0])
    np.testing.assert_array_equal(dense(sae.encode(x, row_index=rows), 96), dense(sae.encode(x[rows]), 96))


@pytest.mark.parametrize("kind", ["topk", "jumprelu", "standard"])
def test_save_and_load_give_the_same_sae(kind, tmp_path):
    sae = tiny.sae(kind)
    save_sae(sae, tmp_path / "folder")
    assert load_sae(tmp_path / "folder").weights_hash() == sae.weights_hash()


def test_weights_hash_sees_one_changed_bit_and_every_setting():
    sae = tiny.sae()
    changed = sae.w_enc.clone()
    changed[5, 5] = torch.nextafter(changed[5, 5], torch.tensor(9.0))
    hashes = {
        sae.weights_hash(),
        tiny.sae(k=9).weights_hash(),
        tiny.sae(apply_b_dec=False).weights_hash(),
        tiny.sae(rescale_by_decoder_norm=True).weights_hash(),
        tiny.sae(input_norm="layer_norm").weights_hash(),
        type(sae)(changed, sae.b_enc, sae.w_dec, sae.b_dec, "topk", k=8).weights_hash(),
    }
    assert len(hashes) == 6


def test_parts_that_do_not_fit_are_refused():
    good = tiny.sae()
    with pytest.raises(ShapeError, match="w_dec must be"):
        type(good)(good.w_enc, good.b_enc, good.w_dec.t(), good.b_dec, "topk", k=8)
    with pytest.raises(ShapeError, match="b_enc must be"):
        type(good)(good.w_enc, good.b_enc[1:], good.w_dec, good.b_dec, "topk", k=8)
    with pytest.raises(DtypeError, match="like w_enc"):
        type(good)(good.w_enc, good.b_enc.double(), good.w_dec, good.b_dec, "topk", k=8)
    with pytest.raises(InputError, match="1 <= k <= d_sae = 96; got k = 97"):
        tiny.sae(k=97)
    with pytest.raises(InputError, match="threshold"):
        tiny.sae("jumprelu", threshold=None)
    with pytest.raises(InputError, match="kind must be"):
        tiny.sae("gated")
    with pytest.raises(ShapeError, match=r"x must be \[rows, 32\]; got \[4, 31\]"):
        good.encode(torch.zeros(4, 31))
