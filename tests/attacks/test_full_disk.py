"""The disk is full at any call: what was committed stays, the error names the file, and the run ends as if it were not."""

import errno
import hashlib
import os
import resource
import shutil
import subprocess
import sys

import pytest

from saerl_fast import durable
from saerl_fast.errors import DiskFullError
from saerl_fast.extract.inputs import to_json_lines
from tests.attacks.disk import FullDisk
from tests.extract.stores import content, go_on, job

LINES = to_json_lines([{"level": row} for row in range(25)])


def run(folder):
    go_on(folder, job(columns=hashlib.sha256(LINES).hexdigest()), columns=LINES)


def error_of(folder):
    try:
        run(folder)
    except DiskFullError as error:
        return error
    return None


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "f"
    run(folder)
    return content(folder)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_at_every_call(tmp_path, monkeypatch, finished, code):
    calls = 0
    while calls < 500:
        disk, folder = FullDisk(calls, code), tmp_path / str(calls)
        with monkeypatch.context() as patch:
            patch.setattr(durable, "os", disk)
            found = error_of(folder)
        if found is None:
            break
        assert disk.failed is not None
        assert str(tmp_path) in str(found)
        assert found.errno == code
        assert disk.failed[0] != "write" or "bytes" in str(found)
        there = content(folder) if folder.exists() else {}
        assert all(finished[name] == there[name] for name in there)
        assert not list(tmp_path.rglob("*.tmp"))
        run(folder)
        assert content(folder) == finished
        calls += 1
    assert 20 < calls < 500


def test_a_limit_on_file_sizes(tmp_path, finished):
    child = os.fork()
    if not child:
        code = 1
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (900, resource.RLIM_INFINITY))
            run(tmp_path / "f")
        except DiskFullError as error:
            code = 17 if "limit on file sizes" in str(error) and "bytes" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 17
    run(tmp_path / "f")
    assert content(tmp_path / "f") == finished


SMALL = """
import sys
from pathlib import Path
from tests.attacks import test_full_disk
from saerl_fast.errors import DiskFullError
try:
    test_full_disk.run(Path(sys.argv[1]))
except DiskFullError as error:
    sys.exit(17)
"""


@pytest.mark.nightly
def test_a_file_system_that_is_really_full(tmp_path, finished, record_property):
    if not shutil.which("unshare"):
        pytest.skip("needs unshare")
    room = sum(map(len, finished.values())) // 2 // 4096 * 4096
    script = (
        f"mount -t tmpfs -o size=16m none {tmp_path} || exit 77; head -c {2**24 - room} /dev/zero >{tmp_path}/ballast; "
        f"{sys.executable} -c '{SMALL}' {tmp_path}/f; first=$?; "
        f"rm {tmp_path}/ballast; {sys.executable} -c '{SMALL}' {tmp_path}/f && cat {tmp_path}/f/DONE && exit $first"
    )
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True)
    if done.returncode == 77 or "unshare:" in done.stderr:
        pytest.skip(f"no namespace for a small file system: {done.stderr.strip()}")
    assert done.returncode == 17, done.stderr
    assert done.stdout == finished["DONE"].decode()
    record_property("sizes", 1)
