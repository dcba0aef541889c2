"""A finished folder asked for in the same words is read without a model; any other word, and the model is loaded."""

import errno
import json
import os
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import saerl_fast
from saerl_fast.cli import main
from saerl_fast.errors import CorruptStoreError, IncompleteStoreError, JobMismatchError, PlaceError
from saerl_fast.extract import asked as words
from saerl_fast.extract.asked import asked, hash_model
from saerl_fast.extract.job import WHOLE, Job
from saerl_fast.extract.run import find_finished, write_features
from saerl_fast.extract.settings import Request, name_contents
from saerl_fast.formats import save_sae
from tests import tiny

pytestmark = pytest.mark.filterwarnings("ignore::saerl_fast.errors.MismatchWarning")
TEXTS = tiny.texts(9)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Model and SAE as folders, and a finished run of them."""
    home = tmp_path_factory.mktemp("home")
    tiny.causal_lm().save_pretrained(home / "model")
    tiny.tokenizer().save_pretrained(home / "model")
    save_sae(tiny.sae(), home / "sae")
    rows = [{"id": str(row), "text": text, "level": row} for row, text in enumerate(TEXTS)]
    (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(home, home / "done")
    return home


def run(home, out, texts=TEXTS, model=None, **settings):
    call = {"layer": 1, "shard_rows": 4, "ids": [f"row {n}" for n in range(len(texts))], "progress": False}
    columns = [{"level": len(text)} for text in texts]
    return saerl_fast.featurize(
        texts, model or home / "model", home / "sae", out=out, columns=columns, **{**call, **settings}
    )


@pytest.fixture
def no_model(monkeypatch):
    def load(*_, **__):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("saerl_fast.extract.reader.load_blocks", load)


def test_a_finished_folder_is_read_without_a_model(home, no_model, caplog):
    before = {path: path.read_bytes() for path in (home / "done").rglob("*") if path.is_file() and path.name != "LOCK"}
    seen = []
    with caplog.at_level("INFO", logger="saerl_fast"):
        found = run(home, home / "done", each_shard=seen.append)
    assert "no model loaded" in caplog.text
    assert [len(rows) for rows in seen] == [4, 4, 1]
    assert found.ids == tuple(f"row {n}" for n in range(9))
    assert before == {path: path.read_bytes() for path in before}
    with pytest.raises(AssertionError, match="the model was loaded"):
        run(home, home / "done", pool="max")


def test_the_rows_are_those_of_a_run_that_looked_at_the_model(home, tmp_path):
    shutil.copytree(home / "done", tmp_path / "other")
    read, computed = run(home, home / "done"), run(home, tmp_path / "new")
    for part in ("indptr", "indices", "values"):
        np.testing.assert_array_equal(getattr(read, part), getattr(computed, part))
    # a manifest without the words, as one of a model in memory: the model is loaded and compared, and all is well
    manifest = tmp_path / "other" / "manifest.json"
    job = Job.load(tmp_path / "other")
    manifest.write_bytes(Job(job.rows, job.shard_rows, job.fingerprint, job.source).seal())
    np.testing.assert_array_equal(run(home, tmp_path / "other").values, read.values)


def test_shares_are_read_so_too(home, tmp_path, monkeypatch):
    first = run(home, tmp_path, part=(1, 2))
    monkeypatch.setattr("saerl_fast.extract.reader.load_blocks", lambda *_, **__: pytest.fail("loaded"))
    np.testing.assert_array_equal(run(home, tmp_path, part=(1, 2)).values, first.values)


@pytest.mark.parametrize("model", ["a folder", "in memory"])
def test_where_nothing_can_be_written_a_finished_folder_is_read(home, tmp_path, monkeypatch, model):
    shutil.copytree(home / "done", tmp_path / "out")
    (tmp_path / "out" / "LOCK").unlink()
    given = {}
    if model == "in memory":
        given = {"model": tiny.causal_lm(), "tokenizer": tiny.tokenizer()}
        run(home, tmp_path / "out2", **given)
        shutil.rmtree(tmp_path / "out")
        shutil.move(tmp_path / "out2", tmp_path / "out")
    read = os.open

    def refused(*words, **_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(words[0]))

    def opened(path, flags, *rest, **named):
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        return refused(path) if writes else read(path, flags, *rest, **named)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", opened)
        patch.setattr(os, "fsync", refused)
        found = run(home, tmp_path / "out", **given)
        with pytest.raises(PlaceError):
            run(home, tmp_path / "new", **given)
    np.testing.assert_array_equal(found.values, run(home, home / "done").values)


def test_what_is_not_whole_is_not_taken_for_finished(home, tmp_path):
    shards = {path.name: path.read_bytes() for path in (home / "done" / "shards").iterdir()}
    for name in ("DONE", "columns.jsonl", "shards/00001.safetensors"):
        folder = tmp_path / name.replace("/", "-")
        shutil.copytree(home / "done", folder)
        (folder / name).unlink()
        run(home, folder)
        assert {path.name: path.read_bytes() for path in (folder / "shards").iterdir()} == shards
        assert (folder / name).read_bytes() == (home / "done" / name).read_bytes()
    spoilt = tmp_path / "spoilt"
    shutil.copytree(home / "done", spoilt)
    shard = spoilt / "shards" / "00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    with pytest.raises(CorruptStoreError):
        run(home, spoilt)


def test_other_words_are_compared_with_the_model_and_refused(home):
    with pytest.raises(JobMismatchError, match="texts"):
        run(home, home / "done", texts=[*TEXTS[:-1], "another"])
    with pytest.raises(JobMismatchError, match="pool"):
        run(home, home / "done", pool="sum")


def test_the_command_too(home, tmp_path, monkeypatch, capsys):
    call = ["featurize", str(home / "rows.jsonl"), "--text-field", "text", "--layer", "1"]
    call += ["--model", str(home / "model"), "--sae", str(home / "sae"), "--out", str(tmp_path / "out")]
    assert main(call) == 0
    said = capsys.readouterr().out
    monkeypatch.setattr("saerl_fast.extract.reader.load_blocks", lambda *_, **__: pytest.fail("loaded"))
    assert main(call) == 0
    assert capsys.readouterr().out == said


def told(folder, sae=None, texts=("a", "b"), columns=None, **arguments):
    sae = sae or tiny.sae()
    return asked(folder, sae, Request(**arguments), name_contents(sae, texts, [0, 1], columns))


def test_every_word_counts(home, monkeypatch):
    model = str(home / "model")
    other = tiny.sae()
    other.w_dec[3, 5] += 1e-6
    made = [
        told(model),
        told(model, pool="max"),
        told(model, dtype=torch.bfloat16),
        told(model, sae=other),
        told(model, sae=replace(tiny.sae(), metadata={**tiny.sae().metadata, "context_size": 7})),
        told(model, texts=("a", "c")),
        told(model, columns=b"{}\n"),
        told(model, tokenizer=tiny.tokenizer(eos=True)),
    ]
    monkeypatch.setattr(words, "_version", lambda name: "another")
    made.append(told(model))
    assert None not in made
    assert len(set(made)) == len(made)
    monkeypatch.undo()
    assert told(model) == made[0] == told(home / "model")
    assert told(tiny.causal_lm()) is None
    assert told("no/such-model") is None


def test_a_changed_file_of_the_model_is_seen(home, tmp_path):
    seen = {hash_model(home / "model")}

    def changed():
        folder = tmp_path / str(len(seen))
        shutil.copytree(home / "model", folder)
        return folder

    def look(folder):
        found = hash_model(folder)
        assert found is not None
        assert found not in seen
        seen.add(found)

    for name in ("config.json", "tokenizer.json"):
        folder = changed()
        text = (folder / name).read_text()
        (folder / name).write_text(text[:-2] + " " + text[-2:])
        look(folder)
    # one tensor after the other, by a step too small for a size or a header to show
    for name in dict(tiny.causal_lm().named_parameters()):
        model = tiny.causal_lm()
        with torch.no_grad():
            dict(model.named_parameters())[name].add_(2.0**-20)
        folder = changed()
        model.save_pretrained(folder)
        look(folder)


def test_files_that_do_not_tell_what_the_model_is(home, tmp_path):
    def spoilt(name, content):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(home / "model", folder)
        (folder / name).write_bytes(content)
        return hash_model(folder)

    assert hash_model(None) is None
    assert hash_model(home / "sae" / "..") is None
    assert spoilt("adapter_config.json", b"{}") is None
    weights = (home / "model" / "model.safetensors").read_bytes()
    for content in (
        b"", b"\x05", struct.pack("<Q", 2**60) + b"{}", struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 2) + b"{!",
        _header({"a": {"data_offsets": [0, 9]}}), _header({"a": {"data_offsets": [-4, 0]}}), _header({"a": [0, 0]}),
        _header({"a": {"data_offsets": [0, "x"]}}), _header({"a": {"data_offsets": [0]}}), weights[:-1],
    ):  # fmt: skip
        assert spoilt("model.safetensors", content) is None
    assert spoilt("model.safetensors", weights) == hash_model(home / "model")


def _header(entries):
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


def test_a_hub_id_means_the_snapshot_that_is_loaded(home, monkeypatch):
    monkeypatch.setattr("transformers.utils.cached_file", lambda name, file: str(home / "model" / file))
    assert words.find_folder("someone/model") == Path(home / "model")


def test_a_shard_that_vanishes_meanwhile_is_named(home, tmp_path):
    shutil.copytree(home / "done", tmp_path / "out")
    found = find_finished(tmp_path / "out", WHOLE, Job.load(tmp_path / "out").asked, None, 96)
    assert found is not None
    (tmp_path / "out" / "shards" / "00001.safetensors").unlink()
    with pytest.raises(IncompleteStoreError, match=r"shard 1 \(rows 4-7\) has just vanished; run the same again"):
        write_features(found, tmp_path / "out", progress=False)
