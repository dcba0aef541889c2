"""The readers of files from elsewhere, each with a good file that is changed in one or two places and read again.

Most of what is thrown is valid JSON, or a whole archive, with one or two wrong places; where a hash would end the matter
the content is signed again, as one could who made the file.
"""

import hashlib
import io
import json
import struct
import warnings
import zipfile

import numpy as np
import torch
from safetensors.torch import load, save

from saerl_fast.curriculum import BatchPlan, make_plan
from saerl_fast.extract.job import Job, seal
from saerl_fast.extract.store import _hash_shard, read_shard
from saerl_fast.features import SparseFeatures
from saerl_fast.formats import load_sae, save_sae
from saerl_fast.formats.npz_file import read_npz
from saerl_fast.formats.torch_file import read_torch_file
from saerl_fast.signals.kmeans import StreamingKMeans
from saerl_fast.signals.projection import FeatureProjection
from tests import tiny
from tests.extract.stores import go_on, job, rows
from tests.formats import hostile_torch

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


def altered(tensors, generator):
    """One of the tensors in another type, cut short, or with another number in it."""
    tensors = dict(tensors)
    name = generator.choice(sorted(tensors))
    kind = generator.randrange(3)
    if kind == 0:
        other = [torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.float16, torch.bool]
        tensors[name] = tensors[name].to(generator.choice(other))
    elif kind == 1:
        tensors[name] = tensors[name][: generator.randrange(len(tensors[name]) + 1)].clone()
    elif len(tensors[name]):
        flat = tensors[name].clone()
        for _ in range(generator.choice([1, 1, 2])):
            wide = [2**62, -(2**62), 2**63 - 1, -(2**63)] if flat.dtype == torch.int64 else []
            flat[generator.randrange(len(flat))] = generator.choice([0, 1, 50, 120, 255, *wide])
        tensors[name] = flat
    return tensors


def parts(content):
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


class Weights:
    """A folder with a JSON file beside a safetensors file, neither signed."""

    def __init__(self, folder):
        save_sae(tiny.sae(d_sae=24), folder)
        self.hold(folder, "cfg.json", "sae_weights.safetensors")

    def hold(self, folder, config, weights):
        self.folder, self.weights, self.config = folder, folder / weights, folder / config
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


class Sparsify(Weights):
    def __init__(self, folder):
        folder = folder / "layers.3"
        folder.mkdir(parents=True)
        known = {"activation": "topk", "signed": False, "d_in": 4, "num_latents": 6, "k": 2, "transcode": False}
        (folder / "cfg.json").write_text(json.dumps(known))
        (folder.parent / "config.json").write_text('{"model": "m", "ctx_len": 64}')
        tensors = {"encoder.weight": torch.ones(6, 4), "encoder.bias": torch.ones(6), "W_dec": torch.ones(6, 4)}
        (folder / "sae.safetensors").write_bytes(save(tensors | {"b_dec": torch.ones(4)}))
        self.hold(folder, "cfg.json", "sae.safetensors")


class LlamaScope(Weights):
    def __init__(self, folder):
        (folder / "checkpoints").mkdir(parents=True)
        known = {"use_glu_encoder": False, "act_fn": "jumprelu", "d_model": 4, "d_sae": 6, "jump_relu_threshold": 0.5}
        known |= {"dataset_average_activation_norm": {"in": 2.0}, "hook_point_in": "blocks.3.hook_resid_post"}
        (folder / "hyperparams.json").write_text(json.dumps(known))
        tensors = {"encoder.weight": torch.ones(6, 4), "encoder.bias": torch.ones(6)}
        tensors |= {"decoder.weight": torch.ones(4, 6), "decoder.bias": torch.ones(4)}
        (folder / "checkpoints" / "final.safetensors").write_bytes(save(tensors))
        self.hold(folder, "hyperparams.json", "checkpoints/final.safetensors")


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
        tensors, note = self.tensors, json.loads(json.dumps(self.note))
        kind = generator.randrange(5)
        if kind < 3:
            tensors = altered(tensors, generator)
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


class Estimator:
    """A JSON file that holds the hash of the safetensors file beside it."""

    def __init__(self, folder, fitted):
        fitted.save(folder)
        self.folder, self.load = folder, type(fitted).load
        (self.arrays,) = folder.glob("*.safetensors")
        (self.config,) = folder.glob("*.json")
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
            if "arrays_bytes" in known:
                known["arrays_bytes"] = len(content)
        self.config.write_text(json.dumps(known))
        self.load(self.folder)


def means(folder):
    points = np.random.default_rng(0).random((40, 6)).astype(np.float32)
    return Estimator(folder, StreamingKMeans(3, random_state=0).fit(points))


def projection(folder):
    points = np.random.default_rng(0).random((40, 6)).astype(np.float32)
    return Estimator(folder, FeatureProjection(3, random_state=0).fit(points))


class Plan(Estimator):
    """Its arrays are changed too, number by number."""

    def __init__(self, folder):
        generator = np.random.default_rng(0)
        settings = {"clusters": generator.integers(0, 3, 22), "difficulty": generator.normal(size=22)}
        plan = make_plan([f"q{n}" for n in range(22)], prompts_per_step=4, epochs=2, policy="saerl", **settings)
        super().__init__(folder, plan)
        self.load = BatchPlan.load
        self.whole = self.data

    def throw(self, generator):
        numbers = bytearray(self.whole)
        for _ in range(generator.randrange(3)):
            at = generator.randrange(len(numbers) // 8) * 8
            numbers[at : at + 8] = struct.pack("<q", generator.choice([0, 1, -1, 22, 2**31, 2**62, -(2**63), 5]))
        self.data = bytes(numbers)
        super().throw(generator)


class Rows:
    """Features in one safetensors file, with a note in its header."""

    def __init__(self, folder):
        folder.mkdir(parents=True)
        self.path = folder / "f.safetensors"
        rows(0, 8).save(self.path)
        content = self.path.read_bytes()
        self.tensors = load(content)
        self.header, self.data = parts(content)
        self.note = json.loads(self.header["__metadata__"]["saerl_fast"])

    def throw(self, generator):
        kind = generator.randrange(3)
        if kind == 0:
            self.path.write_bytes(safetensors_of(changed(self.header, generator), self.data, generator))
        else:
            tensors = altered(self.tensors, generator) if kind == 1 else self.tensors
            note = changed(self.note, generator) if kind == 2 else self.note
            self.path.write_bytes(save(tensors, metadata={"saerl_fast": json.dumps(note)}))
        found = SparseFeatures.load(self.path)
        found.to_scipy().check_format()  # what was let through can be used
        found.to_torch()


class Archive:
    """A zip archive: a number of its members, directory or pickle changed, and the checksums made to fit, or not."""

    def __init__(self, folder):
        folder.mkdir(parents=True)
        self.path = folder / "x"

    def write(self, members, generator, compression=zipfile.ZIP_STORED):
        file = io.BytesIO()
        with warnings.catch_warnings(), zipfile.ZipFile(file, "w", compression) as archive:
            warnings.simplefilter("ignore")  # of names that come twice
            for name, content in members:
                archive.writestr(name, content)
        raw = bytearray(file.getvalue())
        starts = [at for at in range(len(raw)) if raw[at : at + 2] == b"PK"]
        for _ in range(generator.choice([0, 0, 1, 2])):  # a number near the start of one of its records
            at = min(generator.choice(starts) + generator.randrange(4, 46), len(raw) - 4)
            number = generator.choice([0, 1, 2, 8, 2**16 - 1, 2**31, 2**32 - 1, generator.randrange(2**32)])
            size = generator.choice([1, 2, 4])
            raw[at : at + size] = struct.pack("<I", number)[:size]
        if generator.random() < 0.1:
            del raw[generator.randrange(len(raw)) :]
        self.path.write_bytes(raw)


class TorchFile(Archive):
    """The shapes, strides and opcodes of a file of torch.save."""

    OPCODES = b"\x80(}])N\x88\x89KMJ\x8aGXcQRbqrhj\x85\x86\x87tsuae.\x93io\x81"

    def throw(self, generator):
        odd = [0, 1, 2, 3, 4, 5, -1, 2**31 - 1, 2**31, 2**40, 2**62]

        def some(usual):
            return usual if generator.random() < 0.7 else tuple(generator.choices(odd, k=generator.randrange(4)))

        count = 4 if generator.random() < 0.8 else generator.choice(odd)
        offset = 0 if generator.random() < 0.7 else generator.choice(odd)
        body = bytearray(hostile_torch.in_dict(hostile_torch.tensor(count, offset, some((4,)), some((1,)))))
        for _ in range(generator.choice([0, 0, 1, 2])):
            at, kind = generator.randrange(len(body)), generator.randrange(3)
            if kind == 0:
                body[at : at + 1] = bytes([generator.choice(self.OPCODES)])
            elif kind == 1:
                body.insert(at, generator.choice(self.OPCODES))
            else:
                del body[at]
        members = [("a/data.pkl", b"\x80\x02" + bytes(body) + b"."), ("a/data/0", b"\0" * 16)]
        if generator.random() < 0.2:
            members.append(
                (generator.choice(["a/data/0", "a/byteorder", "../x", "b/data.pkl", "a/version"]), b"little")
            )
        self.write(members, generator)
        for tensor in read_torch_file(self.path).values():
            tensor.sum()  # what was let through can be read to its last element


class NpzFile(Archive):
    """The headers of arrays, and what lies behind them."""

    def throw(self, generator):
        def array():
            shape = generator.choice(["(4,)", "(2, 2)"] * 6 + ["()", "(-1,)", "(0,)", "(4294967296,)", "(1, 4, )", "4"])
            kind = generator.choice(["<f4"] * 12 + ["<f8", "<f2", "|O", ">f4", "<i8"])
            order = generator.choice(["False", "True"] * 6 + ["0"])
            known = f"{{'descr': '{kind}', 'fortran_order': {order}, 'shape': {shape}, }}"
            header = bytearray(known.encode() + b" " * generator.randrange(40) + b"\n")
            if generator.random() < 0.1:
                header[generator.randrange(len(header))] = generator.randrange(256)
            length = len(header) if generator.random() < 0.9 else generator.choice([0, 1, 4097, 65535])
            version = generator.choice([b"\1\0"] * 9 + [b"\2\0", b"\3\0", b"\4\0"])
            size = struct.pack("<H" if version == b"\1\0" else "<I", length)
            return b"\x93NUMPY" + version + size + bytes(header) + bytes(generator.choice([16] * 12 + [32, 8, 0, 15]))

        names = ["w.npy", "b.npy"] * 4 + ["w", "../a.npy", "w.npy.npy"]
        members = [(generator.choice(names), array()) for _ in range(generator.choice([1, 1, 2]))]
        self.write(members, generator, generator.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
        for tensor in read_npz(self.path).values():
            tensor.sum()


READERS = {
    "weights": Weights, "shard": Shard, "manifest": Manifest, "k-means": means, "projection": projection, "plan": Plan,
    "features": Rows, "sparsify": Sparsify, "llama-scope": LlamaScope, "torch": TorchFile, "npz": NpzFile,
}  # fmt: skip
