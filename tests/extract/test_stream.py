"""The activation stream: every token's row, from the hooked block, in a new order each pass."""

import itertools

import pytest
import torch

from saerl_fast.errors import InputError
from saerl_fast.extract.hooks import block_output
from saerl_fast.extract.reader import Reader
from saerl_fast.extract.stream import ActivationStream, read_rows
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
    stream = ActivationStream(TEXTS, reader, batch_rows=1, buffer_rows=2, max_length=64, tokens_per_batch=64)
    got = torch.cat(list(itertools.islice(stream, len(wanted))))
    nearest = torch.cdist(got.double(), wanted.double()).min(dim=1)
    assert nearest.values.max() < 1e-4
    # distinct tokens at distinct places have distinct rows: one pass hits nearly all of them
    assert len(nearest.indices.unique()) > 0.9 * len(wanted)


def test_it_is_shuffled_endless_and_deterministic(reader):
    call = {"batch_rows": 16, "buffer_rows": 256, "max_length": 64}
    one = list(itertools.islice(ActivationStream(TEXTS, reader, seed=3, **call), 60))
    two = list(itertools.islice(ActivationStream(TEXTS, reader, seed=3, **call), 60))
    other = list(itertools.islice(ActivationStream(TEXTS, reader, seed=4, **call), 60))
    assert all(batch.shape == (16, tiny.WIDTH) for batch in one)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("batches", [0, 1, 7, 24, 41])
def test_a_restored_stream_goes_on_with_the_same_bits(reader, batches):
    """Inside a pass, over its end, and from the very start; blocks of a few texts, a buffer of many."""
    call = {"batch_rows": 16, "buffer_rows": 100, "max_length": 64, "tokens_per_batch": 64}
    one, two = ActivationStream(TEXTS, reader, seed=3, **call), ActivationStream(TEXTS, reader, seed=4, **call)
    for _ in range(batches):
        next(one)
    state = {name: tensor.clone() for name, tensor in one.state().items()}
    wanted = list(itertools.islice(one, 40))
    two.restore(state)
    assert all(torch.equal(a, b) for a, b in zip(wanted, itertools.islice(two, 40), strict=True))


def test_the_first_tokens_are_left_out(reader):
    whole = torch.cat(list(read_rows(TEXTS, reader, 64, 4096)))
    # BOS is the first of them, and is no row anyway
    found = torch.cat(list(read_rows(TEXTS, reader, 64, 4096, skip_first=2)))
    assert len(whole) - len(found) == len(TEXTS)
    assert torch.cdist(found.double(), whole.double()).min(dim=1).values.max() < 1e-4


def test_bad_input(reader):
    with pytest.raises(InputError, match="at least twice"):
        next(ActivationStream(TEXTS, reader, batch_rows=16, buffer_rows=31, max_length=64))
    with pytest.raises(InputError, match="none of the 2 texts"):
        next(ActivationStream(["", None], reader, batch_rows=1, buffer_rows=2, max_length=64))
