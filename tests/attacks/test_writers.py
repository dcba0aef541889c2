"""Eight writers at one folder: one works, the others are refused at once, and no committed byte ever changes."""

import os
import time
import traceback
from pathlib import Path

from saerl_fast.errors import StoreBusyError
from saerl_fast.extract.store import StoreWriter
from tests.extract.stores import content, job, rows
from tests.nightly.sizes import daily_and_nightly

WON, REFUSED, LATE = 0, 3, 4
JOB = job()


def write(folder, start, seed):
    """One writer: it waits for the start, and computes rows that tell it from the others."""
    while not start.exists():
        time.sleep(0.001)
    began = time.monotonic()
    try:
        with StoreWriter(folder, JOB) as store:
            time.sleep(0.03)
            for shard in store.shards:
                if not store.has(shard):
                    span = JOB.span(shard)
                    store.write(shard, rows(span.start, span.stop, seed), [])
            time.sleep(0.03)
            store.finish()
    except StoreBusyError:
        return REFUSED if time.monotonic() - began < 1 else LATE
    return WON


def writers(folder, start, count):
    children = []
    for seed in range(count):
        child = os.fork()
        if not child:
            code = 1
            try:
                code = write(folder, start, seed)
            except BaseException:  # noqa: BLE001
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    return children


@daily_and_nightly("rounds", 20, 100)
def test_eight_writers(tmp_path, rounds, record_property):
    refused = 0
    for number in range(rounds):
        folder, start = tmp_path / str(number), tmp_path / f"{number}.start"
        children = writers(folder, start, 8)
        start.touch()
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        assert set(codes) <= {WON, REFUSED}
        assert codes.count(WON) >= 1
        refused += codes.count(REFUSED)
        # one seed made every shard: nobody wrote into the folder of another
        made = {seed: content_of(tmp_path / "by", seed) for seed in range(8)}
        assert content(folder) in made.values()
    assert refused > 4 * rounds
    record_property("rounds", rounds)


def content_of(place, seed):
    folder = place / str(seed)
    if not folder.exists():
        with StoreWriter(folder, JOB) as store:
            for shard in store.shards:
                span = JOB.span(shard)
                store.write(shard, rows(span.start, span.stop, seed), [])
            store.finish()
    return content(folder)


@daily_and_nightly("rounds", 3, 50)
def test_a_lock_deleted_by_a_person_costs_no_committed_byte(tmp_path, rounds):
    for number in range(rounds):
        folder, start = tmp_path / str(number), tmp_path / f"{number}.start"
        children = writers(folder, start, 8)
        start.touch()
        seen, alive = {}, set(children)
        while alive:
            (folder / "LOCK").unlink(missing_ok=True)
            for path in (folder / "shards").glob("*.safetensors"):
                assert seen.setdefault(path.name, path.read_bytes()) == path.read_bytes()
            alive -= {child for child in alive if os.waitpid(child, os.WNOHANG)[0]}
        assert {path.name for path in Path(folder / "shards").glob("*.safetensors")} == set(seen)
        assert len(seen) == 3
