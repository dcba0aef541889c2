"""Every changed bit of a folder is named by verify; repair ends with the bytes that were there before."""

import hashlib
import json
import logging

import numpy as np
import pytest

from saerl_fast import featurize
from saerl_fast.cli import main
from saerl_fast.errors import FormatError, IncompleteStoreError, SaerlError
from saerl_fast.extract.inputs import to_json_lines
from saerl_fast.extract.inspect import quarantine, verify_store
from saerl_fast.extract.store import SANITY, load_features, read_columns
from saerl_fast.formats import save_sae
from tests import tiny
from tests.extract.stores import content, go_on, job
from tests.nightly.sizes import daily_and_nightly

LINES = to_json_lines([{"level": row} for row in range(25)])


def made(folder):
    go_on(folder, job(columns=hashlib.sha256(LINES).hexdigest()), columns=LINES)
    return content(folder)


def read_all(folder):
    load_features(folder)
    read_columns(folder)


@daily_and_nightly("flips", 1_000, 10_000)
def test_every_flipped_bit_is_found(tmp_path, flips, record_property):
    files = made(tmp_path)
    generator = np.random.default_rng(flips)
    names = generator.choice(
        sorted(files), flips, p=[len(files[n]) / sum(map(len, files.values())) for n in sorted(files)]
    )
    for name in [*names[:-40], *sorted(files) * 5, *["DONE"] * 10]:
        bad = bytearray(files[name])
        bad[int(generator.integers(len(bad)))] ^= 1 << int(generator.integers(8))
        (tmp_path / name).write_bytes(bad)
        with pytest.raises(SaerlError):
            read_all(tmp_path)
        (tmp_path / name).write_bytes(files[name])
    read_all(tmp_path)
    record_property("flips", flips)


def test_every_changed_byte_of_the_sanity_figures_is_found_and_they_are_measured_again(tmp_path):
    call = {"tokenizer": tiny.tokenizer(), "out": tmp_path, "progress": False}
    featurize(tiny.texts(10), tiny.causal_lm(), tiny.sae(), **call)
    whole = (tmp_path / SANITY).read_bytes()
    for place in range(len(whole)):
        bad = bytearray(whole)
        bad[place] ^= 1
        (tmp_path / SANITY).write_bytes(bad)
        assert [finding.path for finding in verify_store(tmp_path)] == [tmp_path / SANITY], (
            place,
            whole[place : place + 9],
        )
    quarantine(tmp_path)
    assert not (tmp_path / SANITY).exists()
    featurize(tiny.texts(10), tiny.causal_lm(), tiny.sae(), **call)
    assert (tmp_path / SANITY).read_bytes() == whole
    assert not list(verify_store(tmp_path))


@daily_and_nightly("cases", 100, 1_000)
def test_every_truncated_and_swapped_file_is_found(tmp_path, cases, record_property):
    files = made(tmp_path / "a")
    go_on(tmp_path / "b", job(columns=hashlib.sha256(LINES).hexdigest(), seed=2), columns=LINES)
    others = content(tmp_path / "b") | {f"other/{name}": value for name, value in files.items()}
    generator = np.random.default_rng(cases)
    swaps = [(n, o) for n in files for o in others if files[n] != others[o] and (n == o or "shards/" in n + o)]
    for number in range(cases):
        name = sorted(files)[number % len(files)]
        (tmp_path / "a" / name).write_bytes(files[name][: int(generator.integers(len(files[name])))])
        with pytest.raises(SaerlError):
            read_all(tmp_path / "a")
        (tmp_path / "a" / name).write_bytes(files[name])
        name, other = swaps[int(generator.integers(len(swaps)))]
        (tmp_path / "a" / name).write_bytes(others[other])
        with pytest.raises(SaerlError):
            read_all(tmp_path / "a")
        (tmp_path / "a" / name).write_bytes(files[name])
    read_all(tmp_path / "a")
    record_property("truncations_and_swaps", 2 * cases)


def test_verify_names_each_bad_file_and_repair_puts_it_aside(tmp_path):
    before = made(tmp_path)
    assert not list(verify_store(tmp_path))
    for name in ("shards/00001.safetensors", "columns.jsonl"):
        (tmp_path / name).write_bytes(before[name][:-1])
    (tmp_path / "shards" / "00002.safetensors").unlink()
    (tmp_path / "shards" / "stranger").write_bytes(b"x")
    found = {finding.path.name: finding for finding in verify_store(tmp_path)}
    assert set(found) == {"columns.jsonl", "00001.safetensors", "00002.safetensors", "stranger"}
    assert found["00002.safetensors"].missing
    assert "rows 20-24" in found["00002.safetensors"].problem
    places = [place for _, place in quarantine(tmp_path) if place is not None]
    assert sorted(p.name for p in places) == ["00001.safetensors.0", "columns.jsonl.0", "stranger.0"]
    assert (tmp_path / "quarantine" / "columns.jsonl.0").read_bytes() == before["columns.jsonl"][:-1]
    with pytest.raises(IncompleteStoreError, match=r"1 \(rows 10-19\), 2 \(rows 20-24\)"):
        load_features(tmp_path)
    made(tmp_path)
    assert content(tmp_path) == before


def test_a_changed_mark_or_manifest_is_put_aside_alone(tmp_path):
    before = made(tmp_path)
    for name in ("DONE", "manifest.json"):
        (tmp_path / name).write_bytes(before[name].replace(b"5", b"6").replace(b"1", b"2"))
        assert [finding.path.name for finding, _ in quarantine(tmp_path)] == [name]
        made(tmp_path)
        assert content(tmp_path) == before
    with pytest.raises(FormatError, match="not a feature folder"):
        list(verify_store(tmp_path / "absent"))


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """saerl featurize on a table of 40 texts and a tiny model, without the folder."""
    folder = tmp_path_factory.mktemp("road")
    tiny.causal_lm("llama").save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    save_sae(tiny.sae(), folder / "sae")
    table = [{"id": f"r{n}", "text": text, "level": n % 5} for n, text in enumerate(tiny.texts(40))]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    return [
        "featurize",
        str(folder / "rows.jsonl"),
        *("--text-field", "text", "--shard-rows", "8"),
        *("--model", str(folder / "model"), "--sae", str(folder / "sae"), "--out"),
    ]


def test_the_commands(command, tmp_path, capsys, monkeypatch, caplog):
    for name in ("RANK", "WORLD_SIZE", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    caplog.set_level(logging.INFO)
    whole, shared = str(tmp_path / "whole"), str(tmp_path / "shared")
    assert main([*command, whole]) == 0
    before = content(tmp_path / "whole")
    assert main([*command, whole]) == 0  # a finished folder is only read
    assert main(["verify", whole]) == 0
    assert "whole (5 shards of 40 rows)" in capsys.readouterr().out

    shard = tmp_path / "whole" / "shards" / "00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\1")
    assert main(["verify", whole]) == 1
    assert "00003.safetensors: content does not match" in capsys.readouterr().out
    assert main([*command, whole]) == 2
    assert "CorruptStoreError" in capsys.readouterr().err
    assert main(["repair", whole]) == 0
    assert "1 shards computed again" in capsys.readouterr().out
    assert content(tmp_path / "whole") == before
    assert main(["repair", whole]) == 0
    assert "nothing to do" in capsys.readouterr().out

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([*command, shared]) == 0
    assert "RANK=1 of WORLD_SIZE=2" in caplog.text
    assert main(["merge", shared]) == 2
    assert "share 0/2" in capsys.readouterr().err
    assert main([*command, shared, "--shard", "0/2"]) == 0
    assert main(["merge", shared]) == 0
    assert content(tmp_path / "shared") == before
    assert main([*command, whole, "--shard", "0/1", "--pool", "max"]) == 2
    assert "pool: folder 'mean', this run 'max'" in capsys.readouterr().err


def test_repair_of_a_folder_without_a_recorded_command_says_what_to_do(tmp_path, capsys):
    made(tmp_path)
    (tmp_path / "shards" / "00000.safetensors").write_bytes(b"")
    assert main(["repair", str(tmp_path)]) == 1
    assert "command or call that wrote this folder once more" in capsys.readouterr().out
