"""Training finds planted structure; a killed run ends with the bits of an undisturbed one; sae-lens reads what it leaves."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

from saerl_fast import durable
from saerl_fast.cli import main
from saerl_fast.errors import (
    CorruptStoreError,
    DtypeError,
    InputError,
    JobMismatchError,
    MissingDependency,
    NonFiniteError,
)
from saerl_fast.extract.hooks import block_output
from saerl_fast.extract.reader import open_reader
from saerl_fast.extract.stream import ActivationStream, read_rows
from saerl_fast.formats import load_sae
from saerl_fast.sae import sanity
from saerl_fast.sae_trainer import Recipe, train_sae
from saerl_fast.sae_trainer import fit as fitting
from saerl_fast.sae_trainer import run as running
from saerl_fast.sae_trainer.checkpoint import read_checkpoint
from tests import tiny
from tests.op_table import dense

sae_lens = pytest.importorskip("sae_lens")

SETTINGS = {"layer": 1, "k": 4, "width": 96, "tokens": 64 * 10, "batch_rows": 64, "buffer_rows": 256, "lr": 1e-2}
SETTINGS |= {"tokens_per_batch": 128, "checkpoint_every": 4, "progress": False}


class Planted:
    """Rows that are sums of 3 of 40 fixed directions."""

    def __init__(self, batch_rows, seed=0):
        self.batch_rows = batch_rows
        self.generator = torch.Generator().manual_seed(seed)
        self.directions = torch.nn.functional.normalize(
            torch.randn(40, 32, generator=torch.Generator().manual_seed(9)), dim=1
        )

    def __next__(self):
        chosen = torch.rand(self.batch_rows, 40, generator=self.generator).topk(3).indices
        strengths = torch.rand(self.batch_rows, 3, 1, generator=self.generator) + 1
        return (self.directions[chosen] * strengths).sum(1)

    def state(self):
        return {"generator": self.generator.get_state()}

    def restore(self, state):
        self.generator.set_state(state["generator"])


def planted_sae(folder, steps, kind="topk", k=3):
    folder.mkdir()
    recipe = Recipe(kind, k, 80, 256 * steps, 256, 1e-2, 0)
    trainer = fitting.fit(Planted(256), recipe, folder, checkpoint_every=1000, progress=False)
    fitting.export(trainer, folder, {"model_name": "planted"})
    return load_sae(folder)


@pytest.mark.parametrize("kind", ["topk", "batchtopk"])
def test_training_recovers_planted_structure(tmp_path, kind):
    before = torch.random.get_rng_state()
    # sae-lens's threshold of a BatchTopK SAE begins at 0 and moves by 1 % a step: 400 steps bring it there
    sae = planted_sae(tmp_path / "trained", 150 if kind == "topk" else 400, kind)
    assert torch.equal(torch.random.get_rng_state(), before)
    unseen = next(Planted(2000, seed=5))
    found, untrained = sanity(sae, unseen), sanity(planted_sae(tmp_path / "none", 1), unseen)
    # three directions chosen blindly out of 32 explain 9 % of such rows, the planted ones all
    assert found.explained_variance > 0.9
    assert untrained.explained_variance < 0.5
    assert found.l0 == pytest.approx(3, abs=0.5)
    assert sae.model_name == "planted"


@pytest.fixture(scope="module")
def world():
    return tiny.causal_lm(), tiny.tokenizer(), tiny.texts(60)


def train(world, out, **settings):
    model, tokenizer, texts = world
    return train_sae(texts, model, out, tokenizer=tokenizer, **{**SETTINGS, **settings})


@pytest.fixture(scope="module", params=["topk", "batchtopk"])
def undisturbed(request, world, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        keep_checkpoint(patch)
        return request.param, train(world, tmp_path_factory.mktemp(request.param), kind=request.param)


def keep_checkpoint(monkeypatch):
    """Under another name: it shows counts and moments that nothing else of a short run does."""
    monkeypatch.setattr(running, "remove", lambda path: path.rename(path.with_name("last")))


class Killed(BaseException):
    """What no handler of the package may catch, as a kill is."""


def count_batches(monkeypatch, dies_at=None):
    """A list that grows by one with every batch drawn; the draw number ``dies_at`` does not return."""
    drawn = []
    honest = ActivationStream.__next__

    def counted(stream):
        if len(drawn) == dies_at:
            raise Killed
        drawn.append(None)
        return honest(stream)

    monkeypatch.setattr(ActivationStream, "__next__", counted)
    return drawn


# 10 steps, checkpoints behind 4, 8 and 10; one batch more is drawn at the start, for b_dec
@pytest.mark.parametrize(("dies_at", "done"), [(3, 0), (5, 4), (7, 4), (10, 8)])
def test_a_killed_run_ends_with_the_same_bits(undisturbed, world, tmp_path, monkeypatch, dies_at, done):
    kind, wanted = undisturbed
    with monkeypatch.context() as patch:
        count_batches(patch, dies_at)
        with pytest.raises(Killed):
            train(world, tmp_path, kind=kind)
    assert not (tmp_path / "cfg.json").exists()
    assert (tmp_path / fitting.CHECKPOINT).exists() == (done > 0)
    drawn = count_batches(monkeypatch)
    keep_checkpoint(monkeypatch)
    found = train(world, tmp_path, kind=kind)
    assert len(drawn) == (10 - done if done else 11)
    assert same_files(tmp_path, wanted.folder)
    assert_same_checkpoints(tmp_path / "last", wanted.folder / "last")
    assert found.sanity == wanted.sanity


def assert_same_checkpoints(found, wanted):
    (numbers, tensors), (wanted_numbers, wanted_tensors) = (read_checkpoint(file) for file in (found, wanted))
    assert numbers == wanted_numbers
    assert tensors.keys() == wanted_tensors.keys()
    assert [name for name in tensors if not torch.equal(tensors[name], wanted_tensors[name])] == []


@pytest.mark.parametrize("lost", ["cfg.json", "sanity.json"])
def test_killed_while_the_sae_is_written(undisturbed, world, tmp_path, monkeypatch, lost):
    kind, wanted = undisturbed
    honest = durable.replace

    def replace(path, content):
        if path.name == lost:
            raise Killed
        honest(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(fitting, "replace", replace)
        patch.setattr(running, "replace", replace)
        with pytest.raises(Killed):
            train(world, tmp_path, kind=kind)
    drawn = count_batches(monkeypatch)
    train(world, tmp_path, kind=kind)
    assert not drawn  # the last step is a checkpoint
    assert same_files(tmp_path, wanted.folder)
    assert not (tmp_path / fitting.CHECKPOINT).exists()


def same_files(folder, wanted):
    names = ("sae_weights.safetensors", "cfg.json", "sanity.json", "progress.jsonl")
    return all((folder / name).read_bytes() == (wanted / name).read_bytes() for name in names)


def test_sae_lens_reads_the_folder_and_encodes_the_same(undisturbed, world):
    kind, trained = undisturbed
    theirs = sae_lens.SAE.load_from_disk(str(trained.folder), device="cpu")
    assert theirs.cfg.architecture() == {"topk": "topk", "batchtopk": "jumprelu"}[kind]
    assert trained.sae.hook_name == theirs.cfg.metadata.hook_name == "blocks.1.hook_resid_post"
    assert (trained.sae.context_size, theirs.cfg.metadata.prepend_bos) == (64, True)
    model, tokenizer, texts = world
    reader = open_reader(model, block_output(1), tokenizer=tokenizer)
    rows = torch.cat(list(read_rows(texts, reader, 64, 512)))
    wanted = theirs.encode(rows).detach()
    assert wanted.count_nonzero() > len(rows)
    found = dense(trained.sae.encode(rows), 96, torch.float32)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_what_is_written_beside_it(undisturbed):
    trained = undisturbed[1]
    lines = [json.loads(line) for line in (trained.folder / "progress.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 8, 10]
    assert lines[-1]["tokens"] == 640
    assert lines[0]["loss"] > lines[-1]["loss"]
    assert lines[-1]["l0"] == pytest.approx(4)
    report = json.loads((trained.folder / "sanity.json").read_text())
    assert report["explained_variance"] == trained.sanity.explained_variance
    assert (report["k"], report["d_sae"], report["rows"]) == (4, 96, trained.held_out_tokens)
    assert trained.sae.metadata["l0"] == pytest.approx(4)  # sae-lens's own figure, over the training


def test_a_finished_run_is_read_and_another_refused(undisturbed, world, monkeypatch, tmp_path):
    kind, wanted = undisturbed
    drawn = count_batches(monkeypatch)
    assert train(world, wanted.folder, kind=kind, checkpoint_every=9).sanity == wanted.sanity
    assert not drawn
    with pytest.raises(JobMismatchError, match=r"(?s)k: folder 4, this run 5.*lr: folder 0.01, this run 0.02"):
        train(world, wanted.folder, kind=kind, k=5, lr=0.02)
    with pytest.raises(JobMismatchError, match="texts: folder"):
        train((*world[:2], world[2][::-1]), wanted.folder, kind=kind)
    (tmp_path / "cfg.json").write_text("{}")
    with pytest.raises(JobMismatchError, match="not trained there"):
        train(world, tmp_path)
    assert (tmp_path / "cfg.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "gated"}, "kind must be one of"),
        ({"k": 97}, "k = 97 latents cannot be active of width = 96"),
        ({"k": 0}, "k must be a whole number from 1 up; got 0"),
        ({"tokens": 63}, "too few for one step of batch_rows = 64"),
        ({"lr": float("nan")}, "lr must be a number above 0; got nan"),
        ({"expansion": 4}, "one of width and expansion"),
        ({"width": None, "expansion": 0}, "expansion must be a whole number from 1 up"),
        ({"hook": "hook_embed"}, "one of layer and hook"),
        ({"buffer_rows": 100}, "at least twice batch_rows"),
        ({"checkpoint_every": 0}, "checkpoint_every must be"),
        ({"skip_first": 1024}, "max_length must be above skip_first"),
        ({"k": 4.0}, r"k must be a whole number from 1 up; got 4.0 \(float\)"),
        ({"layer": True}, "layer must be a whole number, or None; got True"),
        ({"seed": -1}, "seed must be a whole number from 0 up"),
        ({"progress": "no"}, "progress must be True or False"),
        ({"held_out": ["", None]}, "none of the 2 held-out texts"),
    ],
)
def test_bad_settings(world, tmp_path, settings, message):
    with pytest.raises((InputError, DtypeError), match=message):
        train(world, tmp_path, **settings)
    assert not (tmp_path / "cfg.json").exists()


def test_bad_texts_and_no_sae_lens(world, tmp_path, monkeypatch):
    for texts, message in (([], "texts is empty"), (["alone"], "at least 2 texts")):
        with pytest.raises(InputError, match=message):
            train((*world[:2], texts), tmp_path)
    monkeypatch.setitem(sys.modules, "sae_lens", None)
    with pytest.raises(MissingDependency, match="pip install"):
        train(world, tmp_path)


def test_a_run_that_runs_away_keeps_the_checkpoint_from_before(world, tmp_path, monkeypatch):
    honest = ActivationStream.__next__
    drawn = count_batches(monkeypatch)
    counted = ActivationStream.__next__
    monkeypatch.setattr(
        ActivationStream, "__next__", lambda stream: counted(stream) * (float("nan") if len(drawn) == 6 else 1)
    )
    with pytest.raises(NonFiniteError, match="by step 8"):
        train(world, tmp_path)
    monkeypatch.setattr(ActivationStream, "__next__", honest)
    assert train(world, tmp_path).sae.w_enc.isfinite().all()


def test_a_changed_byte_of_a_checkpoint_is_refused(world, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        count_batches(patch, dies_at=6)
        with pytest.raises(Killed):
            train(world, tmp_path)
    file = tmp_path / fitting.CHECKPOINT
    whole = file.read_bytes()
    for content in (whole[:-1], whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:], b"", b"\x80\x04."):
        file.write_bytes(content)
        with pytest.raises(CorruptStoreError, match="delete it"):
            train(world, tmp_path)


def test_the_command_with_a_config(world, tmp_path, capsys):
    model, tokenizer, texts = world
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "data.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "run.yaml").write_text(
        "text-field: text\nhook: blocks.2.hook_mlp_out\nk: 3\nexpansion: 2\ntokens: 200\nbatch-rows: 50\n"
        "buffer-rows: 100\nkind: batchtopk\nskip-first: 2\n"
    )
    words = ["train-sae", str(tmp_path / "data.jsonl"), "--model", str(tmp_path / "model")]
    words += ["--config", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "sae")]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "64 latents of 32 channels" in said
    assert "explained variance" in said
    sae = load_sae(tmp_path / "sae")
    assert (sae.kind, sae.d_sae, sae.hook_name) == ("jumprelu", 64, "blocks.2.hook_mlp_out")
    assert main([*words, "--k", "4"]) == 2
    assert "k: folder 3, this run 4" in capsys.readouterr().err
    assert main([*words, "--text-field", "texts"]) == 2
    assert "has no column 'texts'" in capsys.readouterr().err


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["topk", "batchtopk"])
def test_kill_9_of_the_command_at_any_moment(world, tmp_path, kind):
    model, tokenizer, texts = world
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "data.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    words = [sys.executable, "-m", "saerl_fast.cli", "train-sae", str(tmp_path / "data.jsonl"), "--text-field", "text"]
    words += ["--model", str(tmp_path / "model"), "--layer", "1", "--kind", kind, "--k", "4", "--width", "256"]
    words += ["--tokens", "64000", "--batch-rows", "64", "--buffer-rows", "1024", "--checkpoint-every", "7", "--out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*words, str(tmp_path / "whole")], env=environment, check=True)
    killed, going_on = tmp_path / "killed", []
    for number, pause in enumerate((0.0, 0.3, 0.9, 0.1)):
        # to a file: a pipe that nobody reads would stop a slow run at its 64th kilobyte of progress
        log = tmp_path / f"{number}.log"
        with open(log, "w") as told:
            process = subprocess.Popen([*words, str(killed)], env=environment, stderr=told)
        stood = last_step(killed)
        while last_step(killed) <= stood and process.poll() is None:
            time.sleep(0.01)
        time.sleep(pause)
        process.kill()
        process.wait()
        going_on += re.findall(r"going on after step (\d+)", log.read_text())
        assert process.returncode == -signal.SIGKILL, log.read_text()[-2000:]
    subprocess.run([*words, str(killed)], env=environment, check=True)
    assert len(set(going_on)) == 3
    assert same_files(killed, tmp_path / "whole")


def last_step(folder):
    """Of the checkpoint: the line of progress is ahead of it for a moment."""
    file = folder / fitting.CHECKPOINT
    return read_checkpoint(file)[0]["n_training_steps"] if file.exists() else 0
