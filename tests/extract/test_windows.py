"""Long texts in windows: which token counts where, and that all windows of a text are pooled as one text."""

import numpy as np
import pytest
import torch

import saerl_fast
from saerl_fast.errors import InputError
from saerl_fast.extract.tokens import tokenize
from saerl_fast.extract.windows import tokenize_windows
from tests import tiny
from tests.test_sae import dense

LONG = " ".join(tiny.WORDS * 3)
WORDS = LONG.split()


def whole(text, **forms):
    return tokenize([text], tiny.tokenizer(**forms), 10**6)[0]


def cut(text, limit, stride=None, *, bos=True, eos=False, **settings):
    pieces, owner = tokenize_windows([text], tiny.tokenizer(bos=bos, eos=eos), limit, stride, **settings)
    assert owner.tolist() == [0] * len(pieces)
    return pieces


@pytest.mark.parametrize("forms", [{"bos": True}, {"bos": False}, {"eos": True}])
@pytest.mark.parametrize(("limit", "stride"), [(10, None), (10, 3), (10, 8), (10, 10), (4, 1), (63, None), (40, 39)])
def test_every_token_counts_once_and_in_order(limit, stride, forms):
    text = whole(LONG, **forms)
    windows = cut(LONG, limit, stride, **forms)
    counted = np.concatenate([window.input_ids[window.pooled] for window in windows])
    assert counted.tolist() == text.input_ids[text.pooled].tolist()
    assert all(len(window) <= limit for window in windows)
    assert {window.status for window in windows} == {"windowed"}
    lead, tail = int(forms.get("bos", True)), int(forms.get("eos", False))
    capacity = limit - lead - tail
    body = text.input_ids[lead : len(text) - tail]
    for number, window in enumerate(windows):  # the definition, word for word
        start = number * min(stride or capacity, capacity)
        inside = window.input_ids[lead : len(window) - tail]
        assert inside.tolist() == body[start : start + capacity].tolist()
        assert window.input_ids[:lead].tolist() == [0] * lead
        assert window.input_ids[len(window) - tail :].tolist() == [1] * tail


@pytest.mark.parametrize("length", [9, 10, 11, 18, 19, 20])
def test_around_the_limit(length):
    tokenizer = tiny.tokenizer()
    word = next(word for word in tiny.WORDS if len(tokenizer(" " + word, add_special_tokens=False)["input_ids"]) == 1)
    text = (" " + word) * (length - 1)
    assert len(whole(text)) == length
    windows = cut(text, 10)
    assert len(windows) == -(-(length - 1) // 9)
    assert sum(int(window.pooled.sum()) for window in windows) == length - 1
    assert windows[0].status == ("ok" if length <= 10 else "windowed")


def test_special_tokens_count_once_where_they_are_asked_for():
    windows = cut(LONG, 12, eos=True, include_special=True)
    assert [bool(window.pooled[0]) for window in windows] == [True] + [False] * (len(windows) - 1)
    assert [bool(window.pooled[-1]) for window in windows] == [False] * (len(windows) - 1) + [True]


def test_the_first_tokens_of_every_window_are_skipped_and_an_overlap_gives_them_back():
    touching = cut(LONG, 10, skip_first=3)
    assert all(not window.pooled[:3].any() for window in touching)
    text = whole(LONG)
    overlapping = cut(LONG, 10, 7, skip_first=3)
    counted = np.concatenate([window.input_ids[window.pooled] for window in overlapping])
    assert counted.tolist() == text.input_ids[3:].tolist()


def test_windows_of_a_completion_leave_out_those_of_its_prompt():
    pair = {"prompt": LONG + " ", "completion": LONG}
    pieces, _ = tokenize_windows([pair], tiny.tokenizer(), 10, pool_over="completion")
    both, _ = tokenize_windows([pair], tiny.tokenizer(), 10)
    assert len(pieces) <= len(both) // 2 + 1
    counted = np.concatenate([window.input_ids[window.pooled] for window in pieces])
    assert tiny.tokenizer().decode(counted).strip() == LONG


def test_no_room_beside_the_special_tokens():
    with pytest.raises(InputError, match="windows of 2 tokens have no room for text beside 2 special tokens"):
        cut(LONG, 2, eos=True)


def by_hand(text, model, tokenizer, sae, limit, stride, pool):
    """Windows sliced here, one forward each with all hidden states, codes of counted tokens pooled in float64."""
    ids = tokenizer(text)["input_ids"]
    body, capacity, rows, counted, start = ids[1:], limit - 1, [], 0, 0
    while True:
        window = body[start : start + capacity]
        with torch.no_grad():
            states = model(input_ids=torch.tensor([[0, *window]]), output_hidden_states=True).hidden_states[2][0, 1:]
        rows.append(states[counted - start :])
        counted = start + len(window)
        if counted == len(body):
            break
        start += stride or capacity
    states = torch.cat(rows)
    codes = dense(sae.encode(states), sae.d_sae).double()
    pooled = {
        "mean": lambda c: c.mean(0),
        "sum": lambda c: c.sum(0),
        "max": lambda c: c.max(0).values,
        "last": lambda c: c[-1],
        "count": lambda c: (c > 0).double().sum(0),
    }[pool](codes)
    return pooled.numpy(), states.double().mean(0).numpy(), len(states)


@pytest.mark.parametrize("stride", [None, 5])
@pytest.mark.parametrize("pool", ["mean", "sum", "max", "last", "count"])
def test_windows_are_pooled_together_as_one_text(pool, stride):
    model, tokenizer, sae = tiny.causal_lm("llama"), tiny.tokenizer(), tiny.sae()
    texts = ["find the sum", LONG, None, " ".join(WORDS[:30]), "ten apples", " ".join(WORDS[5:45])]
    call = {"tokenizer": tokenizer, "pool": pool, "max_length": 16, "keep_hidden": True, "progress": False}
    found = saerl_fast.featurize(
        texts, model, sae, long_texts="window", window_stride=stride, tokens_per_batch=70, shard_rows=4, **call
    )
    assert found.status == ("ok", "windowed", "empty", "windowed", "ok", "windowed")
    assert found.ids == (0, 1, 2, 3, 4, 5)
    assert found.usable.tolist() == [True, True, False, True, True, True]
    rows = found.to_scipy().toarray()
    for row, text in enumerate(texts):
        if text is not None:
            wanted, hidden, tokens = by_hand(text, model, tokenizer, sae, 16, stride, pool)
            np.testing.assert_allclose(rows[row], wanted, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(found.hidden[row], hidden, rtol=1e-4, atol=1e-5)
            assert found.n_tokens[row] == tokens


def test_texts_that_fit_keep_their_bits():
    call = {"tokenizer": tiny.tokenizer(), "keep_hidden": True, "progress": False}
    texts = tiny.texts(9, longest=12)
    plain = saerl_fast.featurize(texts, tiny.causal_lm(), tiny.sae(), **call)
    windowed = saerl_fast.featurize(texts, tiny.causal_lm(), tiny.sae(), long_texts="window", **call)
    for name in ("indptr", "indices", "values", "hidden"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(windowed, name))


def test_a_merge_keeps_the_bits_of_texts_of_one_window():
    from saerl_fast.extract.windows import merge_windows

    model, sae, texts = tiny.causal_lm(), tiny.sae(), tiny.texts(9, longest=12)
    for pool in ("mean", "sum", "max", "last", "count"):
        rows = saerl_fast.featurize(
            texts, model, sae, tokenizer=tiny.tokenizer(), pool=pool, keep_hidden=True, progress=False
        )
        merged = merge_windows(rows, np.arange(9), rows.ids, pool)
        for name in ("indptr", "indices", "values", "hidden", "n_tokens", "status"):
            np.testing.assert_array_equal(getattr(rows, name), getattr(merged, name))


def test_max_of_signed_features_sees_the_zeros_of_other_windows():
    """What an absolute TopK SAE gives: latent 1 is negative in one window and absent from the other, so 0 is its max."""
    from saerl_fast.extract.windows import merge_windows
    from saerl_fast.features import SparseFeatures

    rows = SparseFeatures(
        indptr=np.array([0, 2, 3]),
        indices=np.array([0, 1, 0], np.int32),
        values=np.array([-2.0, -3.0, -1.0], np.float32),
        n_features=4,
        ids=(7, 7),
        status=("windowed", "windowed"),
        n_tokens=np.array([3, 2], np.int32),
    )
    merged = merge_windows(rows, np.array([0, 0]), [7], "max")
    assert merged.to_scipy().toarray().tolist() == [[-1.0, 0.0, 0.0, 0.0]]
    assert merged.indices.tolist() == [0]


def test_long_texts_are_refused_before_anything_is_computed(tmp_path):
    model, calls = tiny.causal_lm(), []
    model.model.embed_tokens.register_forward_hook(lambda *_: calls.append(1))
    texts = [*tiny.texts(3, longest=4), LONG, LONG + " ten"]
    with pytest.raises(InputError, match=r"2 of 5 texts have more than 20 tokens \(ids d with \d+, e with \d+\)"):
        saerl_fast.featurize(
            texts,
            model,
            tiny.sae(),
            tokenizer=tiny.tokenizer(),
            ids=list("abcde"),
            max_length=20,
            long_texts="error",
            out=tmp_path / "f",
            progress=False,
        )
    assert not calls
    assert not (tmp_path / "f").exists()
