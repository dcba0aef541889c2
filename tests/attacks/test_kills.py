"""kill -9 at named points and at random ones: nothing lost, nothing doubled, the same bytes, at most a shard done twice."""

import hashlib
import os
import random
import signal
import time
from contextlib import nullcontext

import pytest

from saerl_fast import durable
from saerl_fast.extract import run as run_module
from saerl_fast.extract import store as store_module
from saerl_fast.extract.inputs import to_json_lines
from saerl_fast.extract.inspect import verify_store
from saerl_fast.extract.run import Task, write_features
from saerl_fast.extract.shard import ShardRows
from tests.attacks.disk import StandIn
from tests.extract.stores import content, job, rows
from tests.nightly.sizes import daily_and_nightly

ROWS, SHARD_ROWS = 10_240, 256
LINES = to_json_lines([{"level": row} for row in range(ROWS)])
JOB = job(ROWS, SHARD_ROWS, columns=hashlib.sha256(LINES).hexdigest())
SHARDS = {"first": 0, "middle": 19, "last": 39}
POINTS = (
    "begun",
    "computed",
    "opened",
    "half written",
    "written",
    "synced",
    "linked",
    "unlinked",
    "folder synced",
    "committed",
    "read back",
)


@pytest.fixture(scope="module")
def computed():
    return [rows(JOB.span(shard).start, JOB.span(shard).stop) for shard in range(JOB.shards)]


class NoBar(nullcontext):
    """tqdm's lock is shared with forked children: one that is killed while it holds it stops its parent for ever."""

    def __init__(self, **_):
        super().__init__(self)

    def update(self, _):
        pass


@pytest.fixture(autouse=True, scope="module")
def no_bar():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "tqdm", NoBar)
        yield


class Known(Task):
    """A task whose rows are known; reach(point, shard) is called on the way, and log gets a byte a computed shard."""

    def read(self, shards):
        return nullcontext()

    def compute(self, shard, read, advance, recorded=None, sampled=False):
        self.reach("begun", shard)
        with open(self.log, "ab") as file:
            file.write(b".")
        self.reach("computed", shard)
        return ShardRows(self.computed[shard], [(SHARD_ROWS, 7)], split=False, entries=None)

    def report_sanity(self, rows, folder):
        return True

    def fired(self):
        return None


def run(folder, computed, log, reach=lambda *_: None):
    """What featurize does when it has read its model."""
    task = Known(JOB, [], [], LINES, None, None, None)
    vars(task).update(computed=computed, log=log, reach=reach)
    done = []

    def committed(rows):
        done.append(rows)
        reach("committed", len(done) - 1)

    write_features(task, folder, each_shard=committed, progress=False)
    assert [len(rows) for rows in done] == [SHARD_ROWS] * JOB.shards
    assert done[-1].ids == computed[-1].ids


class Watching(StandIn):
    """Tells where in the writing of a shard we are."""

    def __init__(self, reach):
        super().__init__()
        self.reach, self.shard = reach, None

    def before(self, name, path, arguments):
        if name == "write" and self._is_shard(path):
            os.write(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
            self.reach("half written", self.shard)
            os.lseek(arguments[0], 0, os.SEEK_SET)

    def after(self, name, path, arguments):
        if self._is_shard(path) or (path.endswith("shards") and name == "fsync" and self.shard is not None):
            named = {"open": "opened", "write": "written", "fsync": "synced", "link": "linked", "unlink": "unlinked"}
            self.reach("folder synced" if path.endswith("shards") else named[name], self.shard)

    def _is_shard(self, path):
        name = path.rsplit("/", 1)[-1]
        if ".safetensors" in name:
            self.shard = int(name[:5])
        return ".safetensors" in name


def in_a_child(folder, computed, log, reach, kill_after=None):
    """Run until the end or the kill; whether it was killed."""
    child = os.fork()
    if not child:
        code = 1
        try:
            durable.os = Watching(reach)
            real = store_module.read_shard
            store_module.read_shard = lambda f, j, shard: (real(f, j, shard), reach("read back", shard))[0]
            run(folder, computed, log, reach)
            code = 0
        finally:
            os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.fixture(scope="module")
def whole(tmp_path_factory, computed):
    folder = tmp_path_factory.mktemp("whole")
    start = time.perf_counter()
    run(folder / "f", computed, folder / "log")
    return content(folder / "f"), time.perf_counter() - start


def check(folder, computed, log, whole):
    """After a kill: start again, compare with the run that nobody killed."""
    twice = len(log.read_bytes()) if log.exists() else 0
    committed = len(list((folder / "shards").glob("*.safetensors"))) if folder.exists() else 0
    assert twice - committed <= 1
    run(folder, computed, log)
    assert content(folder) == whole
    assert len(log.read_bytes()) <= JOB.shards + 1
    assert not list(verify_store(folder))
    assert not list(folder.rglob("*.tmp"))


@pytest.mark.parametrize("which", SHARDS)
@pytest.mark.parametrize("point", POINTS)
def test_killed_at_a_point(tmp_path, computed, whole, point, which):
    def reach(found, shard):
        if (found, shard) == (point, SHARDS[which]):
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_a_child(tmp_path / "f", computed, tmp_path / "log", reach)
    check(tmp_path / "f", computed, tmp_path / "log", whole[0])


@daily_and_nightly("kills", 17, 200)
def test_killed_at_random(tmp_path, computed, whole, kills, record_property):
    generator, killed, longest = random.Random(kills), 0, whole[1]
    for number in range(4 * kills):
        folder, log = tmp_path / str(number), tmp_path / f"{number}.log"
        if in_a_child(folder, computed, log, lambda *_: None, generator.uniform(0, longest)):
            killed += 1
        else:
            # it had ended: the machine is less busy than when the whole run was timed
            longest *= 0.8
        check(folder, computed, log, whole[0])
        if killed == kills:
            break
    assert killed == kills
    record_property("kills", killed)
