"""File systems without links (FAT, some FUSE) and without locks (some NFS): a name is given once all the same."""

import errno
import fcntl
import logging
import os
import signal
import time
from types import SimpleNamespace

import pytest

from saerl_fast import durable
from saerl_fast.errors import StoreBusyError
from saerl_fast.extract.inspect import verify_store
from saerl_fast.extract.store import StoreWriter
from tests.attacks.disk import StandIn
from tests.attacks.test_writers import JOB, LATE, REFUSED, WON, content_of, writers
from tests.extract.stores import content, go_on, rows
from tests.nightly.sizes import daily_and_nightly

NO_LINKS = [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS]
NO_LOCKS = [*NO_LINKS, errno.ENOLCK]


class WithoutLinks(StandIn):
    """link fails; and kill -9 comes just before the n-th call that would change the disk."""

    def __init__(self, code=errno.EPERM, killed_at=-1):
        super().__init__()
        self.code, self.left = code, killed_at

    def before(self, name, path, arguments):
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1
        if name == "link":
            raise OSError(self.code, os.strerror(self.code), path)


def without_locks(code=errno.ENOLCK):
    def flock(*_):
        raise OSError(code, os.strerror(code))

    return SimpleNamespace(flock=flock, LOCK_EX=fcntl.LOCK_EX, LOCK_NB=fcntl.LOCK_NB)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "f"
    go_on(folder, JOB)
    return content(folder)


@pytest.mark.parametrize("code", NO_LINKS)
def test_without_links_the_bytes_are_the_same_and_none_is_replaced(tmp_path, monkeypatch, finished, code):
    monkeypatch.setattr(durable, "os", WithoutLinks(code))
    go_on(tmp_path, JOB)
    assert content(tmp_path) == finished
    assert not list(tmp_path.rglob("*.tmp"))
    with StoreWriter(tmp_path, JOB) as store, pytest.raises(StoreBusyError, match="by another process meanwhile"):
        store.write(0, rows(0, 10, seed=5), [])
    assert content(tmp_path) == finished
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("code", NO_LOCKS)
def test_without_locks_it_is_said_and_what_may_be_anothers_stays(tmp_path, monkeypatch, caplog, finished, code):
    monkeypatch.setattr(durable, "fcntl", without_locks(code))
    at_work = tmp_path / "shards" / "00000.safetensors.7-ab.tmp"
    at_work.parent.mkdir()
    at_work.write_bytes(b"half")
    with caplog.at_level(logging.WARNING):
        go_on(tmp_path, JOB)
    assert "no locks on this file system" in caplog.text
    assert at_work.read_bytes() == b"half"
    at_work.unlink()
    assert content(tmp_path) == finished


@pytest.mark.parametrize("lacking", ["links", "locks"])
def test_another_error_is_no_reason_to_do_without(tmp_path, monkeypatch, lacking):
    monkeypatch.setattr(
        durable, *(("os", WithoutLinks(errno.EIO)) if lacking == "links" else ("fcntl", without_locks(errno.EIO)))
    )
    with pytest.raises(OSError, match="Input/output error"):
        go_on(tmp_path, JOB)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "LOCK"]


def test_killed_at_any_call_without_links(tmp_path, monkeypatch, finished):
    calls = 0
    while calls < 300:
        folder = tmp_path / str(calls)
        child = os.fork()
        if not child:
            code = 1
            try:
                durable.os = WithoutLinks(killed_at=calls)
                go_on(folder, JOB)
                code = 0
            finally:
                os._exit(code)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            break
        with monkeypatch.context() as patch:
            patch.setattr(durable, "os", WithoutLinks())
            go_on(folder, JOB)
        assert content(folder) == finished
        assert not list(folder.rglob("*.tmp"))
        calls += 1
    assert 40 < calls < 300


def test_a_claim_left_by_a_kill_is_named_where_it_cannot_be_cleared_away(tmp_path, monkeypatch, finished):
    monkeypatch.setattr(durable, "os", WithoutLinks())
    monkeypatch.setattr(durable, "fcntl", without_locks())
    claim = tmp_path / "shards" / "00001.safetensors.claim.tmp"
    claim.parent.mkdir()
    claim.touch()
    with pytest.raises(StoreBusyError, match=r"00001\.safetensors\.claim\.tmp is there: .* delete that file and run"):
        go_on(tmp_path, JOB)
    claim.unlink()
    go_on(tmp_path, JOB)
    assert content(tmp_path) == finished


@pytest.mark.parametrize("lacking", ["links", "locks", "links and locks"])
@daily_and_nightly("rounds", 3, 100)
def test_eight_writers(tmp_path, monkeypatch, rounds, lacking, record_property):
    if "links" in lacking:
        monkeypatch.setattr(durable, "os", WithoutLinks())
    if "locks" in lacking:
        monkeypatch.setattr(durable, "fcntl", without_locks())
    refused = 0
    for number in range(rounds):
        folder, start = tmp_path / str(number), tmp_path / f"{number}.start"
        children = writers(folder, start, 8)
        start.touch()
        codes, seen = {}, {}
        while len(codes) < len(children):
            for path in (folder / "shards").glob("*.safetensors"):
                assert seen.setdefault(path.name, path.read_bytes()) == path.read_bytes()
            for child in [child for child in children if child not in codes]:
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    codes[child] = os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        # without a lock a writer is refused at the first name that another was faster to give
        assert set(codes.values()) <= ({WON, REFUSED, LATE} if "locks" in lacking else {WON, REFUSED})
        assert WON in codes.values()
        refused += sum(code != WON for code in codes.values())
        assert not list(verify_store(folder))
        assert all((folder / "shards" / name).read_bytes() == held for name, held in seen.items())
        if lacking == "links":  # with a lock one writer made every shard
            assert content(folder) in [content_of(tmp_path / "by", seed) for seed in range(8)]
    assert refused > 3 * rounds
    record_property("rounds", rounds)
