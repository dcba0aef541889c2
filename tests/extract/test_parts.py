"""A job in shares: each worker has a folder of its own, and joined they are the folder one worker would have written."""

import hashlib
import shutil

import pytest

from saerl_fast.durable import os as durable_os
from saerl_fast.errors import CorruptStoreError, FormatError, IncompleteStoreError, InputError, JobMismatchError
from saerl_fast.extract.inputs import to_json_lines
from saerl_fast.extract.inspect import verify_store
from saerl_fast.extract.job import WHOLE, Part
from saerl_fast.extract.merge import merge_parts
from saerl_fast.extract.store import StoreWriter, load_features
from saerl_fast.extract.workers import choose_part
from tests.extract.stores import content, go_on, job, rows

LINES = to_json_lines([{"level": row} for row in range(65)])


def whole_job():
    return job(65, columns=hashlib.sha256(LINES).hexdigest())


def split_up(folder, shares, only=None):
    for index in range(shares) if only is None else only:
        part = Part(index, shares)
        go_on(folder / part.folder, whole_job(), part, LINES)


@pytest.mark.parametrize("shares", [1, 2, 3, 7, 9])
def test_joined_shares_are_what_one_worker_writes(tmp_path, shares):
    go_on(tmp_path / "one", whole_job(), columns=LINES)
    split_up(tmp_path / "many", shares)
    assert not (tmp_path / "many" / "DONE").exists()
    merge_parts(tmp_path / "many")
    assert content(tmp_path / "many") == content(tmp_path / "one")
    assert not list(verify_store(tmp_path / "many"))
    assert merge_parts(tmp_path / "many").rows == 65  # once more is nothing


def test_shares_from_elsewhere_and_without_links(tmp_path, monkeypatch):
    split_up(tmp_path / "here", 2, only=[0])
    split_up(tmp_path / "there", 2, only=[1])

    def across_disks(*_):
        raise OSError(18, "Invalid cross-device link")

    real = durable_os.link
    monkeypatch.setattr(durable_os, "link", lambda a, b: (across_disks if not str(a).endswith(".tmp") else real)(a, b))
    merge_parts(tmp_path / "all", [tmp_path / "here" / "part-0-of-2", tmp_path / "there" / "part-1-of-2"])
    go_on(tmp_path / "one", whole_job(), columns=LINES)
    assert content(tmp_path / "all") == content(tmp_path / "one")
    shutil.rmtree(tmp_path / "here")
    assert len(load_features(tmp_path / "all")) == 65


def test_a_missing_share_and_its_shards_are_named_and_can_come_later(tmp_path):
    split_up(tmp_path, 3, only=[0, 2])
    with pytest.raises(IncompleteStoreError, match=r"2 of 7 shards .* 1 \(rows 10-19\), 4 \(rows 40-49\).*share 1/3"):
        merge_parts(tmp_path)
    with pytest.raises(IncompleteStoreError):
        load_features(tmp_path)
    split_up(tmp_path, 3, only=[1])
    merge_parts(tmp_path)
    assert len(load_features(tmp_path)) == 65


def test_a_share_is_no_whole(tmp_path):
    split_up(tmp_path, 2)
    with pytest.raises(IncompleteStoreError, match=r"is share 1/2 of a job; join all with `saerl merge`"):
        load_features(tmp_path / "part-1-of-2")
    assert len(load_features(tmp_path / "part-1-of-2", allow_partial=True)) == 30
    assert not list(verify_store(tmp_path / "part-1-of-2"))
    with pytest.raises(FormatError, match="it holds shares: join them with `saerl merge"):
        load_features(tmp_path)
    for other in (WHOLE, Part(0, 2), Part(1, 3)):
        with pytest.raises(JobMismatchError, match="for share 1/2"):
            go_on(tmp_path / "part-1-of-2", whole_job(), other)


def test_shares_of_other_jobs_and_other_bytes_are_refused(tmp_path):
    split_up(tmp_path, 2, only=[0])
    go_on(tmp_path / "part-1-of-2", job(65, seed=1), Part(1, 2))
    with pytest.raises(JobMismatchError, match="seed"):
        merge_parts(tmp_path)
    shutil.rmtree(tmp_path / "part-1-of-2")
    with StoreWriter(tmp_path, whole_job()) as store:
        store.write(0, rows(0, 10, seed=5), [])
    with pytest.raises(CorruptStoreError, match="the same shard with other bytes"):
        merge_parts(tmp_path)
    with pytest.raises(InputError, match="there is no such folder"):
        merge_parts(tmp_path / "absent")


def test_a_worker_cleans_up_after_itself_only(tmp_path):
    split_up(tmp_path, 2, only=[0])
    at_work = tmp_path / "part-0-of-2" / "shards" / "00002.safetensors.77.tmp"
    at_work.write_bytes(b"half")
    left_over = tmp_path / "left.77.tmp"
    left_over.write_bytes(b"half")
    with StoreWriter(tmp_path, whole_job()):
        pass
    assert at_work.exists()
    assert not left_over.exists()


@pytest.mark.parametrize(
    ("asked", "environment", "wanted"),
    [
        (None, {}, (0, 1)),
        (None, {"RANK": "0", "WORLD_SIZE": "1"}, (0, 1)),
        (None, {"RANK": "2", "WORLD_SIZE": "4"}, (2, 4)),
        (None, {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8"}, (3, 8)),
        (
            None,
            {
                "SLURM_ARRAY_TASK_ID": "7",
                "SLURM_ARRAY_TASK_COUNT": "4",
                "SLURM_ARRAY_TASK_MIN": "1",
                "SLURM_ARRAY_TASK_STEP": "2",
            },
            (3, 4),
        ),
        (None, {"RANK": "0", "WORLD_SIZE": "1", "SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "2"}, (1, 2)),
        ("1/3", {"RANK": "2", "WORLD_SIZE": "4"}, (1, 3)),
        ("0/1", {"RANK": "2", "WORLD_SIZE": "4", "SLURM_ARRAY_TASK_ID": "1"}, (0, 1)),
    ],
)
def test_the_share_is_said_or_taken_from_the_launcher(asked, environment, wanted):
    part, reason = choose_part(asked, environment)
    assert (part.index, part.of) == wanted
    assert reason


@pytest.mark.parametrize(
    ("asked", "environment", "message"),
    [
        ("3/3", {}, "counted from 0"),
        ("1", {}, "written i/n"),
        ("1/0", {}, "0 <= i < n"),
        (None, {"RANK": "1"}, "RANK is set, but not WORLD_SIZE"),
        (None, {"RANK": "x", "WORLD_SIZE": "2"}, "RANK='x'"),
        (None, {"RANK": "5", "WORLD_SIZE": "2"}, "got 5/2"),
        (
            None,
            {"RANK": "1", "WORLD_SIZE": "2", "SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "2"},
            "say which is meant",
        ),
        (
            None,
            {"SLURM_ARRAY_TASK_ID": "4", "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_STEP": "3"},
            "steps of 3",
        ),
    ],
)
def test_shares_that_make_no_sense_are_refused(asked, environment, message):
    with pytest.raises(InputError, match=message):
        choose_part(asked, environment)
