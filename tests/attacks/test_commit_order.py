"""A power cut at any moment: content reaches the disk before its name does, and the name before the next step."""

import os
from pathlib import Path

import pytest

from saerl_fast import durable


@pytest.fixture
def calls(monkeypatch):
    """What is done to the disk, in order: (step, what it was done to)."""
    seen = []
    real = {name: getattr(os, name) for name in ("fsync", "link", "replace")}

    def fsync(descriptor):
        seen.append(("sync", Path(os.readlink(f"/proc/self/fd/{descriptor}"))))
        real["fsync"](descriptor)

    def named(step):
        def call(source, target, **more):
            seen.append((step, Path(source), Path(target), Path(source).read_bytes()))
            real[step](source, target, **more)

        return call

    monkeypatch.setattr(durable.os, "fsync", fsync)
    for step in ("link", "replace"):
        monkeypatch.setattr(durable.os, step, named(step))
    return seen


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
@pytest.mark.parametrize(("write", "step"), [(durable.write_once, "link"), (durable.replace, "replace")])
def test_content_is_synced_before_it_has_its_name_and_the_folder_after(write, step, calls, tmp_path):
    write(tmp_path / "shard", b"content")
    assert [call[0] for call in calls] == ["sync", step, "sync"]
    (_, synced), (_, temporary, final, content), (_, folder) = calls
    assert synced == temporary != final == tmp_path / "shard"
    assert content == b"content"  # nothing was left in a buffer when the name was given
    assert folder == tmp_path
    assert list(tmp_path.iterdir()) == [tmp_path / "shard"]


def test_nothing_but_a_file_is_replaced(tmp_path):
    import os

    from saerl_fast.durable import replace
    from saerl_fast.errors import InputError

    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(InputError, match="left alone"):
            replace(tmp_path / name, b"x")
    assert (tmp_path / "pipe").is_fifo()
    assert [entry.name for entry in tmp_path.iterdir()] == ["pipe"]
