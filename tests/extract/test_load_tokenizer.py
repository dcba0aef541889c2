"""A tokenizer is what its own files say, whatever the model type beside it."""

from pathlib import Path

import pytest

from saerl_fast.demo.vocabulary import build_tokenizer
from saerl_fast.errors import InputError
from saerl_fast.extract.loading import load_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import Qwen2Config

    folder = tmp_path_factory.mktemp("own_tokenizer")
    Qwen2Config(vocab_size=1024, hidden_size=8, num_attention_heads=1, num_hidden_layers=1).save_pretrained(folder)
    build_tokenizer(count=500).save_pretrained(folder)
    return folder


def test_own_tokenizer_beside_a_qwen2_config(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    assert tokenizer.tokenize("Ana has 12 marbles.") == ["Ġana", "Ġhas", "Ġ12", "Ġmarbles", "."]
    assert tokenizer.padding_side == "left"


def test_settings_are_handed_on(folder: Path) -> None:
    assert load_tokenizer(str(folder), padding_side="right").padding_side == "right"


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="tokenizer"):
        load_tokenizer(str(tmp_path / "none"))
