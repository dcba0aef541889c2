"""A run that ended before its first shard leaves nothing that the corrected one could not take over."""

import hashlib
import os
import shutil
import signal

import pytest

import saerl_fast
from saerl_fast import durable
from saerl_fast.errors import InputError, JobMismatchError
from saerl_fast.extract.inputs import to_json_lines
from saerl_fast.extract.inspect import quarantine, verify_store
from saerl_fast.extract.job import Part
from saerl_fast.extract.store import SANITY, StoreWriter
from tests import tiny
from tests.attacks.disk import StandIn
from tests.extract.stores import content, go_on, job

LINES, OTHERS = (to_json_lines([{name: row} for row in range(25)]) for name in ("level", "other"))
JOB = job(columns=hashlib.sha256(LINES).hexdigest())
REFUSED = job(columns=hashlib.sha256(OTHERS).hexdigest(), pool_over="completion")


def begin(folder):
    """All that a run can leave behind before its first shard."""
    with StoreWriter(folder, REFUSED) as store:
        store.write_columns(OTHERS)
        store.write_split(0, [(4, 7), (6, 7)])
    (folder / SANITY).write_bytes(b"{}")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    go_on(folder / "f", JOB, columns=LINES)
    go_on(folder / "refused", REFUSED, columns=OTHERS)
    return content(folder / "f"), content(folder / "refused")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"pool_over": "completion"}, "has no completion"),
        ({"long_texts": "error", "max_length": 4}, "have more than 4"),
    ],
)
def test_a_refused_call_blocks_nothing(tmp_path, wrong, message):
    call = {"tokenizer": tiny.tokenizer(), "progress": False, "shard_rows": 4}
    texts, model, sae = tiny.texts(10), tiny.causal_lm(), tiny.sae()
    with pytest.raises(InputError, match=message):
        saerl_fast.featurize(texts, model, sae, **call, **wrong, out=tmp_path / "f")
    saerl_fast.featurize(texts, model, sae, **call, out=tmp_path / "f")
    saerl_fast.featurize(texts, model, sae, **call, out=tmp_path / "g")
    assert content(tmp_path / "f") == content(tmp_path / "g")
    assert not list(verify_store(tmp_path / "f"))


def test_its_place_is_taken_and_said_so(tmp_path, finished, caplog):
    begin(tmp_path)
    go_on(tmp_path, JOB, columns=LINES)
    assert content(tmp_path) == finished[0]
    assert not (tmp_path / SANITY).exists()
    assert (
        "takes its place (pool_over: folder 'completion', this run None; columns: folder has other content"
        in caplog.text
    )


def test_a_share_of_it_too(tmp_path, finished):
    begin(tmp_path / "part-0-of-2")
    for index in range(2):
        go_on(tmp_path / f"part-{index}-of-2", JOB, Part(index, 2), LINES)
        assert not list(verify_store(tmp_path / f"part-{index}-of-2"))


@pytest.mark.parametrize("put_aside", [False, True])
def test_one_shard_is_enough_to_keep_the_folder(tmp_path, put_aside):
    go_on(tmp_path, REFUSED, columns=OTHERS)
    for path in sorted((tmp_path / "shards").iterdir())[1:]:
        path.unlink()
    if put_aside:
        (tmp_path / "shards" / "00000.safetensors").write_bytes(b"")
        quarantine(tmp_path)
    before = content(tmp_path)
    with pytest.raises(JobMismatchError, match="pool_over"):
        go_on(tmp_path, JOB, columns=LINES)
    assert content(tmp_path) == before


class Killed(StandIn):
    """kill -9 just before the n-th call."""

    def __init__(self, at):
        super().__init__()
        self.left = at

    def before(self, name, path, arguments):
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1


def test_a_kill_at_any_call_of_it(tmp_path, finished):
    calls, mixed = 0, 0
    while calls < 300:
        folder = tmp_path / str(calls)
        begin(folder)
        child = os.fork()
        if not child:
            code = 1
            try:
                durable.os = Killed(calls)
                go_on(folder, JOB, columns=LINES)
                code = 0
            finally:
                os._exit(code)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if ended == 0:
            break
        assert ended == -signal.SIGKILL
        mixed += _either_goes_on(folder, finished)
        calls += 1 if calls < 30 else 5  # the folder is ours by then
    assert content(folder) == finished[0]
    assert 40 < calls < 300
    assert 2 < mixed < calls / 5


def _either_goes_on(folder, finished):
    """The refused job may be taken up after all, until a shard of the corrected one is there."""
    other = shutil.copytree(folder, folder.with_suffix(".other"))
    shards = list((other / "shards").glob("*.safetensors"))
    if shards:
        with pytest.raises(JobMismatchError):
            go_on(other, REFUSED, columns=OTHERS)
    else:
        go_on(other, REFUSED, columns=OTHERS)
        found = {name: held for name, held in content(other).items() if not name.startswith("splits")}
        assert found == finished[1]
    go_on(folder, JOB, columns=LINES)
    assert content(folder) == finished[0]
    return bool(shards)
