"""Feature folders without a model: rows made of their numbers, written by the real writer."""

import numpy as np

from saerl_fast.extract.job import WHOLE, Job
from saerl_fast.extract.store import StoreWriter
from saerl_fast.features import SparseFeatures

FINGERPRINT = {"model": "m", "pool": "mean"}


def rows(start, stop, seed=0):
    generator = np.random.default_rng([seed, start])
    counts = generator.integers(0, 5, stop - start)
    return SparseFeatures(
        indptr=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        indices=np.concatenate([np.sort(generator.choice(50, n, replace=False)) for n in counts]).astype(np.int32),
        values=generator.random(counts.sum()).astype(np.float32),
        n_features=50,
        ids=tuple(f"row-{i}-ä\n" for i in range(start, stop)),
        status=("ok",) * (stop - start),
        n_tokens=counts.astype(np.int32),
        provenance=FINGERPRINT,
    )


def job(count=25, shard_rows=10, **changes):
    return Job(count, shard_rows, {**FINGERPRINT, **changes}, {"data": "x.jsonl"})


def go_on(folder, made, part=WHOLE, columns=None):
    """What featurize does with a folder, without a model."""
    with StoreWriter(folder, made, part) as store:
        if columns is not None:
            store.write_columns(columns)
        for shard in store.shards:
            if not store.has(shard):
                span = made.span(shard)
                store.write(shard, rows(span.start, span.stop), [(len(span), 7)])
        store.finish()


def content(folder):
    """Every file of a folder that is part of what it says: path in it -> bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.name not in ("LOCK", "sanity.json")
        and "quarantine" not in path.parts
        and "part-" not in str(path)
    }


def same(one, two):
    return (
        one.ids == two.ids
        and one.status == two.status
        and all(
            np.array_equal(getattr(one, name), getattr(two, name))
            for name in ("indptr", "indices", "values", "n_tokens")
        )
    )
