"""The sanity of an SAE in a run: a fitting one is silent, a wrong one is loud, and the shards know nothing of it."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from saerl_fast import featurize
from saerl_fast.errors import InputError, MismatchWarning
from saerl_fast.extract.sanity import promised_l0, what_is_off
from saerl_fast.extract.store import SANITY
from saerl_fast.sae import SAE, SAESanity, sanity
from tests import tiny


def fitting_sae(d=32, **settings):
    """It reconstructs exactly: the channels and their negatives as latents of a ReLU SAE."""
    eye = torch.cat([torch.eye(d), -torch.eye(d)])
    zero = torch.zeros(2 * d)
    defaults = {"kind": "standard", "metadata": {"hook_name": "blocks.1.hook_resid_post", "l0": d}}
    return SAE(w_enc=eye, b_enc=zero, w_dec=eye.clone(), b_dec=torch.zeros(d), **{**defaults, **settings})


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


def test_no_room_for_the_sample_is_said_and_ends_nothing(caplog):
    model, calls = tiny.causal_lm(), []

    def once(*_):
        calls.append(1)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = model.model.layers[0].register_forward_hook(once)
    features = featurize(tiny.texts(3), model, fitting_sae(), tokenizer=tiny.tokenizer(), progress=False)
    handle.remove()
    assert len(features) == 3
    assert "sanity: not measured, the device had no room" in caplog.text
