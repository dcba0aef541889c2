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
    "abstopk": {"kind": "abstopk"},
    "abstopk-no-b_dec": {"kind": "abstopk", "apply_b_dec": False},
    "abstopk-rescaled": {"kind": "abstopk", "rescale_by_decoder_norm": True},
    "abstopk-all": {"kind": "abstopk", "k": 96},
    "gated": {"kind": "gated"},
    "gated-no-b_dec-layer-norm": {"kind": "gated", "apply_b_dec": False, "input_norm": "layer_norm"},
}
TRANSCODERS = {
    "transcoder": {},
    "transcoder-constant-norm": {"input_norm": "constant_norm_rescale"},
    "skip_transcoder": {"w_skip": torch.randn(tiny.WIDTH_OUT, tiny.WIDTH, generator=torch.Generator().manual_seed(8))},
    "jumprelu_transcoder": {"kind": "jumprelu"},
    "jumprelu_skip_transcoder": {"kind": "jumprelu", "w_skip": torch.ones(tiny.WIDTH_OUT, tiny.WIDTH)},
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


@pytest.mark.parametrize("case", TRANSCODERS)
def test_transcoders_agree_with_sae_lens(case, tmp_path):
    sae_lens = pytest.importorskip("sae_lens")
    ours = tiny.transcoder(**TRANSCODERS[case])
    save_sae(ours, tmp_path)
    theirs = sae_lens.SAE.load_from_disk(str(tmp_path), device="cpu")
    assert theirs.cfg.architecture() == case.removesuffix("-constant-norm")
    x = torch.randn(100, tiny.WIDTH, generator=torch.Generator().manual_seed(3)) * 2
    with torch.no_grad():
        wanted = theirs.encode(x)
        got = dense(ours.encode(x), ours.d_sae)
        assert torch.equal(got != 0, wanted != 0)
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
        reconstruction = ours.decode(ours.encode(x))
        if ours.w_skip is not None:
            reconstruction = reconstruction + x @ ours.w_skip.t()
        torch.testing.assert_close(reconstruction, theirs(x), rtol=1e-4, atol=1e-4)
    assert load_sae(tmp_path).weights_hash() == ours.weights_hash()


def grid_sae(kind, rows=64, **settings):
    """Small whole numbers everywhere: every sum is exact in float32, and ties are common."""
    generator = torch.Generator().manual_seed(7)

    def whole(*shape):
        return torch.randint(-2, 3, shape, generator=generator).float()

    sae = type(tiny.sae())(
        w_enc=whole(200, 16), b_enc=whole(200), w_dec=whole(200, 16), b_dec=whole(16), kind=kind, **settings
    )
    return sae, whole(rows, 16)


@pytest.mark.parametrize("k", [1, 7, 200])
def test_absolute_topk_is_exact_on_whole_numbers_ties_to_the_lower_index(k):
    sae, x = grid_sae("abstopk", k=k)
    h = ((x - sae.b_dec) @ sae.w_enc.t() + sae.b_enc).double()
    order = h.abs().sort(dim=1, descending=True, stable=True).indices[:, :k]
    codes = sae.encode(x)
    wanted = h.gather(1, order)
    assert torch.equal(codes.values.double(), wanted)
    # where h is 0 any latent may stand: it adds nothing
    assert torch.equal(codes.indices[wanted != 0].long(), order[wanted != 0])
    assert h.gather(1, order).lt(0).any()


def test_absolute_topk_marks_a_nan_row_and_leaves_its_neighbours():
    sae = tiny.sae("abstopk")
    x = torch.randn(3, tiny.WIDTH, generator=torch.Generator().manual_seed(0))
    clean = sae.encode(x)
    x[1, 5] = torch.nan
    codes = sae.encode(x)
    assert codes.values[1].isnan().all()
    assert codes.indices[1].tolist() == list(range(8))
    assert torch.equal(codes.values[[0, 2]], clean.values[[0, 2]])


def test_gated_values_are_within_twice_the_error_of_plain_torch():
    sae = tiny.sae("gated", d_in=512, d_sae=300)
    sae.b_enc.mul_(30)
    x = torch.randn(200, 512, generator=torch.Generator().manual_seed(0)) * 3
    centred, wide = (x - sae.b_dec), sae.w_enc.double()
    exact = (centred.double() @ wide.t()) * sae.r_mag.double().exp() + sae.b_mag.double()
    plain = centred @ (sae.w_enc * sae.r_mag.exp()[:, None]).t() + sae.b_mag
    got = dense(sae.encode(x), 300).double()
    kept = got != 0
    gate = centred.double() @ wide.t() + sae.b_enc.double()
    # |x| |w| 2^-20 is the slack of the boundary-gap rule
    unsure = gate.abs() < 2**-20 * (x.norm(dim=1)[:, None] * sae.w_enc.norm(dim=1) + sae.b_enc.abs())
    assert torch.equal(kept | unsure, ((gate > 0) & (exact > 0)) | unsure)
    assert 0.2 < kept.double().mean() < 0.8
    allowed = 2 * (plain.double() - exact).abs().max()
    assert (got - exact)[kept].abs().max() <= allowed


def test_gated_row_with_nan_keeps_one_marked_entry():
    sae = tiny.sae("gated")
    x = torch.randn(3, tiny.WIDTH, generator=torch.Generator().manual_seed(0))
    x[1] = torch.nan
    codes = sae.encode(x)
    row = slice(int(codes.indptr[1]), int(codes.indptr[2]))
    assert codes.indices[row].tolist() == [0]
    assert codes.values[row].isnan().all()
    assert len(sae.encode(x[:0]).indptr) == 1


def test_hook_z_input_is_flattened_as_sae_lens_does(tmp_path):
    sae_lens = pytest.importorskip("sae_lens")
    ours = tiny.sae("standard", flatten_heads=True, metadata={"hook_name": "blocks.1.attn.hook_z"})
    save_sae(ours, tmp_path)
    theirs = sae_lens.SAE.load_from_disk(str(tmp_path), device="cpu")
    x = torch.randn(20, 4, 8, generator=torch.Generator().manual_seed(5))
    theirs.turn_on_forward_pass_hook_z_reshaping()
    with torch.no_grad():
        torch.testing.assert_close(dense(ours.encode(x), 96), theirs.encode(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["topk", "jumprelu", "standard", "abstopk", "gated"])
def test_row_index_gathers(kind):
    sae = tiny.sae(kind)
    x = torch.randn(50, tiny.WIDTH, generator=torch.Generator().manual_seed(0))
    rows = torch.tensor([3, 3, 49, 0])
    np.testing.assert_array_equal(dense(sae.encode(x, row_index=rows), 96), dense(sae.encode(x[rows]), 96))


@pytest.mark.parametrize("kind", ["topk", "jumprelu", "standard", "abstopk", "gated"])
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
        tiny.sae("abstopk").weights_hash(),
        type(sae)(changed, sae.b_enc, sae.w_dec, sae.b_dec, "topk", k=8).weights_hash(),
    }
    assert len(hashes) == 7


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
        tiny.sae("ungated")
    with pytest.raises(InputError, match="gated SAE needs r_mag and b_mag"):
        tiny.sae("gated", r_mag=None)
    with pytest.raises(InputError, match="1 <= k"):
        tiny.sae("abstopk", k=0)
    with pytest.raises(InputError, match="give apply_b_dec=False"):
        tiny.transcoder(apply_b_dec=True)
    with pytest.raises(ShapeError, match=r"w_skip must be \[24, 32\]"):
        tiny.transcoder(w_skip=torch.zeros(32, 24))
    with pytest.raises(InputError, match="w_skip goes with a transcoder"):
        tiny.sae(w_skip=torch.zeros(32, 32))
    with pytest.raises(InputError, match="rescale_by_decoder_norm goes with"):
        tiny.sae("standard", rescale_by_decoder_norm=True)
    with pytest.raises(ShapeError, match=r"x must be \[rows, 32\]; got \[4, 31\]"):
        good.encode(torch.zeros(4, 31))


def test_a_topk_sae_gives_its_codes_certified_and_others_say_why_not():
    x = torch.randn(9, tiny.WIDTH, generator=torch.Generator().manual_seed(3))
    rows = torch.tensor([4, 0, 8])
    for settings in ({}, {"apply_b_dec": False}, {"rescale_by_decoder_norm": True}, {"input_norm": "layer_norm"}):
        sae = tiny.sae(**settings)
        codes, certified = sae.encode_certified(x, rows)
        usual = sae.encode(x, rows)
        assert torch.equal(codes.indices, usual.indices)
        assert torch.allclose(codes.values, usual.values, rtol=1e-5, atol=1e-6)
        assert certified.shape == (3,)
    with pytest.raises(InputError, match="only a topk SAE keeps the k largest scores; this one is jumprelu"):
        tiny.sae("jumprelu").encode_certified(x)
