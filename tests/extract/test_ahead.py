"""Tokens made one shard ahead: the same bytes, errors in their turn, and no thread left behind."""

import threading
import time

import numpy as np
import pytest

import saerl_fast
from saerl_fast.extract import run
from saerl_fast.extract.ahead import Ahead
from tests import tiny


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("saerl-ahead")]


def test_the_next_one_is_made_while_this_one_is_used():
    made, second = [], threading.Event()

    def make(key):
        made.append((key, threading.current_thread() is threading.main_thread()))
        if key == 5:
            second.set()
        return key * 10

    with Ahead(make, [3, 5, 9], thread=True) as ahead:
        assert ahead.take(3) == 30
        assert second.wait(10)  # nobody has asked for it
        assert ahead.take(5) == 50
        ahead.rest()
        assert ahead.take(9) == 90
    assert made == [(3, True), (5, False), (9, False)]
    assert not threads()


def test_without_a_thread_everything_is_made_when_it_is_taken():
    made = []
    with Ahead(lambda key: made.append(key) or key, [1, 2], thread=False) as ahead:
        ahead.take(1)
        ahead.rest()
        assert made == [1]
        ahead.take(2)
    assert made == [1, 2]


def test_an_error_comes_in_its_turn():
    def make(key):
        if key == 2:
            raise ValueError("text 7")
        return key

    with Ahead(make, [1, 2, 3], thread=True) as ahead:
        assert ahead.take(1) == 1
        ahead.rest()
        with pytest.raises(ValueError, match="text 7"):
            ahead.take(2)
        assert ahead.take(3) == 3
    assert not threads()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_ends_the_run_ends_the_thread(error):
    begun = threading.Event()

    def make(key):
        if key == 2:
            begun.set()
            time.sleep(0.2)
        return key

    def work():
        with Ahead(make, [1, 2, 3], thread=True) as ahead:
            ahead.take(1)
            begun.wait(10)
            raise error

    with pytest.raises(error):
        work()
    assert not threads()


@pytest.fixture
def ahead(monkeypatch):
    """As on a device: Task.read asks for a thread. The value: how often make ran elsewhere than in the main thread."""
    elsewhere, real = [], run.read_tokens

    def counted(*args):
        elsewhere.append(threading.current_thread() is not threading.main_thread())
        return real(*args)

    monkeypatch.setattr(run, "read_tokens", counted)
    monkeypatch.setattr(run, "Ahead", lambda make, keys, thread: Ahead(make, keys, thread=True))
    return elsewhere


def featurize(texts, **settings):
    call = {"tokenizer": tiny.tokenizer(), "shard_rows": 7, "tokens_per_batch": 60, "progress": False}
    return saerl_fast.featurize(texts, tiny.causal_lm(), tiny.sae(), **call | settings)


def files(folder):
    """What each file holds, but for the lock, which names the time."""
    found = [path for path in folder.rglob("*") if path.is_file() and path.name != "LOCK"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.mark.parametrize("settings", [{}, {"long_texts": "window", "max_length": 9, "window_stride": 5}])
def test_rows_and_files_are_the_same(tmp_path, monkeypatch, request, settings):
    texts = tiny.texts(30)
    texts[8], texts[20] = None, ""
    wanted = featurize(texts, out=tmp_path / "alone", **settings)
    elsewhere = request.getfixturevalue("ahead")
    in_memory = featurize(texts, **settings)
    assert elsewhere == [False, True, True, True, True]
    featurize(texts, out=tmp_path / "ahead", **settings)
    np.testing.assert_array_equal(in_memory.values, wanted.values)
    alone, made_ahead = files(tmp_path / "alone"), files(tmp_path / "ahead")
    assert sum("shards" in name for name in alone) == 5
    assert alone == made_ahead
    assert not threads()


def test_a_resumed_run_reads_only_what_is_lacking(tmp_path, ahead):
    texts, stopped = tiny.texts(30), []

    def stop(rows):
        stopped.append(len(rows))
        if len(stopped) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        featurize(texts, out=tmp_path, each_shard=stop)
    assert not threads()
    ahead.clear()
    found = featurize(texts, out=tmp_path)
    assert ahead == [False, True, True]
    np.testing.assert_array_equal(found.values, featurize(texts).values)


def test_nothing_is_made_while_the_caller_has_the_rows(ahead):
    """who may use the tokenizer there"""
    made = []
    featurize(tiny.texts(30), each_shard=lambda _: (made.append(len(ahead)), time.sleep(0.05), made.append(len(ahead))))
    assert made[::2] == made[1::2]
    assert made[0] == 2


def test_what_cannot_be_read_fails_the_run_in_its_turn(tmp_path, ahead, monkeypatch):
    """The shards before it are whole, and none of those behind it is begun."""
    texts, done, counted = tiny.texts(30), [], run.read_tokens

    def read(chosen, *rest):
        if texts[16] in chosen:
            raise saerl_fast.errors.InputError("text 16")
        return counted(chosen, *rest)

    monkeypatch.setattr(run, "read_tokens", read)
    with pytest.raises(saerl_fast.errors.InputError, match="text 16"):
        featurize(texts, out=tmp_path, each_shard=lambda rows: done.append(len(rows)))
    assert done == [7, 7]
    assert len(ahead) == 2
    assert not threads()
