"""Int8 screening: the set of float64, always; what is left out is proved out; nothing stale, nothing silent."""

import pytest
import torch

from saerl_fast import ops
from saerl_fast.errors import BackendUnavailable
from saerl_fast.kernels import int8_product, int8_screening, int8_weights, native, topk_int8
from saerl_fast.kernels.input_norm import normalised
from saerl_fast.kernels.screening_counts import screening_counts
from saerl_fast.ops import TopKCodes
from tests.kernels.int8_cases import (
    assert_best,
    encode,
    forget_prepared_weights,
    massive,
    normal,
    random_encoder,
    rotated,
    same,
    scores,
    whole_rows,
    zipf_encoder,
)

pytestmark = pytest.mark.skipif(bool(int8_product.missing()), reason=str(int8_product.missing()))

SHAPES = [(1, 1, 1, 1), (1, 300, 1000, 1), (40, 64, 513, 513), (33, 385, 4099, 32), (1100, 63, 3001, 17)]


@pytest.mark.parametrize("change", [lambda arguments: arguments, massive], ids=["plain", "massive"])
@pytest.mark.parametrize("shape", SHAPES[2:], ids=str)
def test_the_set_is_that_of_float64(shape, change):
    arguments = change(random_encoder(*shape[:3]))
    assert_best(encode(arguments, shape[3]), scores(arguments), shape[3])


@pytest.mark.parametrize("shape", SHAPES[:2], ids=str)
def test_one_row_one_channel_one_latent(shape):
    arguments = random_encoder(*shape[:3])
    assert_best(encode(arguments, shape[3]), scores(arguments), shape[3])


@pytest.mark.parametrize("change", [lambda arguments: arguments, massive], ids=["plain", "massive"])
def test_activations_of_an_sae_are_screened_and_not_scored_whole(change):
    arguments = change(zipf_encoder(300, 512, 8192))
    before = screening_counts()
    codes, whole, rows = whole_rows(lambda: encode(arguments, 32))
    assert_best(codes, scores(arguments), 32)
    assert (whole, rows) == (0, 300)
    # the screening has to rule out nearly all: a tenth of the latents would already be a failure of it
    assert screening_counts().scored - before.scored < 300 * 8192 // 10


def test_a_likely_floor_that_was_too_high_is_noticed():
    # in three channels errors come near their bounds, so that what is likely is often not so
    arguments = random_encoder(4000, 3, 2000, scale=None)
    codes, whole, rows = whole_rows(lambda: encode(arguments, 8))
    assert_best(codes, scores(arguments), 8)
    assert 0 < whole < rows


def near_ties(rows, width, latents):
    """Every latent has 20 neighbours that differ from it in the last bits of one weight."""
    arguments = random_encoder(rows, width, latents, scale=None)
    w = arguments["w_enc"][: latents // 20].repeat_interleave(20, dim=0)
    step = torch.arange(latents) % 20
    w[torch.arange(latents), step] *= 1 + 2.0**-22 * (1 + step)
    return arguments | {"w_enc": w, "b_enc": arguments["b_enc"] * 0}


@pytest.mark.parametrize("limit", [topk_int8.survivors_limit, lambda k, n_latents: k], ids=["screened", "whole"])
def test_near_ties_that_float32_cannot_tell_apart(limit, monkeypatch):
    monkeypatch.setattr(topk_int8, "survivors_limit", limit)
    arguments = near_ties(200, 200, 4000)
    codes = encode(arguments, 30)
    h = scores(arguments)
    wanted = h.sort(dim=1, descending=True, stable=True)
    # the 30th and 31st are neighbours, 2^-22 of one product apart
    gap = (wanted.values[:, 29] - wanted.values[:, 30]) / wanted.values[:, 29]
    assert 0 < gap.median() < 2.0**-22
    assert torch.equal(codes.indices.sort().values.long(), wanted.indices[:, :30].sort().values)


def bounds_and_scores(arguments):
    """Every score in float64 with the middle and the half width of its bounds, computed from the same terms."""
    x, w = arguments["x"], arguments["w_enc"]
    shift = arguments["b_dec"].double()
    prepared = int8_weights.prepare(w, x - arguments["b_dec"])
    rows = int8_weights.quantise(x, shift, -prepared.exponents)
    latents = int8_screening.latent_terms(prepared.rows, arguments["b_enc"], arguments.get("scale"))
    row = int8_screening.row_terms(rows)
    products = torch.empty(len(x), len(w), dtype=torch.int32)
    int8_product.multiply(rows.q, prepared.rows.q, products)
    middle = products.double() * row.step.double()[:, None] * latents.scale.double()
    spread = row.spread.double()[:, None] * latents.reach.double() + row.size.double()[:, None] * latents.error.double()
    low, high = latents.low.double(), latents.high.double()
    half = spread + 0.5 * (high - low)
    return scores(arguments), middle + 0.5 * (low + high), half


@pytest.mark.parametrize("change", [lambda arguments: arguments, massive], ids=["plain", "massive"])
def test_no_score_of_ten_million_lies_outside_of_its_bound(change):
    # rows are made of the directions of the latents, so that large scores are among them
    arguments = change(zipf_encoder(5000, 96, 2048))
    h, middle, half = bounds_and_scores(arguments)
    assert h.numel() > 10_000_000
    assert ((h - middle).abs() <= half).all()
    # and the bound is no looser than it has to be by orders of magnitude: a hundredth of it is broken by most pairs
    assert ((h - middle).abs() > 0.01 * half).float().mean() > 0.5


def test_bounds_as_the_kernels_compute_them_hold_for_every_pair():
    # k = M keeps and scores every pair, and every scored pair is held against its float32 bounds
    arguments = massive(zipf_encoder(2500, 40, 2048))
    before = screening_counts()
    codes = encode(arguments, 2048)
    assert screening_counts().scored - before.scored == 2500 * 2048
    assert screening_counts().worst <= 1
    assert_best(codes._replace(values=codes.values[:, :5], indices=codes.indices[:, :5]), scores(arguments), 5)


def test_bounds_that_are_too_tight_are_noticed(monkeypatch):
    terms = int8_screening.row_terms
    monkeypatch.setattr(
        int8_screening,
        "row_terms",
        lambda x: terms(x)._replace(spread=0.01 * terms(x).spread, size=0.01 * terms(x).size),
    )
    with pytest.raises(BackendUnavailable, match="scores lie outside of their proved bounds"):
        encode(zipf_encoder(50, 96, 2048), 32)


def test_a_product_that_saturates_is_noticed(monkeypatch):
    def saturating(x, w, out):
        out.copy_((x.int() @ w.int().T).clamp(-(2**15), 2**15 - 1))

    monkeypatch.setattr(int8_product, "multiply", saturating)
    int8_product._saturation.cache_clear()
    try:
        assert "failed the saturation test" in int8_product.missing()
        with pytest.raises(BackendUnavailable, match="cpu_int8: torch's int8 product is not exact here"):
            encode(zipf_encoder(50, 96, 2048), 32)
        # left to itself the library takes the next backend
        assert ops.topk_encode(**zipf_encoder(5, 512, 8192), k=32).values.shape == (5, 32)
    finally:
        int8_product._saturation.cache_clear()


def test_forced_on_a_processor_without_the_instructions(monkeypatch):
    class Module:
        def __getattr__(self, name):
            return getattr(native_module, name)

        def int8_product_refused(self):
            return "the processor has no AVX-512 VNNI"

    native_module = native.module()
    monkeypatch.setattr(native, "module", Module)
    with pytest.raises(BackendUnavailable, match="'cpu_int8' was asked for.*no AVX-512 VNNI"):
        encode(random_encoder(3, 64, 100), 5)


def test_forced_with_onednn_off():
    with (
        torch.backends.mkldnn.flags(enabled=False),
        pytest.raises(BackendUnavailable, match="oneDNN is absent or switched off"),
    ):
        encode(random_encoder(3, 64, 100), 5)


def test_threads_change_no_bits(threads):
    arguments = zipf_encoder(1300, 192, 3000)
    arguments["x"][7] = 0
    arguments["x"][8, 3] = torch.nan
    arguments["x"][9] = 1e30
    results = []
    for count in (1, 2, 3, 7):
        threads(count)
        forget_prepared_weights()
        results.append(encode(arguments, 24))
    finite = results[0].values.isfinite().all(dim=1)
    assert finite.sum() == 1299
    for other in results[1:]:
        assert torch.equal(other.indices, results[0].indices)
        assert torch.equal(other.values[finite], results[0].values[finite])


def test_a_row_alone_has_the_bits_it_has_in_a_batch():
    arguments = massive(zipf_encoder(60, 192, 3000))
    arguments["x"][3] = arguments["b_dec"]  # zero once centred
    arguments["x"][4] *= 1e12  # out of range: scored whole
    together = encode(arguments, 24)
    for cold in (True, False):
        for row in range(0, 60, 1 if not cold else 7):
            if cold:
                forget_prepared_weights()  # so that this row alone decides how channels are balanced
            alone = encode(arguments | {"x": arguments["x"][row : row + 1]}, 24)
            assert torch.equal(alone.values[0], together.values[row])
            assert torch.equal(alone.indices[0], together.indices[row])


def test_rows_scored_whole_have_the_bits_of_screened_rows(monkeypatch):
    arguments = zipf_encoder(150, 192, 3000)
    screened, whole, _ = whole_rows(lambda: encode(arguments, 24))
    assert whole == 0
    monkeypatch.setattr(topk_int8, "survivors_limit", lambda k, n_latents: k)
    scored_whole, whole, rows = whole_rows(lambda: encode(arguments, 24))
    assert whole > 0.9 * rows
    assert same(screened, scored_whole)


def test_rows_say_whether_bounds_have_settled_them():
    arguments = zipf_encoder(1100, 192, 3000)
    arguments["x"][[3, 700, 1099]] = arguments["b_dec"]  # every score is its bias
    arguments["x"][5, 0], arguments["x"][1030, 100] = torch.nan, torch.inf
    arguments["b_enc"][:] = 0.3
    (codes, certified), whole, _ = whole_rows(
        lambda: ops.topk_encode_certified(**arguments, k=24, relu=False, backend="cpu_int8")
    )
    assert (~certified).nonzero()[:, 0].tolist() == [3, 5, 700, 1030, 1099]
    assert whole == 5
    assert_best(TopKCodes(codes.values[certified], codes.indices[certified]), scores(arguments)[certified], 24)
    assert same(codes._replace(values=codes.values.nan_to_num(7)), _without_nan(encode(arguments, 24)))
    reference, none = ops.topk_encode_certified(**arguments, k=24, relu=False, backend="reference")
    assert torch.equal(codes.indices, reference.indices)
    assert not none.any()


def _without_nan(codes):
    return codes._replace(values=codes.values.nan_to_num(7))


@pytest.mark.parametrize("norm", ["layer_norm", "constant_norm_rescale"])
def test_normalised_rows_are_certified_too(norm):
    arguments = zipf_encoder(60, 192, 3000) | {"row_index": torch.tensor([7, 0, 59, 7])}
    codes, certified = ops.topk_encode_certified(**arguments, k=24, norm=norm, relu=False, backend="cpu_int8")
    seen = normalised(arguments["x"][arguments.pop("row_index")], norm)
    assert certified.all()
    assert_best(codes, scores(arguments | {"x": seen}), 24)


@pytest.mark.parametrize("size", [1e-44, 1e-38, 1e-20, 1e-12, 1e12, 1e25, 3e38])
def test_sizes_from_denormal_to_the_largest(size):
    arguments = random_encoder(20, 65, 700, scale=None)
    arguments["x"] = arguments["x"].clamp(-1, 1) * size
    arguments["b_dec"], arguments["b_enc"] = None, arguments["b_enc"] * size
    assert_best(encode(arguments, 16), scores(arguments), 16)


@pytest.mark.parametrize("size", [1e-44, 1e-30, 1e-12, 1e12, 1e25, 1e37])
def test_sizes_of_weights_and_scales(size):
    arguments = random_encoder(20, 65, 700, b_dec=None)
    tiny = arguments | {"w_enc": arguments["w_enc"] * size, "b_enc": arguments["b_enc"] * size}
    assert_best(encode(tiny, 16), scores(tiny), 16)
    scaled = arguments | {"scale": arguments["scale"] * size}
    h = scores(scaled)
    codes = encode(scaled, 16)
    assert torch.equal(codes.indices.long(), h.sort(dim=1, descending=True, stable=True).indices[:, :16])


def test_one_latent_of_another_size_than_the_rest():
    arguments = random_encoder(50, 65, 700)
    arguments["w_enc"][13] *= 1e20
    arguments["w_enc"][14] *= 1e-20
    arguments["scale"][15], arguments["scale"][16], arguments["scale"][17] = 0.0, -2.0, 1e-15
    for k in (1, 20, 700):
        assert_best(encode(arguments, k), scores(arguments), k)


def test_rows_of_zeros_and_of_equal_scores():
    arguments = zipf_encoder(6, 192, 3000)
    arguments["x"][:] = arguments["b_dec"]
    assert_best(encode(arguments, 24), arguments["b_enc"].double().expand(6, -1), 24)
    codes, whole, rows = whole_rows(lambda: encode(arguments | {"b_enc": torch.full((3000,), 0.3)}, 24))
    assert codes.indices.tolist() == [list(range(24))] * 6
    assert whole == rows == 6


def test_dead_latents_masked_by_minus_infinity():
    arguments = zipf_encoder(100, 192, 3000)
    arguments["b_enc"][::3] = -torch.inf
    codes, whole, _ = whole_rows(lambda: encode(arguments, 24))
    assert whole == 0
    assert (codes.indices % 3 != 0).all()
    h = scores(arguments)
    assert torch.equal(codes.indices.long(), h.sort(dim=1, descending=True, stable=True).indices[:, :24])


@pytest.mark.parametrize("place", ["x", "w_enc", "b_enc", "b_dec", "scale"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_not_finite(place, value):
    arguments = random_encoder(30, 65, 700)
    arguments[place].view(-1)[5] = value
    h = scores(arguments)
    codes = encode(arguments, 16)
    spoilt = h.isnan().any(dim=1)
    assert codes.values[spoilt].isnan().all()
    assert (codes.indices[spoilt] == torch.arange(16)).all()
    wanted = h[~spoilt].sort(dim=1, descending=True, stable=True)
    assert torch.equal(codes.indices[~spoilt].long(), wanted.indices[:, :16])
    assert torch.allclose(codes.values[~spoilt].double(), wanted.values[:, :16], rtol=1e-6)


ISAS = native.module().instruction_sets() if not native.missing() else []


@pytest.mark.parametrize("isa", ISAS)
def test_products_are_rounded_before_they_are_added(isa, monkeypatch):
    # channels 0 and 32 share a partial sum and cancel, unless a fused operation keeps the tail of one product
    x, w = torch.zeros(1, 40), torch.zeros(9, 40)
    x[:, [0, 32]] = 1.0
    w[:, 0] = normal(9)
    w[:, 32] = -w[:, 0]
    b_dec = torch.zeros(40)
    b_dec[[0, 32]] = 2.0**-29 / 3  # 1 - this takes all bits of a float64
    screen = native.ScreenedTopK
    monkeypatch.setattr(native, "ScreenedTopK", lambda *sizes: screen(*sizes, isa=isa))
    codes = encode({"x": x, "w_enc": w, "b_enc": torch.zeros(9), "b_dec": b_dec}, 9)
    assert codes.values.tolist() == [[0.0] * 9]
    assert codes.indices.tolist() == [list(range(9))]


@pytest.mark.parametrize("isa", ISAS)
def test_instruction_sets_give_the_same_bits(isa, monkeypatch):
    arguments = massive(zipf_encoder(70, 193, 3001, scale=normal(3001, seed=9).abs() + 0.5))
    wanted = encode(arguments, 24)
    screen, quantise = native.ScreenedTopK, int8_screening.quantise
    monkeypatch.setattr(native, "ScreenedTopK", lambda *sizes: screen(*sizes, isa=isa))
    monkeypatch.setattr(int8_screening, "quantise", lambda *rows: quantise(*rows, isa=isa))
    assert same(encode(arguments, 24), wanted)
    quantised = quantise(arguments["x"], torch.zeros(193).double(), torch.zeros(193).double(), isa=isa)
    y = rotated(arguments["x"])
    error = (y - quantised.steps.double()[:, None] * quantised.q.double()).norm(dim=1)
    torch.testing.assert_close(quantised.errors, error, rtol=1e-12, atol=0)
    torch.testing.assert_close(quantised.norms, arguments["x"].double().norm(dim=1), rtol=1e-12, atol=0)
    # the largest number of a row takes all of the byte
    assert (quantised.q.abs().amax(dim=1) == 127).all()
    torch.testing.assert_close(quantised.steps, (y.abs().amax(dim=1) / 127).float(), rtol=1e-6, atol=0)


@pytest.fixture(scope="module")
def minilm_encoder(real, minilm):
    """2,048 token activations of MATH problems and the encoder that was trained on such."""
    from saerl_fast.extract.inputs import read_table
    from saerl_fast.extract.reader import make_reader
    from saerl_fast.extract.stream import ActivationStream
    from saerl_fast.formats import load_sae

    sae = load_sae(real / "models" / "minilm-l4-topk32-4096")
    texts = [row["problem"] for row in read_table(str(real / "data" / "math_train.jsonl.gz"))[:400]]
    reader = make_reader(minilm, sae)
    x = next(ActivationStream(texts, reader, batch_rows=2048, buffer_rows=8192, max_length=256))
    return {"x": sae.prepare(x), "w_enc": sae.w_enc, "b_enc": sae.b_enc, "b_dec": sae.b_dec, "scale": sae.latent_scale}


@pytest.mark.real
@pytest.mark.parametrize("change", [lambda arguments: arguments, massive], ids=["plain", "massive"])
def test_real_activations(minilm_encoder, change):
    arguments = change(minilm_encoder)
    forget_prepared_weights()
    before = screening_counts()
    codes, whole, _ = whole_rows(lambda: encode(arguments, 32))
    assert_best(codes, scores(arguments), 32)
    after = screening_counts()
    # most rows are screened, and in these most latents are ruled out by the bytes alone
    assert whole <= 0.05 * 2048
    assert after.sieved - before.sieved + after.scored - before.scored < 0.15 * 2048 * 4096
    assert after.worst <= 1
