"""A tokenizer is what its own files say, whatever the model type beside it."""

from pathlib import Path

import pytest

from saerl_fast.demo.vocabulary import build_tokenizer
from saerl_fast.errors import InputError
from saerl_fast.extract.loading import load_tokenizer
from saerl_fast.extract.reader import hash_tokenizer
from tests import tiny


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


def test_the_hash_of_a_tokenizer_is_of_what_it_is_not_of_how_it_was_called():
    fresh, used = tiny.tokenizer(pad=True), tiny.tokenizer(pad=True)
    plain = hash_tokenizer(fresh)
    used(["a train", "ten"], padding="max_length", truncation=True, max_length=30)
    assert '"truncation":{' in used.backend_tokenizer.to_str()
    assert '"padding":{' in used.backend_tokenizer.to_str()
    assert hash_tokenizer(used) == plain
    odd = tiny.tokenizer(pad=True)
    odd.add_tokens(['"padding":{"a":1}', '"truncation":'])
    assert hash_tokenizer(odd) != plain
    before = hash_tokenizer(odd)
    odd(["a train", "ten"], padding=True, truncation=True, max_length=2)
    assert hash_tokenizer(odd) == before
    spoken = tiny.tokenizer(pad=True)
    spoken.chat_template += " "
    assert hash_tokenizer(spoken) != plain
    assert len({hash_tokenizer(tiny.tokenizer(bos=bos, eos=eos)) for bos in (0, 1) for eos in (0, 1)}) == 4
