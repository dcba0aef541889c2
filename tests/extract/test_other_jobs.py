"""What a folder of another job differs in: what a person would know first, hashes last, and rows that were added."""

import logging

import pytest

import saerl_fast
from saerl_fast.errors import JobMismatchError
from tests import tiny

TEXTS = tiny.texts(16)
LINES = {
    "more": (
        16,
        {},
        ["rows: folder 12, this run 16", "texts: folder has other content", "ids: folder has other content"],
        "4 were added",
    ),
    "fewer": (
        9,
        {},
        ["rows: folder 12, this run 9", "texts: folder has other content", "ids: folder has other content"],
        None,
    ),
    "settings": (12, {"pool": "max", "skip_first": 1}, ["pool: folder 'mean'", "skip_first: folder 0"], None),
    "both": (13, {"max_length": 9}, ["rows: ", "max_tokens: ", "texts: ", "ids: "], "1 were added"),
}


@pytest.fixture(scope="module")
def call():
    return {
        "model": tiny.causal_lm(),
        "sae": tiny.sae(),
        "tokenizer": tiny.tokenizer(),
        "progress": False,
    }


@pytest.fixture(scope="module")
def folder(call, tmp_path_factory):
    folder = tmp_path_factory.mktemp("job") / "features"
    saerl_fast.featurize(TEXTS[:12], **call, out=folder)
    return folder


@pytest.mark.parametrize("name", LINES)
def test_what_differs_comes_in_order(call, folder, name):
    rows, settings, lines, added = LINES[name]
    with pytest.raises(JobMismatchError) as caught:
        saerl_fast.featurize(TEXTS[:rows], **call, **settings, out=folder)
    found = str(caught.value).splitlines()
    assert "belongs to another job" in found[0]
    assert [line.strip()[: len(start)] for line, start in zip(found[1:], lines, strict=False)] == lines
    rest = found[1 + len(lines) :]
    assert len(rest) == (added is not None)
    assert added is None or f"first 12 of these: {added} at the end" in rest[0]


def test_other_texts_are_not_called_added(call, folder):
    with pytest.raises(JobMismatchError) as caught:
        saerl_fast.featurize([*TEXTS[:11], "another", "one"], **call, out=folder)
    assert "added" not in str(caught.value)


def test_no_text_with_features_is_said(call, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        saerl_fast.featurize([None, "", "\ud800"], **call, out=tmp_path)
    assert "none of 3 texts has features (2 empty, 1 invalid): is this the right column" in caplog.text
