"""The activation stream: every token's row, from the hooked block, in a new order each pass."""

import itertools

import pytest
import torch

from saerl_fast.errors import InputError
from saerl_fast.extract.hooks import block_output
from saerl_fast.extract.reader import Reader
from saerl_fast.extract.stream import stream_activations
from tests import tiny

TEXTS = tiny.texts(40)


@pytest.fixture(scope="module")
def reader():
    return Reader(tiny.causal_lm(), tiny.tokenizer(), block_output(1), "tiny")


def all_rows(reader):
    rows = []
    for text in TEXTS:
        with torch.no_grad():
            ids = torch.tensor([reader.tokenizer(text)["input_ids"]])
            rows.append(reader.model(input_ids=ids, output_hidden_states=True).hidden_states[2][0, 1:])
    return torch.cat(rows)


def test_one_pass_holds_every_token_once(reader):
    wanted = all_rows(reader)
    stream = stream_activations(TEXTS, reader, batch_rows=1, buffer_rows=2, max_length=64, tokens_per_batch=64)
    got = torch.cat(list(itertools.islice(stream, len(wanted))))
    nearest = torch.cdist(got.double(), wanted.double()).min(dim=1)
    assert nearest.values.max() < 1e-4
    # distinct tokens at distinct places have distinct rows: one pass hits nearly all of them
    assert len(nearest.indices.unique()) > 0.9 * len(wanted)


def test_it_is_shuffled_endless_and_deterministic(reader):
    call = {"batch_rows": 16, "buffer_rows": 256, "max_length": 64}
    one = list(itertools.islice(stream_activations(TEXTS, reader, seed=3, **call), 60))
    two = list(itertools.islice(stream_activations(TEXTS, reader, seed=3, **call), 60))
    other = list(itertools.islice(stream_activations(TEXTS, reader, seed=4, **call), 60))
    assert all(batch.shape == (16, tiny.WIDTH) for batch in one)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_bad_input(reader):
    with pytest.raises(InputError, match="at least twice"):
        next(stream_activations(TEXTS, reader, batch_rows=16, buffer_rows=31, max_length=64))
    with pytest.raises(InputError, match="none of the 2 texts"):
        next(stream_activations(["", None], reader, batch_rows=1, buffer_rows=2, max_length=64))
