"""What is handed to load_sae, save_sae and convert: taken in its plain form, or refused by name as featurize does."""

from pathlib import Path

import numpy as np
import pytest
import torch

from saerl_fast.errors import DtypeError, FormatError, InputError
from saerl_fast.formats import load_sae, save_sae
from saerl_fast.formats.convert import CONVERTING, convert
from saerl_fast.formats.load import LOADING, NOTES
from tests import tiny
from tests.extract.test_arguments import VALUES

PATHS = {"word", "number", "path"}
LOADED = {
    "path": PATHS,  # of the right kind, and there is nothing there
    "device": {"none", "device"},
    "dtype": {"none", "dtype"},
    "metadata": {"none", "dict"},
}
CONVERTED = {
    "source": PATHS,
    "target": PATHS,
    "kind": {"none"},
    "k": {"none", "three", "numpy"},
    "apply_b_dec": {"none", "true"},
    "metadata": {"none", "dict"},
}
NOTED = {
    **{name: {"none", "word", "number", "empty"} for name in ("model_name", "hook_name", "hf_hook_name")},
    "context_size": {"none", "three", "numpy"},
}


@pytest.fixture
def folder(tmp_path):
    save_sae(tiny.sae(), tmp_path / "sae")
    return tmp_path / "sae"


def check(taken, name, call):
    for kind, value in VALUES.items():
        if kind in taken:
            call(value)
        else:
            with pytest.raises((DtypeError, InputError)) as caught:
                call(value)
            assert str(caught.value).startswith(f"{name} must be "), (kind, str(caught.value))
            assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", LOADED)
def test_load_sae(name, folder):
    def call(value):
        try:
            load_sae(**{"path": folder, name: value})
        except FormatError:  # a path of the right kind, where there is nothing
            if name != "path":
                raise

    check(LOADED[name], name, call)


@pytest.mark.parametrize("name", CONVERTED)
def test_convert(name, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = {"W_enc": torch.randn(6, 4), "b_enc": torch.zeros(6), "W_dec": torch.randn(4, 6), "b_dec": torch.zeros(4)}
    torch.save(state, tmp_path / "x.pt")
    given = {"source": "x.pt", "target": "out", "kind": "topk", "k": 2, "apply_b_dec": False}

    def call(value):
        try:
            convert(**{**given, name: value})
        except FormatError:  # of the right kind; nothing lies there, or a setting that is needed is not said
            pass
        except InputError:
            if value is not None or name != "k":
                raise

    check(CONVERTED[name], name, call)


@pytest.mark.parametrize("name", NOTED)
def test_what_is_said_of_an_sae(name, folder):
    check(NOTED[name], f"metadata['{name}']", lambda value: load_sae(folder, metadata={name: value}))


def test_words_and_numbers_come_in_their_plain_form(folder):
    assert load_sae(str(folder), device="cpu", dtype="bfloat16").dtype == torch.bfloat16
    assert load_sae(folder, dtype=torch.float64).dtype == torch.float64
    found = load_sae(folder, metadata={"context_size": np.int64(99), "whatever": [1]})
    assert type(found.metadata["context_size"]) is int
    assert (found.context_size, found.metadata["whatever"]) == (99, [1])
    for wrong, words in [
        ({"dtype": "int8"}, "dtype must be a floating dtype: one of float32"),
        ({"dtype": "auto"}, "dtype must be"),
        ({"device": "word"}, "device must be a torch.device"),
        ({"device": "meta"}, "device must be"),
        ({"metadata": {3: "x"}}, "metadata must be a dict"),
        ({"metadata": {"context_size": 0}}, r"metadata\['context_size'\] must be a whole number from 1 up"),
    ]:
        with pytest.raises((DtypeError, InputError), match=words):
            load_sae(folder, **wrong)


def test_save_sae(folder, tmp_path):
    for value in (None, 3, str(folder), torch.zeros(2)):
        with pytest.raises(DtypeError, match="sae must be an SAE"):
            save_sae(value, tmp_path / "x")
    for value in (None, 3, "", b"x"):
        with pytest.raises(DtypeError, match="path must be a folder to write"):
            save_sae(tiny.sae(), value)
    assert not Path(tmp_path / "x").exists()


def test_every_argument_has_its_row():
    assert set(LOADED) == set(LOADING)
    assert set(CONVERTED) == set(CONVERTING)
    assert set(NOTED) == set(NOTES)
