"""Committing files where the file system is odd: no links, no locks, names that are taken, a disk that fills."""

import errno
import fcntl
import json
import os
from pathlib import Path

import pytest

from saerl_fast import durable
from saerl_fast.errors import (
    CorruptStoreError,
    DiskFullError,
    FormatError,
    InputError,
    JobMismatchError,
    PlaceError,
    StoreBusyError,
)


def failing(code):
    def call(*_):
        raise OSError(code, os.strerror(code))

    return call


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP])
def test_without_links_a_name_is_still_given_once(tmp_path, monkeypatch, code):
    monkeypatch.setattr(durable.os, "link", failing(code))
    durable.write_once(tmp_path / "a", b"first")
    with pytest.raises(FileExistsError):
        durable.write_once(tmp_path / "a", b"second")
    assert (tmp_path / "a").read_bytes() == b"first"
    assert names(tmp_path) == ["a"]
    (tmp_path / "b.claim.tmp").touch()  # another process is about to give this name
    with pytest.raises(StoreBusyError, match="another process is giving b its name"):
        durable.write_once(tmp_path / "b", b"second")
    assert not (tmp_path / "b").exists()
    (tmp_path / "b.claim.tmp").unlink()
    monkeypatch.setattr(durable.os, "rename", failing(errno.ENOENT))
    with pytest.raises(StoreBusyError, match="another process is writing this folder, or cleaned it up"):
        durable.write_once(tmp_path / "b", b"second")
    assert names(tmp_path) == ["a"]


def test_links_that_fail_for_another_reason_are_no_reason_to_copy(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"x")
    monkeypatch.setattr(durable.os, "link", failing(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        durable.write_once(tmp_path / "b", b"x")
    with pytest.raises(OSError, match="Input/output"):
        durable.share(tmp_path / "a", tmp_path / "b")
    assert names(tmp_path) == ["a"]


def test_a_temporary_file_that_another_process_took_away_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(durable.os, "link", failing(errno.ENOENT))
    with pytest.raises(StoreBusyError, match="another process is writing this folder, or cleaned it up"):
        durable.write_once(tmp_path / "a", b"x")


def test_what_is_set_aside_takes_no_name_that_is_there(tmp_path):
    for number in range(3):
        (tmp_path / "bad").write_bytes(bytes([number]))
        place = durable.set_aside(tmp_path / "bad", tmp_path / "aside")
        assert (place.name, place.read_bytes()) == (f"bad.{number}", bytes([number]))
    assert names(tmp_path) == ["aside"]


def test_a_folder_made_by_another_process_meanwhile_is_taken_and_a_file_is_not(tmp_path, monkeypatch):
    real = os.mkdir

    def mkdir(path, *more):
        real(path, *more)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))

    with monkeypatch.context() as patch:
        patch.setattr(durable.os, "mkdir", mkdir)
        durable.make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    for name in ("file", "file/below"):
        with pytest.raises(PlaceError, match="file is a file; a folder is wanted"):
            durable.make_folder(tmp_path / name)


def test_a_file_is_removed_for_good_and_an_absent_one_is_no_error(tmp_path):
    (tmp_path / "a").touch()
    for _ in range(2):
        durable.remove(tmp_path / "a")
        assert not names(tmp_path)


def test_the_errors_of_other_writers_on_a_full_disk_are_one_and_all_others_pass(tmp_path, monkeypatch):
    with pytest.raises(DiskFullError, match="the disk is full"), durable.naming_full_disk(tmp_path):
        failing(errno.ENOSPC)()
    with pytest.raises(RuntimeError, match="unrelated"), durable.naming_full_disk(tmp_path):
        raise RuntimeError("unrelated")
    with pytest.raises(StoreBusyError), durable.naming_full_disk(tmp_path):
        raise StoreBusyError("ours")

    class Nearly:
        free = 100

    monkeypatch.setattr(durable.shutil, "disk_usage", lambda _: Nearly)
    with pytest.raises(DiskFullError, match="the disk is full") as caught, durable.naming_full_disk(tmp_path):
        raise RuntimeError("write failed")  # what arrow and others make of it
    assert str(caught.value.__cause__) == "write failed"


def test_a_file_system_without_locks_is_served_with_a_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(durable.fcntl, "flock", failing(errno.ENOLCK))
    with durable.sole_writer(tmp_path):
        pass
    assert "no locks on this file system" in caplog.text
    monkeypatch.setattr(durable.fcntl, "flock", failing(errno.EIO))
    with pytest.raises(OSError, match="Input/output"), durable.sole_writer(tmp_path):
        pass


def test_a_lock_that_was_deleted_before_it_was_taken_locks_nobody_out_and_is_taken_again(tmp_path, monkeypatch):
    real, seen = fcntl.flock, []

    def flock(descriptor, how):
        real(descriptor, how)
        seen.append(descriptor)
        if len(seen) == 1:
            (tmp_path / durable.LOCK).unlink()

    monkeypatch.setattr(durable.fcntl, "flock", flock)
    with durable.sole_writer(tmp_path):
        assert len(seen) == 2
        with pytest.raises(StoreBusyError, match=rf"pid {os.getpid()} on"), durable.sole_writer(tmp_path):
            pass


def test_left_overs_go_but_not_those_of_another_writer_inside(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "other").mkdir()
    for name in ("a.1.tmp", "deep/b.tmp", "other/c.tmp", f"other/{durable.LOCK}", "deep/kept"):
        (tmp_path / name).touch()
    with durable.sole_writer(tmp_path):
        left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {durable.LOCK, "deep/kept", "other/c.tmp", f"other/{durable.LOCK}"}


def test_a_manifest_belongs_to_one_fingerprint(tmp_path):
    path = tmp_path / "manifest.json"
    wanted = {"fingerprint": {"seed": 1, "model": Path("m")}, "note": "x"}
    durable.enter_manifest(path, wanted)
    durable.enter_manifest(path, {**wanted, "note": "y"})
    assert json.loads(path.read_text())["note"] == "x"
    with pytest.raises(JobMismatchError, match="seed: folder 1, this run 2"):
        durable.enter_manifest(path, {"fingerprint": {**wanted["fingerprint"], "seed": 2}})
    path.write_text('{"fingerprint": []}')
    with pytest.raises(FormatError, match="wanted an object 'fingerprint'"):
        durable.enter_manifest(path, wanted)
    for content, message in [
        (b"\xff", "not JSON"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "got list"),
    ]:
        path.write_bytes(content)
        with pytest.raises(CorruptStoreError, match=message):
            durable.read_object(path)


def test_what_cannot_be_written_is_foreseen_and_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(PlaceError, match="file is a file"):
        durable.check_place(tmp_path / "file" / "below" / "deep")
    durable.check_place(tmp_path / "new" / "deep")
    assert names(tmp_path) == ["file"]
    monkeypatch.setattr(durable.os, "access", lambda *_: False)
    with pytest.raises(PlaceError, match="nothing may be written there"):
        durable.check_place(tmp_path / "new")
    with pytest.raises(PlaceError, match="absent is no folder; make it first"):
        durable.write_once(tmp_path / "absent" / "a", b"x")
    with pytest.raises(InputError, match="left alone"):
        durable.replace(tmp_path, b"x")
    for code, message in [(errno.EROFS, "cannot be written: Read-only"), (errno.ENOTDIR, "is no folder")]:
        with monkeypatch.context() as patch:
            patch.setattr(durable.os, "open", failing(code))
            with pytest.raises(PlaceError, match=message):
                durable.write_once(tmp_path / "a", b"x")


def test_a_whole_folder_gets_its_name_once(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "inside").write_bytes(name.encode())
    durable.commit_folder(tmp_path / "a", tmp_path / "c")
    with pytest.raises(PlaceError, match="c is there already"):
        durable.commit_folder(tmp_path / "b", tmp_path / "c")
    assert (tmp_path / "c" / "inside").read_bytes() == b"a"
    monkeypatch.setattr(durable.os, "rename", failing(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        durable.commit_folder(tmp_path / "b", tmp_path / "d")
