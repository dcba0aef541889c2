"""The power goes at any moment: what was not synced is there or not, in any combination. No torn shard is accepted."""

import hashlib
import itertools
from pathlib import Path

from saerl_fast import durable
from saerl_fast.errors import SaerlError
from saerl_fast.extract.inputs import to_json_lines
from saerl_fast.extract.job import Part
from saerl_fast.extract.store import StoreWriter, load_features, read_columns, read_shards
from tests.attacks.disk import Events
from tests.extract.stores import content, go_on, job, rows, same
from tests.nightly.sizes import daily_and_nightly

LINES = to_json_lines([{"level": row} for row in range(25)])


REFUSED = to_json_lines([{"of another job": row} for row in range(25)])


def refused_job():
    return job(columns=hashlib.sha256(REFUSED).hexdigest(), pool_over="completion")


def the_job():
    return job(columns=hashlib.sha256(LINES).hexdigest())


class Disk:
    """What a disk holds, and what it only promises. An entry is a name in a folder; a file is [bytes, synced bytes]."""

    def __init__(self):
        self.now, self.kept, self.pending = {}, {}, []

    def happen(self, event, path, more):
        if event == "create":
            if path not in self.now:
                self._enter(path, [b"", b""])
        elif event == "write":
            self.now[path][0] += more
        elif event == "mkdir":
            self._enter(path, None)
        elif event == "link":
            self._enter(path, self.now[more])
        elif event == "unlink":
            self._remove(path)
        elif event in ("rename", "replace"):
            file = self.now[more]
            self._remove(more)
            self._enter(path, file)
        elif self.now.get(path) is not None:
            self.now[path][1] = self.now[path][0]
        else:  # a folder is synced: its entries are there for good
            mine = [change for change in self.pending if str(Path(change[0]).parent) == path]
            self.pending = [change for change in self.pending if change not in mine]
            apply(self.kept, mine)

    def _enter(self, path, file):
        self.now[path] = file
        self.pending.append((path, "enter", file))

    def _remove(self, path):
        self.now.pop(path, None)
        self.pending.append((path, "remove", None))

    def after_a_cut(self, extra):
        """Every state that may be found: {path: bytes, or None for a folder}. extra: combinations at most."""
        for size in range(len(self.pending) + 1):
            for chosen in itertools.islice(itertools.combinations(self.pending, size), extra):
                entries = dict(self.kept)
                apply(entries, chosen)
                for reached in (0, 1):  # of a file that was not synced, the last state or all that was written
                    yield {
                        path: None if file is None else file[1 - reached]
                        for path, file in entries.items()
                        if all(
                            str(parent) in entries or str(parent) == self.root for parent in parents(path, self.root)
                        )
                    }


def apply(entries, changes):
    for path, kind, file in changes:
        if kind == "enter":
            entries[path] = file
        else:
            entries.pop(path, None)


def parents(path, root):
    return list(itertools.takewhile(lambda parent: str(parent) != root, Path(path).parents))


def events_of_a_run(folder, monkeypatch):
    events = Events()
    with monkeypatch.context() as patch:
        patch.setattr(durable, "os", events)
        # a run that was refused before its first shard, whose place the next one takes
        with StoreWriter(folder, refused_job()) as store:
            store.write_columns(REFUSED)
            store.write_split(0, [(4, 7), (6, 7)])
        go_on(folder, the_job(), columns=LINES)
        # a share beside it, and a shard that memory split
        with StoreWriter(folder.parent / "share", job(), Part(1, 2)) as store:
            store.write_split(1, [(4, 7), (6, 7)])
            store.write(1, rows(10, 20), [(4, 7), (6, 7)])
            store.finish()
    return events.seen


def check(folder):
    """The folder opens whole, or says what is missing; no shard that is handed out is torn."""
    try:
        found = load_features(folder)
        assert len(read_columns(folder)) == len(found) == 25
        return True
    except SaerlError:
        pass
    try:
        for part in read_shards(folder, allow_partial=True):
            start = int(part.ids[0].split("-")[1])
            assert same(part, rows(start, start + len(part)))
    except SaerlError as error:
        if "SHA-256" in str(error):
            raise AssertionError("a shard was torn") from error
    return False


@daily_and_nightly("combinations", 3, 64)
def test_a_cut_at_any_moment(tmp_path, monkeypatch, combinations, record_property):
    root = tmp_path / "run"
    root.mkdir()
    seen = events_of_a_run(root / "f", monkeypatch)
    finished = content(root / "f")
    disk, states = Disk(), {}
    disk.root = str(root)
    for event in [None, *seen]:
        if event is not None:
            disk.happen(*event)
        for state in disk.after_a_cut(combinations):
            mine = {str(Path(path).relative_to(root)): held for path, held in state.items()}
            states[tuple(sorted((path, held or b"") for path, held in mine.items()))] = mine
    whole = 0
    for number, state in enumerate(states.values()):
        place = tmp_path / str(number)
        place.mkdir()
        for path, held in sorted(state.items()):
            if held is None:
                (place / path).mkdir(exist_ok=True)
            else:
                (place / path).write_bytes(held)
        whole += check(place / "f") if (place / "f").exists() else 0
        go_on(place / "f", the_job(), columns=LINES)
        assert content(place / "f") == finished
    assert len(seen) > 40
    assert len(states) > len(seen) / 2
    assert 0 < whole < len(states)
    record_property("states", len(states))
