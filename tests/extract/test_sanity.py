"""The sanity of an SAE in a run: a fitting one is silent, a wrong one is loud, and the shards know nothing of it."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from saerl_fast import featurize
from saerl_fast.errors import InputError, MismatchWarning
from saerl_fast.extract.sample import Sample
from saerl_fast.extract.sanity import Fired, promised_l0, what_is_off
from saerl_fast.extract.store import SANITY
from saerl_fast.formats import load_sae
from saerl_fast.sae import SAE, SAESanity, sanity
from tests import tiny


def fitting_sae(d=32, **settings):
    """It reconstructs exactly: the channels and their negatives as latents of a ReLU SAE."""
    eye = torch.cat([torch.eye(d), -torch.eye(d)])
    defaults = {"kind": "standard", "metadata": {"hook_name": "blocks.1.hook_resid_post", "l0": d}}
    defaults |= {"w_enc": eye, "b_enc": torch.zeros(2 * d), "w_dec": eye.clone(), "b_dec": torch.zeros(d)}
    return SAE(**{**defaults, **settings})


def run(sae, tmp_path=None, **settings):
    return featurize(
        tiny.texts(40), tiny.causal_lm(), sae, tokenizer=tiny.tokenizer(), out=tmp_path, progress=False, **settings
    )


def test_a_fitting_sae_is_silent_and_leaves_its_figures_beside_the_shards(tmp_path, caplog):
    with warnings.catch_warnings(), caplog.at_level("INFO", logger="saerl_fast"):
        warnings.simplefilter("error", MismatchWarning)
        run(fitting_sae(), tmp_path / "out")
    found = json.loads((tmp_path / "out" / SANITY).read_text())
    assert found["explained_variance"] == pytest.approx(1, abs=1e-6)
    assert (found["l0"], found["promised_l0"], found["dead_share"]) == (pytest.approx(32, abs=0.1), 32, 0)
    assert found["norm_ratio"] == pytest.approx(1, abs=1e-6)
    assert found["rows"] > 100
    assert (found["warnings"], found["model"], found["nonfinite"]) == ([], "Qwen2ForCausalLM", 0)
    assert "SAE sanity" in caplog.text
    assert "explained variance 1.00, 32.0 of 64 latents active (made for 32)" in caplog.text


def test_an_sae_of_another_model_is_loud(tmp_path):
    with pytest.warns(MismatchWarning, match="variance of what is read; below 0.3 it was made for another model"):
        run(tiny.sae(), tmp_path / "out")
    found = json.loads((tmp_path / "out" / SANITY).read_text())
    assert "another model, layer or scale" in found["warnings"][0]
    with pytest.warns(MismatchWarning, match="below 0.3"):
        run(tiny.sae())


def test_a_wrong_threshold_is_loud():
    deaf = fitting_sae(kind="jumprelu", threshold=torch.full((64,), 1e9))
    with pytest.warns(MismatchWarning, match="0.0 latents are active on a token; the SAE was made for 32"):
        run(deaf)
    with pytest.warns(MismatchWarning, match="these features are not sparse"):
        run(fitting_sae(metadata={"hook_name": "blocks.1.hook_resid_post"}))


def test_the_shards_do_not_know_of_it_and_a_run_that_goes_on_does_not_measure_again(tmp_path, monkeypatch):
    run(fitting_sae(), tmp_path / "out", shard_rows=10)
    shards = {path.name: path.read_bytes() for path in sorted((tmp_path / "out" / "shards").iterdir())}
    (tmp_path / "out" / SANITY).unlink()
    (tmp_path / "out" / SANITY).write_text("{}")
    monkeypatch.setattr("saerl_fast.extract.sanity.sanity", lambda *_: pytest.fail("measured again"))
    again = run(fitting_sae(), tmp_path / "out", shard_rows=10)
    assert {path.name: path.read_bytes() for path in sorted((tmp_path / "out" / "shards").iterdir())} == shards
    plain = np.asarray(again.to_scipy().todense())
    monkeypatch.undo()
    assert np.array_equal(plain, np.asarray(run(fitting_sae(), shard_rows=10).to_scipy().todense()))


def test_texts_without_a_token_and_transcoders_have_nothing_to_say_of_variance(tmp_path):
    featurize(
        ["", None], tiny.causal_lm(), fitting_sae(), tokenizer=tiny.tokenizer(), out=tmp_path / "a", progress=False
    )
    assert not (tmp_path / "a" / SANITY).exists()
    transcoder = replace(tiny.transcoder(), metadata={"hook_name": "blocks.1.hook_resid_post"})
    run(transcoder, tmp_path / "b")
    found = json.loads((tmp_path / "b" / SANITY).read_text())
    assert found["explained_variance"] is None
    assert found["l0"] > 0


def test_a_massive_first_token_does_not_hide_what_the_others_show():
    sae = fitting_sae(kind="topk", k=4)
    rows = torch.randn(200, 32, generator=torch.Generator().manual_seed(0))
    plain = sanity(sae, rows)
    rows[0] *= 1e4
    spoilt = sanity(sae, rows)
    assert spoilt.outliers == 1
    assert spoilt.explained_variance == pytest.approx(plain.explained_variance, abs=0.02)
    assert 0.2 < plain.explained_variance < 0.8
    rows[1] = torch.nan
    assert sanity(sae, rows).outliers == 2
    with pytest.raises(InputError, match="at least one row"):
        sanity(sae, rows[:0])
    with pytest.raises(InputError, match="all hold NaN"):
        sanity(sae, rows[1:2])


def test_what_is_off_is_judged_by_what_was_promised():
    good = SAESanity(explained_variance=0.8, l0=30.0, dead_share=0.1)
    sae = fitting_sae()
    assert what_is_off(good, sae, rows=1000) == []
    assert what_is_off(replace(good, explained_variance=-5.0), sae, rows=63) == []
    assert len(what_is_off(replace(good, explained_variance=0.29, l0=65.0), sae, rows=64)) == 2
    assert len(what_is_off(replace(good, l0=15.9), sae, rows=64)) == 1
    assert promised_l0(tiny.sae()) == 8
    assert promised_l0(tiny.sae("standard")) is None


def test_no_room_for_the_sample_is_said_and_ends_nothing(monkeypatch, caplog):
    def no_room(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("saerl_fast.extract.sanity.sanity", no_room)
    features = featurize(tiny.texts(3), tiny.causal_lm(), fitting_sae(), tokenizer=tiny.tokenizer(), progress=False)
    assert len(features) == 3
    assert "sanity: not measured, the device had no room" in caplog.text


def test_the_sample_is_even_and_of_every_batch(monkeypatch):
    for tokens in (1, 511, 512, 1023, 1024, 5000):
        rows = torch.arange(3.0 * tokens)[:, None]
        kept = torch.arange(0, 3 * tokens, 3)
        sample = Sample(tokens)
        for part in kept.split(7):
            sample.of(rows, part)  # a batch that ran out of memory comes again
            sample.take(sample.of(rows, part), len(part))
        assert torch.equal(sample.rows(), rows[kept[:: max(1, tokens // 512)]])
    assert Sample(0).rows() is None


def test_the_first_shard_that_tells_anything_is_judged_and_the_run_reads_no_token_twice(tmp_path, monkeypatch):
    from saerl_fast.extract.capture import Capture

    seen, real = [], Capture.__call__
    monkeypatch.setattr(Capture, "__call__", lambda self, batch: seen.append(len(batch.kept)) or real(self, batch))
    texts = [*[""] * 10, *tiny.texts(30)]
    call = {"tokenizer": tiny.tokenizer(), "shard_rows": 10, "progress": False}
    features = featurize(texts, tiny.causal_lm(), fitting_sae(), out=tmp_path, **call)
    assert sum(seen) == features.n_tokens.sum()
    found = json.loads((tmp_path / SANITY).read_text())
    assert found["rows"] == features.n_tokens[10:20].sum()


def test_norms_are_judged_and_are_not_where_there_are_none():
    good, sae = SAESanity(explained_variance=0.8, l0=30.0, dead_share=0.1, norm=5.0, norm_ratio=0.9), fitting_sae()
    for ratio, text in ((0.49, "0.49 times as long"), (1.26, "1.26 times as long"), (40.0, "40.00 times as long")):
        (doubt,) = what_is_off(replace(good, norm_ratio=ratio), sae, rows=64)
        assert text in doubt
    for ratio in (0.5, 1.25, float("nan")):
        assert what_is_off(replace(good, norm_ratio=ratio), sae, rows=64) == []


def test_dead_latents_are_judged_where_the_tokens_suffice_to_know():
    sae = tiny.sae("topk", d_sae=1000, k=10)
    found = SAESanity(explained_variance=0.8, l0=10.0, dead_share=0.91, norm=5.0, norm_ratio=0.9)
    assert what_is_off(found, sae, rows=999) == []
    assert what_is_off(found, sae, rows=1000) == ["91.0% of 1000 latents are active on none of 1000 tokens"]
    assert what_is_off(replace(found, outliers=1), sae, rows=1000) == []
    assert what_is_off(replace(found, dead_share=0.9), sae, rows=100_000) == []
    # the same few on every token is no matter of how many tokens
    assert what_is_off(replace(found, dead_share=0.98), sae, rows=64) == []
    (doubt,) = what_is_off(replace(found, dead_share=0.981), sae, rows=64)
    assert doubt == "the same 19 of 1000 latents are active on all tokens, 10.0 on each"


def test_an_sae_that_says_the_same_of_every_token_is_loud(tmp_path):
    """A bias that drowns what is read: what a forgotten norm or b_dec does."""
    drowned = tiny.transcoder("topk", d_sae=400)
    b_enc = torch.zeros(400)
    b_enc[:8] = 1e4
    drowned = replace(drowned, b_enc=b_enc, metadata={"hook_name": "blocks.1.hook_resid_post"})
    with pytest.warns(MismatchWarning, match="the same 8 of 400 latents are active on all tokens, 8.0 on each"):
        run(drowned, tmp_path)


def test_a_scale_that_is_off_is_loud(tmp_path):
    """Only the length shows it: an SAE whose decoder is 1.5 times too long still explains 0.75 of the variance."""
    sae = fitting_sae()
    with pytest.warns(MismatchWarning, match="1.50 times as long as what is read, and 0.5 to 1.25 times is usual"):
        run(replace(sae, w_dec=sae.w_dec * 1.5), tmp_path)
    (doubt,) = json.loads((tmp_path / SANITY).read_text())["warnings"]
    assert "times as long" in doubt


def test_another_model_and_another_place_are_among_the_warnings_that_are_kept(tmp_path):
    sae = fitting_sae(metadata={"hook_name": "blocks.1.hook_resid_post", "model_name": "gpt2-small", "l0": 32})
    with pytest.warns(MismatchWarning) as told:
        run(sae, tmp_path, layer=2)
    kept = json.loads((tmp_path / SANITY).read_text())["warnings"]
    assert ["the SAE was trained on gpt2-small" in doubt for doubt in kept] == [True, False]
    assert kept[1] == "the SAE was trained on blocks.1.hook_resid_post, blocks.2.hook_resid_post is read"
    assert sorted(str(warning.message) for warning in told) == sorted(kept)  # each once


def test_silent_latents_of_a_whole_run_are_told_at_its_end(tmp_path, caplog):
    """The sample is too short to judge by, all texts together are not."""
    wide = fitting_sae()
    silent = torch.zeros(1000, 32)
    wide = replace(
        wide, w_enc=torch.cat([wide.w_enc, silent]), w_dec=torch.cat([wide.w_dec, silent]),
        b_enc=torch.cat([wide.b_enc, torch.full((1000,), -1.0)]),
    )  # fmt: skip
    texts = tiny.texts(60, longest=14)
    call = {"tokenizer": tiny.tokenizer(), "progress": False, "shard_rows": 20}

    def told(chosen, out=None, **settings):
        caplog.clear()
        with warnings.catch_warnings(record=True) as found, caplog.at_level("INFO", logger="saerl_fast"):
            warnings.simplefilter("always")
            featurize(chosen, tiny.causal_lm(), wide, out=out, **call, **settings)
        assert caplog.text.count("of 1064 latents are active on none of") == 1
        return [str(warning.message) for warning in found if "active on none" in str(warning.message)]

    for out in (None, tmp_path):
        (doubt,) = told(texts, out)
        assert "94.0% of 1064 latents are active on none of" in doubt
    assert len(told(texts, tmp_path)) == 1  # all shards read back
    assert told(texts[:20]) == []
    assert told(texts, pool="last") == []  # 60 tokens


def test_tokens_are_counted_by_what_was_pooled():
    fired = Fired(tiny.sae("topk", d_sae=96), "mean")
    features = featurize(tiny.texts(5), tiny.causal_lm(), tiny.sae(), tokenizer=tiny.tokenizer(), progress=False)
    fired.add(features)
    assert fired._tokens == features.n_tokens.sum()
    assert fired._seen.sum() == len(np.unique(features.indices))


@pytest.mark.parametrize("seed", range(5))
def test_random_saes_that_fit_are_silent(seed):
    """The axes of a random rotation, both ways: untrained, and as good as any of its sparsity on a random model."""
    turned, _ = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(seed)))
    axes = torch.cat([turned, -turned])
    metadata = {"hook_name": "blocks.1.hook_resid_post"}
    for settings in (
        {"kind": "topk", "k": 6, "metadata": metadata},
        {"kind": "topk", "k": 12, "metadata": metadata},
        {"kind": "standard", "metadata": {**metadata, "l0": 32}},
        {"kind": "abstopk", "k": 6, "metadata": metadata, "w_enc": turned, "w_dec": turned, "b_enc": torch.zeros(32)},
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error", MismatchWarning)
            run(fitting_sae(**{"w_enc": axes, "w_dec": axes, **settings}))


@pytest.mark.real
def test_the_real_sae_is_silent_on_texts_of_its_own_and_on_others(real, minilm, tmp_path):
    import gzip

    sae = load_sae(real / "models" / "minilm-l4-topk32-4096")
    for name in ("math_train", "gsm8k_train", "svamp"):
        with gzip.open(real / "data" / f"{name}.jsonl.gz", "rt") as file:
            rows = [json.loads(line) for line, _ in zip(file, range(100), strict=False)]
        texts = [row["problem"] for row in rows]
        with warnings.catch_warnings():
            warnings.simplefilter("error", MismatchWarning)
            featurize(texts, minilm, sae, out=tmp_path / name, progress=False)
        assert json.loads((tmp_path / name / SANITY).read_text())["warnings"] == []
