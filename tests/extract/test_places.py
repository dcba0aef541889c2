"""Where nothing can be written, and what is no feature folder, is said before anything is computed; by name."""

import errno
import json
import os
import shutil
import subprocess
import sys

import pytest

import saerl_fast
from saerl_fast import durable
from saerl_fast.cli import main
from saerl_fast.errors import PlaceError, SaerlError, VersionError
from saerl_fast.extract.inspect import quarantine, verify_store
from saerl_fast.extract.job import Part
from tests.attacks.disk import StandIn
from tests.extract.stores import content, go_on, job

COMMAND = ["featurize", "no.jsonl", "--text-field", "text", "--model", "no", "--sae", "no", "--out"]


class Closed(StandIn):
    """The n-th call that changes the disk is refused."""

    def __init__(self, at, code):
        super().__init__()
        self.left, self.code = at, code

    def before(self, name, path, arguments):
        if name != "link":  # refused with EPERM it means that there are no links
            self.left -= 1
        if self.left == -1:
            raise OSError(self.code, os.strerror(self.code), path)


@pytest.mark.parametrize("place", ["file", "file/deeper/still", "dangling"])
def test_a_file_is_no_folder(tmp_path, capsys, place):
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(PlaceError, match=f"{place[:4]}.* is a file; a folder is wanted"):
        saerl_fast.featurize(["a"], "no model is looked for", "no", out=tmp_path / place)
    with pytest.raises(PlaceError, match="is a file; a folder is wanted"):
        go_on(tmp_path / place, job())
    assert main([*COMMAND, str(tmp_path / place)]) == 2
    assert "PlaceError" in capsys.readouterr().err
    assert (tmp_path / "file").read_bytes() == b""


def test_missing_parents_are_made(tmp_path):
    go_on(tmp_path / "a" / "b" / "c", job())
    assert not list(verify_store(tmp_path / "a" / "b" / "c"))


def error_of(folder):
    try:
        go_on(folder, job(5))
    except PlaceError as error:
        return error
    return None


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_refused_at_any_call(tmp_path, monkeypatch, code):
    refused = 0
    while refused < 300:
        folder = tmp_path / str(refused)
        with monkeypatch.context() as patch:
            patch.setattr(durable, "os", Closed(refused, code))
            found = error_of(folder)
        if found is None:
            break
        assert str(tmp_path) in str(found)
        assert "cannot be written" in str(found)
        assert found.errno == code
        refused += 1
    assert 15 < refused < 300


READ_ONLY = """
import sys
from pathlib import Path
from saerl_fast.durable import check_place, write_once
from saerl_fast.errors import PlaceError
for call in (lambda place: check_place(place), lambda place: write_once(place / "x", b"x")):
    try:
        call(Path(sys.argv[1]))
    except PlaceError as error:
        print(error)
"""


def test_a_file_system_that_is_really_read_only(tmp_path):
    if not shutil.which("unshare"):
        pytest.skip("needs unshare")
    script = f"mount -t tmpfs -o ro none {tmp_path} || exit 77; {sys.executable} -c '{READ_ONLY}' {tmp_path}"
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True)
    if done.returncode == 77 or "unshare:" in done.stderr:
        pytest.skip(f"no namespace for a small file system: {done.stderr.strip()}")
    assert done.stdout.count("cannot be written") == 2, done.stderr
    assert "Read-only file system" in done.stdout


def test_a_place_beside_which_nothing_may_be_written(tmp_path, monkeypatch, capsys):
    pytest.importorskip("pyarrow")
    go_on(tmp_path / "f", job())
    monkeypatch.setattr(durable.os, "access", lambda *_: False)
    with pytest.raises(PlaceError, match="cannot be written"):
        saerl_fast.featurize(["a"], "no", "no", out=tmp_path / "g")
    for name in ("rows.parquet", "rows"):
        assert main(["export", str(tmp_path / "f"), "--out", str(tmp_path / name)]) == 2
        assert "PlaceError" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["verify", "absent"], "not a feature folder: there is no such folder"),
        (["repair", "file"], "not a feature folder: it is a file"),
        (["merge", "absent"], "there is no such folder; name the folder that was --out"),
        (["merge", "."], "no share (part-i-of-n) is inside"),
        (["export", "absent", "--out", "x.parquet"], "there is no such folder"),
        ([*COMMAND, "out", "--shard", "-1/3"], "needs 0 <= i < n; got -1/3"),
        ([*COMMAND, "out", "--shard", "-1/x"], "is written i/n"),
    ],
)
def test_the_commands_say_so(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_merge_asks_for_the_folder_alone(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["merge"])
    assert "the following arguments are required: DIR\n" in capsys.readouterr().err


@pytest.mark.parametrize(("version", "what"), [(1, "again, into another folder"), (3, "update saerl_fast")])
def test_another_version_is_no_damage(tmp_path, capsys, version, what):
    go_on(tmp_path, job())
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    kept = {key: value for key, value in manifest.items() if key != "sha256"} | {"format_version": version}
    path = tmp_path / "manifest.json"
    if version == 1:  # it had no hash
        path.write_text(json.dumps(kept))
    else:
        from saerl_fast.extract.job import seal

        path.write_bytes(seal(kept))
    before = content(tmp_path)
    for read in (saerl_fast.load_features, lambda folder: list(verify_store(folder)), quarantine):
        with pytest.raises(VersionError, match=f"format version {version}, .* this one reads 2.*{what}"):
            read(tmp_path)
    for command in ("verify", "repair"):
        assert main([command, str(tmp_path)]) == 2
        assert what in capsys.readouterr().err
    with pytest.raises(VersionError):
        go_on(tmp_path, job())
    assert content(tmp_path) == before


def test_a_changed_version_of_a_sealed_manifest_is_damage(tmp_path):
    go_on(tmp_path, job())
    path = tmp_path / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"format_version": 2', b'"format_version": 6'))
    assert [finding.path for finding in verify_store(tmp_path)] == [path]


def test_a_share_that_forgot_which_it_is(tmp_path, capsys):
    folder = tmp_path / "part-1-of-2"
    go_on(folder, job(), Part(1, 2))
    before = content(folder)
    (folder / "part.json").write_bytes(b"{}")
    assert main(["repair", str(folder)]) == 1
    assert "once more, with its --shard i/n" in capsys.readouterr().out
    assert not (folder / "part.json").exists()
    with pytest.raises(SaerlError):
        go_on(folder, job())
    go_on(folder, job(), Part(1, 2))
    assert content(folder) == before
