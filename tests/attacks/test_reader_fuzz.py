"""The readers of weights, shards, manifests and k-means files against structured nonsense: a named error or a result.

Most of what is thrown is valid JSON with one or two wrong places, and where a hash would end the matter the content
is signed again, as one could who made the file.
"""

import hashlib
import json
import os
import random
import struct
import time

import numpy as np
import pytest
from safetensors.torch import load, save

from saerl_fast.errors import SaerlError
from saerl_fast.extract.job import Job, seal
from saerl_fast.extract.store import _hash_shard, read_shard
from saerl_fast.formats import load_sae, save_sae
from saerl_fast.signals.kmeans import StreamingKMeans
from saerl_fast.signals.kmeans_files import load_kmeans, save_kmeans
from tests import tiny
from tests.extract.stores import go_on, job
from tests.nightly.sizes import daily_and_nightly

ODD = [
    *(None, True, False, 0, 1, -1, 2, 3, 8, 2**31 - 1, 2**31, 2**53, 2**63, 2**64, 10**30, 0.5, 1.0, -0.0, 1e308),
    *("", "a", "F32", "F16", "BF16", "BOOL", "I64", "U8", "F64", "../x", "a\0b", "\ud83d", "x" * 5000, "NaN"),
    *([], {}, [0], [1, 2], [[[[[[[[[[]]]]]]]]]], {"a": {}}, [None], [2**31, 2**31], [0, 0], {"": 0}, [-1, 5]),
]


def places(found, path=()):
    """Every path into a JSON value."""
    yield path
    children = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ()
    for key, child in children:
        yield from places(child, (*path, key))


def changed(found, generator):
    """The value with one place replaced, removed, doubled or nudged."""
    found = json.loads(json.dumps(found))
    path = generator.choice([path for path in places(found) if path])
    *above, last = path
    holder = found
    for key in above:
        holder = holder[key]
    value, kind = holder[last], generator.randrange(6)
    if kind == 0:
        del holder[last]
    elif kind == 1 and isinstance(holder, dict):
        holder[generator.choice(["x", "", "values", "__metadata__", "W_enc", "indptr"])] = value
    elif kind == 2 and type(value) is int:
        holder[last] = value + generator.choice([-1, 1, -8, 8, 2**31, -value])
    elif kind == 3 and isinstance(value, str) and value:
        cut = generator.randrange(len(value))
        holder[last] = value[:cut] + generator.choice(["", "\0", "9", '"', "é"]) + value[cut + 1 :]
    else:
        holder[last] = generator.choice(ODD)
    return found


def safetensors_of(header, data, generator):
    raw = json.dumps(header).encode()
    kind = generator.randrange(12)
    if kind == 0:  # not JSON any more
        place = generator.randrange(len(raw))
        raw = raw[:place] + bytes([generator.randrange(256)]) + raw[place + 1 :]
    length = (
        len(raw) if kind != 1 else generator.choice([0, 1, len(raw) - 1, len(raw) + 1, 2**20 + 1, 2**63, 2**64 - 1])
    )
    if kind == 2:
        data = data[: generator.randrange(len(data) + 1)]
    if kind == 3:
        data += bytes(generator.randrange(1, 9))
    if kind == 4 and data:
        place = generator.randrange(len(data))
        data = data[:place] + bytes([data[place] ^ (1 << generator.randrange(8))]) + data[place + 1 :]
    return struct.pack("<Q", length) + raw + data


def parts(content):
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


class Weights:
    def __init__(self, folder):
        save_sae(tiny.sae(d_sae=24), folder)
        self.folder, self.weights, self.config = folder, folder / "sae_weights.safetensors", folder / "cfg.json"
        self.header, self.data = parts(self.weights.read_bytes())
        self.known = json.loads(self.config.read_text())

    def throw(self, generator):
        header, known = self.header, self.known
        for _ in range(generator.randrange(1, 3)):
            if generator.random() < 0.6:
                header = changed(header, generator)
            else:
                known = changed(known, generator)
        self.weights.write_bytes(safetensors_of(header, self.data, generator))
        self.config.write_text(json.dumps(known))
        load_sae(self.folder)


class Shard:
    def __init__(self, folder):
        self.job = job(8, 8)
        go_on(folder, self.job)
        self.folder, self.path = folder, folder / "shards" / "00000.safetensors"
        content = self.path.read_bytes()
        self.tensors = load(content)
        self.header, self.data = parts(content)
        self.note = json.loads(self.header["__metadata__"]["saerl_fast"])

    def throw(self, generator):
        if generator.random() < 0.4:
            self.path.write_bytes(safetensors_of(changed(self.header, generator), self.data, generator))
        else:
            self.path.write_bytes(self.signed_again(generator))
        read_shard(self.folder, self.job, 0)

    def signed_again(self, generator):
        import torch

        tensors, note = dict(self.tensors), json.loads(json.dumps(self.note))
        name = generator.choice(sorted(tensors))
        kind = generator.randrange(5)
        if kind == 0:
            tensors[name] = tensors[name].to(
                generator.choice([torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.float16, torch.bool])
            )
        elif kind == 1:
            tensors[name] = tensors[name][: generator.randrange(len(tensors[name]) + 1)].clone()
        elif kind == 2:
            flat = tensors[name].clone()
            if len(flat):
                flat[generator.randrange(len(flat))] = generator.choice([0, 1, 50, 120, 255])
            tensors[name] = flat
        elif kind == 3:
            note["features"] = json.dumps(changed(json.loads(note["features"]), generator))
        else:
            note = {**changed(note, generator), "job": self.job.digest}
        note["sha256"] = _hash_shard(tensors, note)
        return save(tensors, metadata={"saerl_fast": json.dumps(note)})


class Manifest:
    def __init__(self, folder):
        folder.mkdir(parents=True)
        self.folder = folder
        self.known = json.loads(job(8, 8).seal())

    def throw(self, generator):
        known = changed(self.known, generator)
        if isinstance(known, dict) and generator.random() < 0.7:
            known.pop("sha256", None)
            content = seal(known)
        else:
            content = json.dumps(known, indent=1).encode()
        (self.folder / "manifest.json").write_bytes(content)
        Job.load(self.folder)


class Means:
    def __init__(self, folder):
        rows = np.random.default_rng(0).random((40, 6)).astype(np.float32)
        save_kmeans(StreamingKMeans(3, random_state=0).fit(rows), folder)
        (self.arrays,) = folder.glob("*.safetensors")
        (self.config,) = folder.glob("*.json")
        self.folder = folder
        self.header, self.data = parts(self.arrays.read_bytes())
        self.known = json.loads(self.config.read_text())

    def throw(self, generator):
        header, known = self.header, self.known
        if generator.random() < 0.5:
            header = changed(header, generator)
        else:
            known = changed(known, generator)
        content = safetensors_of(header, self.data, generator)
        self.arrays.write_bytes(content)
        if isinstance(known, dict) and generator.random() < 0.9:
            known["arrays_sha256"] = hashlib.sha256(content).hexdigest()
        self.config.write_text(json.dumps(known))
        load_kmeans(self.folder)


READERS = {"weights": Weights, "shard": Shard, "manifest": Manifest, "k-means": Means}


@pytest.mark.parametrize("name", READERS)
@daily_and_nightly("inputs", 600, 250_000)
def test_a_named_error_or_a_result(tmp_path, name, inputs, record_property):
    place = tmp_path
    if os.access("/dev/shm", os.W_OK):
        place = tmp_path.__class__("/dev/shm") / f"saerl-{os.getpid()}-{name}"
    reader = READERS[name](place / "f")
    generator, refused, slowest = random.Random(inputs), 0, 0.0
    try:
        for _ in range(inputs):
            start = time.process_time()
            try:
                reader.throw(generator)
            except SaerlError:
                refused += 1
            slowest = max(slowest, time.process_time() - start)
    finally:
        if place != tmp_path:
            for path in sorted(place.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            place.rmdir()
    assert refused > inputs / 3
    assert slowest < 1
    record_property("inputs", inputs)
    record_property("refused", refused)
