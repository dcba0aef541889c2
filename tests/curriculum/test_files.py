"""A plan on disk comes back as it was, or not at all."""

import hashlib
import json
import pickle

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from saerl_fast.curriculum import BatchPlan, files, make_plan
from saerl_fast.errors import CorruptStoreError, FormatError, PlanError, SaerlError, UnsafeFileError


def some_plan(ids=None, **settings):
    rng = np.random.default_rng(0)
    return make_plan(
        range(22) if ids is None else ids,
        **{
            "clusters": rng.integers(0, 3, 22),
            "difficulty": rng.normal(size=22),
            "quality": rng.normal(size=22),
            "drop_lowest": 0.1,
            "prompts_per_step": 4,
            "epochs": 2,
            "policy": "saerl",
        }
        | settings,
    )


ODD_IDS = ["", "é", "\ud800", "a\0b", *[f"q{row}" for row in range(18)]]


@pytest.mark.parametrize(
    "plan",
    [
        some_plan(),
        some_plan(ODD_IDS, clusters=["a", "ü"] * 11, fingerprint="problem:abc", max_difficulty=1.5),
        some_plan(partial="drop"),
        make_plan(range(22), prompts_per_step=4, policy="random"),
    ],
    ids=["integers", "strings", "drop", "bare"],
)
def test_round_trip(plan, tmp_path):
    folder = plan.save(tmp_path / "plan")
    again = BatchPlan.load(folder)
    for name in plan.__dataclass_fields__:
        one, other = getattr(plan, name), getattr(again, name)
        if isinstance(one, np.ndarray):
            assert one.dtype == other.dtype
            assert np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
        else:
            assert one == other
    assert sorted(path.name for path in folder.iterdir()) == ["plan.json", "plan.safetensors"]


def test_same_plan_same_bytes(tmp_path):
    for name in "ab":
        some_plan().save(tmp_path / name)
    for file in ("plan.json", "plan.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_another_plan_is_not_overwritten(tmp_path):
    some_plan().save(tmp_path)
    some_plan().save(tmp_path)
    with pytest.raises(PlanError, match="another plan"):
        some_plan(seed=1).save(tmp_path)
    assert BatchPlan.load(tmp_path).seed == 0


def test_a_half_written_folder_is_not_a_plan(tmp_path):
    some_plan().save(tmp_path)
    (tmp_path / "plan.json").unlink()
    with pytest.raises(FormatError, match="has none"):
        BatchPlan.load(tmp_path)
    some_plan(seed=1).save(tmp_path)
    assert BatchPlan.load(tmp_path).seed == 1


def rewrite(folder, change_arrays=None, change_json=None):
    """Changes the files and makes the checksum fit, as someone would who means to deceive."""
    arrays = load_file(folder / "plan.safetensors")
    content = save(change_arrays(arrays)) if change_arrays else (folder / "plan.safetensors").read_bytes()
    known = json.loads((folder / "plan.json").read_text())
    known |= {"arrays_bytes": len(content), "arrays_sha256": hashlib.sha256(content).hexdigest()}
    if change_json:
        change_json(known)
    (folder / "plan.safetensors").write_bytes(content)
    (folder / "plan.json").write_text(json.dumps(known))


def put(name, array):
    return lambda arrays: arrays | {name: array}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (put("rows", np.zeros((10, 4), dtype=np.int64)), PlanError, "each kept row once"),
        (put("rows", np.full((10, 4), 2**62)), PlanError, "from 0 to"),
        (put("rows", np.full((10, 4), -1)), PlanError, "from 0 to"),
        (put("rows", np.zeros((10, 4), dtype=np.int32)), FormatError, "rows as int64"),
        (put("rows", np.zeros(40, dtype=np.int64)), FormatError, "2 dimensions"),
        (put("rows", np.zeros((0, 4), dtype=np.int64)), PlanError, "rows"),
        (put("padded", np.zeros((10, 4), dtype=np.uint8)), FormatError, "padded as bool"),
        (put("dropped", np.zeros((0, 0), dtype=np.int64)), PlanError, "dropped"),
        (put("codes", np.full(22, 7, dtype=np.int32)), PlanError, "codes"),
        (put("difficulty", np.full(22, np.nan)), PlanError, "not finite"),
        (put("ids", np.arange(22)[::-1].copy()), CorruptStoreError, "ids_sha256"),
        (put("extra", np.zeros(3)), FormatError, "unknown: \\['extra'\\]"),
        (lambda arrays: {k: v for k, v in arrays.items() if k != "rows"}, FormatError, "missing: \\['rows'\\]"),
        (lambda arrays: {k: v for k, v in arrays.items() if k != "ids"}, FormatError, "wanted ids"),
    ],
)
def test_arrays_are_checked(tmp_path, change, error, message):
    some_plan().save(tmp_path)
    rewrite(tmp_path, change_arrays=change)
    with pytest.raises(error, match=message):
        BatchPlan.load(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format", "other"), ("format_version", 2), ("format_version", True), ("seed", "0"), ("seed", True), ("policy", {}),
        ("policy", {"name": "x", "clusters_per_step": -1, "tail_swap": 0.0, "order": "random"}),
        ("policy", {"name": "x", "clusters_per_step": [], "tail_swap": 0.0, "order": "random"}),
        ("policy", []), ("partial", "ignore"), ("threshold", "x"), ("cluster_labels", [0.5, 1, 2]), ("cluster_labels", []),
        ("reason_names", [1, 2, 3]), ("reason_names", []), ("fingerprint", 3), ("arrays_bytes", "many"),
        ("arrays_bytes", 5), ("arrays_sha256", ""), ("ids_sha256", ""), ("drop_lowest", None), ("max_difficulty", []),
    ],
)  # fmt: skip
def test_the_description_is_checked(tmp_path, field, value):
    some_plan().save(tmp_path)
    rewrite(tmp_path, change_json=lambda known: known.update({field: value}))
    with pytest.raises(SaerlError):
        BatchPlan.load(tmp_path)


@pytest.mark.parametrize("field", ["seed", "policy", "threshold", "arrays_sha256", "cluster_labels"])
def test_nothing_may_be_missing(tmp_path, field):
    some_plan().save(tmp_path)
    rewrite(tmp_path, change_json=lambda known: known.pop(field))
    with pytest.raises(FormatError, match=field):
        BatchPlan.load(tmp_path)


@pytest.mark.parametrize(
    ("ids", "ends", "message"),
    [
        (b"ab", [1, 1, 3], "tile"), (b"ab", [2, 1, 2], "tile"), (b"ab", [], "tile"), (b"\xff\xfe", [1, 1, 2], "UTF-8"),
        (b"ab", [-1, 1, 2], "tile"), (b"ab", [9 * 10**18, -(9 * 10**18), 2], "tile"),
    ],
)  # fmt: skip
def test_string_ids_are_checked(tmp_path, ids, ends, message):
    some_plan(ODD_IDS).save(tmp_path)
    joined = {"id_bytes": np.frombuffer(ids, dtype=np.uint8), "id_ends": np.array(ends, dtype=np.int64)}
    rewrite(tmp_path, change_arrays=lambda arrays: arrays | joined)
    with pytest.raises(FormatError, match=message):
        BatchPlan.load(tmp_path)


def test_damage_is_noticed(tmp_path):
    some_plan().save(tmp_path)
    path = tmp_path / "plan.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    with pytest.raises(CorruptStoreError, match="bytes"):
        BatchPlan.load(tmp_path)
    path.write_bytes(whole[:-3] + bytes(byte ^ 1 for byte in whole[-3:]))
    with pytest.raises(CorruptStoreError, match="checksum"):
        BatchPlan.load(tmp_path)
    path.unlink()
    with pytest.raises(CorruptStoreError, match="missing"):
        BatchPlan.load(tmp_path)


def test_a_pickle_is_refused_unread(tmp_path):
    some_plan().save(tmp_path)
    content = pickle.dumps({"rows": 1})
    (tmp_path / "plan.safetensors").write_bytes(content)
    rewrite_json = {"arrays_bytes": len(content), "arrays_sha256": hashlib.sha256(content).hexdigest()}
    known = json.loads((tmp_path / "plan.json").read_text()) | rewrite_json
    (tmp_path / "plan.json").write_text(json.dumps(known))
    with pytest.raises(UnsafeFileError, match="pickle"):
        BatchPlan.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"[" * 5000, b'{"format": NaN}', b"\xff"])
def test_a_broken_description_is_refused(tmp_path, content):
    some_plan().save(tmp_path)
    (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(FormatError):
        BatchPlan.load(tmp_path)


def test_more_labels_than_a_reader_would_take_are_not_saved(tmp_path):
    labels = [f"{row:060000}" for row in range(22)]
    with pytest.raises(PlanError, match="22 cluster labels are too many to save"):
        some_plan(clusters=labels).save(tmp_path / "plan")
    assert not (tmp_path / "plan").exists()


def test_a_plan_is_saved_where_the_package_is_not_installed(tmp_path, monkeypatch):
    def absent(name):
        raise files.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(files.metadata, "version", absent)
    some_plan().save(tmp_path)
    assert json.loads((tmp_path / "plan.json").read_text())["versions"]["saerl_fast"] == "not installed"
    assert BatchPlan.load(tmp_path).digest == some_plan().digest
