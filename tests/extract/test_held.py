"""Batches held until they are encoded together: none is lost, doubled or moved, and the bits do not change."""

import numpy as np
import pytest
import torch

import saerl_fast
from saerl_fast.extract import held
from saerl_fast.extract import shard as shard_module
from saerl_fast.extract.held import Held
from saerl_fast.kernels import int8_product, topk_int8
from saerl_fast.kernels.screening_counts import screening_counts
from tests import tiny


class Encoded:
    """Notes what it is handed: the calls, and the rows of every text in order."""

    def __init__(self):
        self.calls, self.texts = [], []

    def __call__(self, flat, kept, offsets):
        rows = flat if kept is None else flat[kept]
        assert offsets[0] == 0
        assert offsets[-1] == len(rows)
        self.calls.append((len(rows), kept is None))
        self.texts += [rows[a:b].clone() for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)]


def batches(generator, shape, most=9):
    for _ in range(int(generator.integers(0, 12))):
        sizes = generator.integers(0, most, int(generator.integers(1, 5)))
        kept = torch.from_numpy(np.sort(generator.choice(60, sizes.sum(), replace=False)))
        yield torch.randn(60, *shape), kept, torch.from_numpy(np.concatenate([[0], np.cumsum(sizes)]))


@pytest.mark.parametrize("shape", [(3,), (2, 3)])
@pytest.mark.parametrize("room", [0, 1, 16, 20, 4096])
def test_every_text_is_encoded_once_and_in_order(monkeypatch, room, shape):
    monkeypatch.setattr(held, "HELD_TOKENS", room)
    generator = np.random.default_rng(room)
    for _ in range(20):
        encoded, wanted = Encoded(), []
        waiting = Held(encoded)
        for flat, kept, offsets in batches(generator, shape):
            waiting.add(flat, kept, offsets)
            wanted += [flat[kept[a:b]] for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)]
            flat.fill_(torch.nan)  # the memory of a forward is its own again
        waiting.flush()
        waiting.flush()
        assert len(encoded.texts) == len(wanted)
        for found, text in zip(encoded.texts, wanted, strict=True):
            assert torch.equal(found, text)
        assert all(together == (size <= room) for size, together in encoded.calls)


def test_wide_activations_are_held_by_their_numbers(monkeypatch):
    monkeypatch.setattr(held, "HELD_NUMBERS", 100)
    encoded = Encoded()
    waiting = Held(encoded)
    for size in (4, 4, 4, 11):
        waiting.add(torch.ones(12, 10), torch.arange(size), torch.tensor([0, size]))
    waiting.flush()
    assert encoded.calls == [(8, True), (4, True), (11, False)]


def test_what_fails_is_not_held_and_what_was_held_is():
    encoded, fails = Encoded(), [True]

    def encode(*arguments):
        if fails[0]:
            raise torch.OutOfMemoryError
        encoded(*arguments)

    waiting = Held(encode)
    first, second = torch.randn(3000, 2), torch.randn(3000, 2)
    waiting.add(first, torch.arange(3000), torch.tensor([0, 3000]))
    with pytest.raises(torch.OutOfMemoryError):
        waiting.add(second, torch.arange(3000), torch.tensor([0, 3000]))
    fails[0] = False
    waiting.add(second, torch.arange(1000), torch.tensor([0, 1000]))
    waiting.flush()
    assert [size for size, _ in encoded.calls] == [4000]
    assert torch.equal(encoded.texts[0], first)
    assert torch.equal(encoded.texts[1], second[:1000])


@pytest.mark.parametrize("kind", ["topk", "abstopk", "jumprelu", "standard", "gated"])
@pytest.mark.parametrize("keep_hidden", [False, True])
def test_features_are_those_of_batches_encoded_one_by_one(monkeypatch, kind, keep_hidden):
    call = {"tokenizer": tiny.tokenizer(), "tokens_per_batch": 90, "shard_rows": 20, "progress": False}
    call |= {"texts": [*tiny.texts(43), "", None], "model": tiny.causal_lm(), "sae": tiny.sae(kind)}
    encodes = []
    real = shard_module.SAE.encode_spaced
    monkeypatch.setattr(shard_module.SAE, "encode_spaced", lambda *args: encodes.append(len(args[1])) or real(*args))
    together = saerl_fast.featurize(**call, keep_hidden=keep_hidden)
    few, encodes[:] = len(encodes), []
    monkeypatch.setattr(held, "HELD_TOKENS", 0)
    alone = saerl_fast.featurize(**call, keep_hidden=keep_hidden)
    assert few < len(encodes) / 2
    np.testing.assert_array_equal(together.indptr, alone.indptr)
    np.testing.assert_array_equal(together.indices, alone.indices)
    # the float32 product may round by the number of its rows
    np.testing.assert_allclose(together.values, alone.values, rtol=1e-5, atol=1e-6)
    if keep_hidden:
        np.testing.assert_array_equal(together.hidden, alone.hidden)


def test_int8_screening_gives_the_same_bits_however_tokens_are_held(monkeypatch):
    call = {"tokenizer": tiny.tokenizer(), "tokens_per_batch": 90, "progress": False}
    call |= {"texts": tiny.texts(43), "model": tiny.causal_lm(), "sae": tiny.sae()}
    if reason := int8_product.missing():
        pytest.skip(reason)
    monkeypatch.setattr(topk_int8, "pays", lambda *_: True)
    rows, found = screening_counts().rows, []
    for room in (0, 100, 4096):
        monkeypatch.setattr(held, "HELD_TOKENS", room)
        found.append(saerl_fast.featurize(**call))
    assert screening_counts().rows > rows
    for other in found[1:]:
        np.testing.assert_array_equal(other.indices, found[0].indices)
        np.testing.assert_array_equal(other.values, found[0].values)
