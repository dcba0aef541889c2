"""Prepared weights: made once, and never stale."""

import numpy as np
import pytest
import torch

from saerl_fast.kernels import int8_product, int8_weights
from tests.kernels.int8_cases import assert_best, encode, forget_prepared_weights, massive, normal, scores, zipf_encoder

pytestmark = pytest.mark.skipif(bool(int8_product.missing()), reason=str(int8_product.missing()))


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.mul_(-1),
        lambda w: w.data.mul_(-1),
        lambda w: np.negative(w.numpy(), out=w.numpy()),
        lambda w: w.data[:, 1::64].mul_(-1),
        lambda w: w[1234].mul_(3),
    ],
    ids=["in_place", "data", "numpy", "every_64th_sign", "one_row"],
)
def test_weights_changed_in_place_are_seen(change):
    arguments = zipf_encoder(40, 192, 3000)
    arguments["w_enc"] = arguments["w_enc"].clone()
    assert_best(encode(arguments, 24), scores(arguments), 24)
    change(arguments["w_enc"])
    assert_best(encode(arguments, 24), scores(arguments), 24)


def test_the_smallest_change_of_any_one_weight_changes_the_fingerprint():
    w = normal(37, 129)
    seen = {int8_weights.fingerprint(w)}
    for at in range(0, w.numel(), 53):
        changed = w.clone()
        changed.view(torch.int32).view(-1)[at] ^= 1 << (at % 32)
        seen.add(int8_weights.fingerprint(changed))
    assert len(seen) == 1 + len(range(0, w.numel(), 53))


def test_weights_are_prepared_once(monkeypatch):
    prepared = []
    prepare = int8_weights.prepare
    monkeypatch.setattr(int8_weights, "prepare", lambda *words: prepared.append(1) or prepare(*words))
    forget_prepared_weights()
    arguments = zipf_encoder(40, 192, 3000)
    for _ in range(3):
        encode(arguments, 24)
    assert len(prepared) == 1
    # a sample of 40 rows gives way to one of 400
    encode(zipf_encoder(400, 192, 3000) | {"w_enc": arguments["w_enc"]}, 24)
    encode(arguments, 24)
    assert len(prepared) == 2


def test_a_sample_unlike_what_follows_costs_no_exactness():
    forget_prepared_weights()
    arguments = zipf_encoder(200, 192, 3000)
    encode(arguments | {"x": arguments["x"][:1] * 0}, 24)
    assert_best(encode(arguments, 24), scores(arguments), 24)
    assert_best(encode(massive(arguments), 24), scores(massive(arguments)), 24)
