"""A folder is never continued with a setting that changes a bit of the result."""

import pytest

import saerl_fast
from saerl_fast.errors import JobMismatchError
from tests import tiny

CHANGES = {
    "tokens_per_batch": 64,
    "pool": "max",
    "max_length": 9,
    "padding_side": "left",
    "include_special": True,
    "keep_hidden": True,
    "on_nonfinite": "mark",
    "shard_rows": 5,
    "layer": 2,
    "hook": "blocks.1.hook_mlp_out",
    "pool_over": "prompt",
    "skip_first": 1,
    "long_texts": "window",
    "ids": [f"other-{row}" for row in range(12)],
}


@pytest.fixture(scope="module")
def call():
    return {
        "texts": tiny.texts(12),
        "model": tiny.causal_lm(),
        "sae": tiny.sae(),
        "tokenizer": tiny.tokenizer(),
        "shard_rows": 8,
        "tokens_per_batch": 128,
        "progress": False,
    }


@pytest.fixture(scope="module")
def folder(call, tmp_path_factory):
    folder = tmp_path_factory.mktemp("job") / "features"
    saerl_fast.featurize(**call, out=folder)
    return folder


def test_the_same_job_is_read(call, folder):
    assert len(saerl_fast.featurize(**call, out=folder)) == 12


@pytest.mark.parametrize("name", CHANGES)
def test_another_setting_is_another_job(name, call, folder):
    with pytest.raises(JobMismatchError, match="belongs to another job"):
        saerl_fast.featurize(**call | {name: CHANGES[name]}, out=folder)


def test_another_stride_of_windows_is_another_job(call, tmp_path):
    windowed = call | {"long_texts": "window", "max_length": 20}
    saerl_fast.featurize(**windowed, out=tmp_path / "f")
    with pytest.raises(JobMismatchError, match="window_stride"):
        saerl_fast.featurize(**windowed, window_stride=9, out=tmp_path / "f")
