"""Every argument of featurize with values of every kind: taken, or refused by name before anything is loaded."""

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import saerl_fast
from saerl_fast.errors import DtypeError, InputError, SaerlError
from saerl_fast.extract import reader
from saerl_fast.extract.arguments import ARGUMENTS
from saerl_fast.formats import save_sae
from tests import families, tiny


class Loaded(Exception):
    """A model would have been loaded."""


VALUES = {
    "none": None,
    "true": True,
    "three": 3,
    "minus": -3,
    "numpy": np.int64(3),
    "half": 1.5,
    "nan": float("nan"),
    "word": "word",
    "number": "3",
    "empty": "",
    "bytes": b"word",
    "path": Path("absent"),
    "list": [1, 2, 3],
    "words": ["a", "b", "c"],
    "pair": (0, 2),
    "dict": {"a": 1},
    "dicts": [{"a": 1}, {}, {}],
    "array": np.zeros(3),
    "tensor": torch.zeros(3),
    "dtype": torch.float32,
    "int8": torch.int8,
    "device": torch.device("cpu"),
    "function": len,
    "object": object(),
    "module": torch.nn.Linear(2, 2),
    "generator": (word for word in "abc"),
}
SWITCH, WHOLE = {"true"}, {"three", "numpy"}
TAKEN = {
    "texts": {"words", "generator"},
    "model": {"word", "number", "path"},
    "sae": set(),  # words and paths are of the right kind, and there is nothing there
    "tokenizer": {"none"},
    "layer": WHOLE | {"none", "minus"},
    "hook": {"none"},  # words are of the right kind, and name no place
    "pool": set(),
    "max_length": WHOLE | {"none"},
    "text_field": {"none"},
    "completion_field": {"none"},
    "out": {"none", "word", "number", "path"},
    "part": {"none"},  # a pair is of the right kind, and wants a folder
    "keep_hidden": SWITCH,
    "include_special": SWITCH,
    "pool_over": set(),
    "skip_first": WHOLE,
    "long_texts": set(),
    "window_stride": {"none"} | WHOLE,
    "ids": {"none", "list", "words"},
    "columns": {"none", "dicts"},
    "source": {"none", "dict"},
    "tokens_per_batch": WHOLE | {"none"},
    "shard_rows": WHOLE,
    "padding_side": set(),
    "packing": set(),
    "compile": set(),
    "kmeans": {"none"},
    "each_shard": {"none", "function", "module"},
    "device": {"none", "device"},
    "device_map": {"none", "word", "number", "dict"},
    "dtype": {"none", "dtype"},
    "on_nonfinite": set(),
    "progress": SWITCH,
}
PARAMETERS = list(inspect.signature(saerl_fast.featurize).parameters)


@pytest.fixture
def call(monkeypatch, tmp_path):
    def load(*arguments, **named):
        raise Loaded

    monkeypatch.setattr(reader, "load_blocks", load)
    return {"texts": ["a", "b", "c"], "model": str(tmp_path), "sae": tiny.sae()}


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_kind_of_value_is_taken_or_refused_by_name(name, call):
    if name == "window_stride":
        call["long_texts"] = "window"
    for kind, value in VALUES.items():
        if kind in TAKEN[name]:
            with pytest.raises(Loaded):
                saerl_fast.featurize(**{**call, name: value})
        else:
            with pytest.raises(SaerlError) as caught:
                saerl_fast.featurize(**{**call, name: value})
            assert isinstance(caught.value, (DtypeError, InputError, ValueError)), kind
            told = str(caught.value)
            assert told.startswith((name, f"{value}: no such folder", "hook", "an id", "a dataset", "text")), told
            assert len(told) < 400, told


def test_every_parameter_has_its_row():
    assert set(PARAMETERS) == set(TAKEN) == {*ARGUMENTS, "texts"}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (3, "texts must be a list of texts or a datasets.Dataset; got int"),
        ({"train": ["a"]}, "got dict.*of a dict of splits, the split"),
        ({"a", "b"}, "got set"),
        (["a", 3], "text 1 must be a string, a list of chat messages.*; got int"),
        (["a", b"b"], "text 1 must be a string.*got bytes"),
        (["a", ["b"]], "text 1 must be a string.*got list"),
        ([[{"role": "user", "content": 3}]], "text 0: the content of a message must be a string.*got 3"),
        ([[{"role": "user", "content": ["a"]}]], "text 0: the content of a message must be"),
        ([[{"role": "user", "content": [{"type": "text", "text": None}]}]], "text 0: the content of a message must be"),
        ([{"prompt": 3, "completion": "a"}], "text 0: its prompt must be a string, a list of messages, or None"),
    ],
)
def test_texts_of_another_kind(texts, message, call):
    with pytest.raises(DtypeError, match=message):
        saerl_fast.featurize(**{**call, "texts": texts})


def test_tables_are_told_to_hand_in_a_column(call):
    datasets = pytest.importorskip("datasets")
    pandas = pytest.importorskip("pandas")
    data = datasets.Dataset.from_dict({"q": ["a", "b", "c"]})
    for table in (pandas.DataFrame({"q": ["a"]}), datasets.DatasetDict({"train": data}), data.to_iterable_dataset()):
        with pytest.raises(DtypeError, match="texts must"):
            saerl_fast.featurize(**{**call, "texts": table}, text_field="q")
    for texts in (pandas.Series(["a", "b", "c"]), np.array(["a", "b", "c"]), (text for text in "abc")):
        with pytest.raises(Loaded):
            saerl_fast.featurize(**{**call, "texts": texts})


def test_a_row_is_counted_over_all_shards(call):
    with pytest.raises(DtypeError, match="text 2500 must be a string"):
        saerl_fast.featurize(**{**call, "texts": ["a"] * 2500 + [3]})


def test_numbers_of_numpy_are_numbers(tmp_path):
    """They come out of tables, and what is kept in a folder is JSON."""
    given = {"max_length": np.int32(9), "tokens_per_batch": np.int64(99), "shard_rows": np.uint8(2)}
    plain = {name: int(value) for name, value in given.items()}
    model, tokenizer, sae = tiny.causal_lm(), tiny.tokenizer(), tiny.sae()
    one, two = (
        saerl_fast.featurize(
            tiny.texts(3), model, sae, tokenizer=tokenizer, out=tmp_path / "f", progress=False, **settings
        )
        for settings in (given, plain)
    )
    np.testing.assert_array_equal(one.values, two.values)
    assert json.loads((tmp_path / "f" / "manifest.json").read_text())["shard_rows"] == 2


def test_a_path_where_nothing_is_and_a_file_are_told_apart_from_a_hub_id(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    for name, message in (
        (tmp_path / "absent", "no such folder; the folder of a model is wanted, or a hub id"),
        ("./absent", "no such folder"),
        ("a/b/c", "no such folder"),
        (tmp_path / "model.safetensors", "the folder of a model is wanted .*; got a file"),
        ("org/absent", "transformers cannot load a model from there"),
    ):
        with pytest.raises(InputError, match=message):
            saerl_fast.featurize(["a"], name, tiny.sae())
    with pytest.raises(InputError, match="device must be a torch.device"):
        saerl_fast.featurize(["a"], tmp_path, tiny.sae(), device="meta")


def test_an_sae_object_of_sae_lens_is_taken_as_it_is(tmp_path):
    sae_lens = pytest.importorskip("sae_lens")
    save_sae(tiny.sae(), tmp_path)
    theirs = sae_lens.SAE.load_from_disk(str(tmp_path), device="cpu")
    model, tokenizer = tiny.causal_lm(), tiny.tokenizer()
    by_object, by_folder = (
        saerl_fast.featurize(tiny.texts(4), model, sae, tokenizer=tokenizer, progress=False)
        for sae in (theirs, tmp_path)
    )
    np.testing.assert_array_equal(by_object.values, by_folder.values)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16, "auto", None])
def test_the_dtype_of_a_model_by_path(dtype, tmp_path):
    families.build("llama").to(torch.float16).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    found = saerl_fast.featurize(tiny.texts(3), tmp_path, tiny.sae(), dtype=dtype, device="cpu", progress=False)
    wanted = {"auto": "float16", None: "float32"}.get(dtype, "bfloat16")
    assert found.provenance["model_dtype"] == wanted
