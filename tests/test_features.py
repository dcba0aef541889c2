"""SparseFeatures: selecting, joining, converting, saving, and refusing what is inconsistent."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from saerl_fast.errors import FormatError, InputError, ShapeError
from saerl_fast.features import SparseFeatures
from saerl_fast.formats import safetensors_file


def make(rows=7, columns=20, hidden=True, seed=0, start=0):
    generator = np.random.default_rng(seed)
    counts = generator.integers(0, 6, rows)
    return SparseFeatures(
        indptr=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        indices=np.concatenate([np.sort(generator.choice(columns, n, replace=False)) for n in counts]).astype(np.int32),
        values=generator.random(counts.sum()).astype(np.float32),
        n_features=columns,
        ids=tuple(range(start, start + rows)),
        status=("ok",) * rows,
        n_tokens=counts.astype(np.int32),
        hidden=generator.random((rows, 3)).astype(np.float32) if hidden else None,
        provenance={"model": "m"},
    )


@pytest.mark.parametrize(
    "rows", [slice(2, 5), slice(None, None, -1), [6, 0, 0], np.array([True, False] * 3 + [True]), slice(3, 3)]
)
def test_selection_is_that_of_numpy(rows):
    features = make()
    picked = features[rows]
    np.testing.assert_array_equal(picked.to_scipy().toarray(), features.to_scipy().toarray()[rows])
    np.testing.assert_array_equal(picked.hidden, features.hidden[rows])
    assert picked.ids == tuple(np.arange(7)[rows].tolist())


def test_concatenate_and_its_refusals():
    one, two = make(), make(seed=1, start=7)
    joined = SparseFeatures.concatenate([one, two])
    np.testing.assert_array_equal(
        joined.to_scipy().toarray(), np.concatenate([one.to_scipy().toarray(), two.to_scipy().toarray()])
    )
    with pytest.raises(InputError, match="at least one part"):
        SparseFeatures.concatenate([])
    with pytest.raises(InputError, match=r"different jobs; \['model'\] differ"):
        SparseFeatures.concatenate([one, replace(two, provenance={"model": "other"})])
    with pytest.raises(InputError, match="hidden kept True and False"):
        SparseFeatures.concatenate([one, make(hidden=False)])


def test_conversions():
    features = make()
    wanted = features.to_scipy().toarray()
    np.testing.assert_array_equal(features.to_torch().to_dense().numpy(), wanted)
    columns = features.to_columns()
    rebuilt = np.zeros_like(wanted)
    for row, (idx, val) in enumerate(zip(columns["saerl_idx"], columns["saerl_val"], strict=True)):
        rebuilt[row, idx] = val
    np.testing.assert_array_equal(rebuilt, wanted)
    assert [name for name, _, _ in features.rows()] == list(features.ids)


def test_into_a_dataset_and_back():
    datasets = pytest.importorskip("datasets")
    features = make()
    data = features.add_to(datasets.Dataset.from_dict({"text": list("abcdefg")}))
    assert data[3]["saerl_idx"] == features.to_columns()["saerl_idx"][3]
    with pytest.raises(InputError, match="7 rows of features, 2 in the dataset"):
        features.add_to(datasets.Dataset.from_dict({"text": ["a", "b"]}))


@pytest.mark.parametrize("hidden", [True, False])
def test_save_and_load(tmp_path, hidden):
    features = replace(make(hidden=hidden), ids=("ä", "b\n", 3, "d", "e", "f", "g"), status=("empty",) + ("ok",) * 6)
    features.save(tmp_path / "f.safetensors")
    back = SparseFeatures.load(tmp_path / "f.safetensors")
    assert (back.ids, back.status, back.provenance) == (features.ids, features.status, features.provenance)
    np.testing.assert_array_equal(back.to_scipy().toarray(), features.to_scipy().toarray())
    assert (back.hidden is None) == (not hidden)


def test_a_file_that_is_something_else(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(FormatError, match="no saerl_fast entry"):
        SparseFeatures.load(tmp_path / "x.safetensors")


def test_inconsistent_arrays_are_refused():
    good = make()
    for changes, message in [
        ({"indptr": good.indptr[:-1]}, "indptr must have 8 entries"),
        ({"values": good.values[:-1]}, "indptr ends at"),
        ({"indptr": good.indptr[::-1].copy()}, "indptr"),
        ({"indices": good.indices + 20}, r"indices must lie in \[0, 20\)"),
        ({"indices": good.indices - 20}, r"indices must lie in \[0, 20\)"),
        ({"hidden": good.hidden[:-1]}, r"hidden must be \[7, D\]"),
        ({"ids": good.ids[:-1]}, "indptr must have 7"),
        ({"n_features": -1}, "n_features must be from 0 to"),
        ({"n_features": 10**30}, "n_features must be from 0 to"),
    ]:
        with pytest.raises(ShapeError, match=message):
            replace(good, **changes)
    with pytest.raises(InputError, match="status must be one of"):
        replace(good, status=("fine",) * 7)
    with pytest.raises(InputError, match="not a single row"):
        good[3]


def test_bounds_whose_differences_wrap_are_refused():
    """Each step of 2^63 and more would wrap to a rise, and the rows would lie outside of the memory."""
    good = make(rows=3)
    indptr = np.array([0, 9 * 10**18, -9 * 10**18, good.nnz])
    assert (np.diff(indptr) >= 0).all()
    with pytest.raises(ShapeError, match="never fall"):
        replace(good, indptr=indptr)


def test_the_indices_of_a_row_rise():
    good = make()
    row = int(np.flatnonzero(np.diff(good.indptr) > 1)[0])
    begin, end = good.indptr[row : row + 2]
    for wrong in (good.indices[begin:end][::-1], np.full(end - begin, good.indices[begin])):
        indices = good.indices.copy()
        indices[begin:end] = wrong
        with pytest.raises(InputError, match="ascending and distinct"):
            replace(good, indices=indices)


def test_a_file_is_opened_once(tmp_path, monkeypatch):
    """What is read is what was checked, whatever takes its place meanwhile."""
    make().save(tmp_path / "f")
    opened = []
    real = safetensors_file.open_regular
    monkeypatch.setattr(safetensors_file, "open_regular", lambda path: opened.append(path) or real(path))
    SparseFeatures.load(tmp_path / "f")
    assert len(opened) == 1


def test_rows_gathered_from_parts_are_those_of_the_whole():
    parts = [make(rows=count, seed=count, start=start) for count, start in [(3, 0), (4, 3), (2, 7)]]
    rows = np.array([0, 2, 3, 8])
    gathered, whole = SparseFeatures.gather(iter(parts), rows), SparseFeatures.concatenate(parts)[rows]
    assert gathered.ids == whole.ids == (0, 2, 3, 8)
    assert (gathered.to_scipy() != whole.to_scipy()).nnz == 0
    for wrong in ([], [-1, 2], [8, 9]):
        with pytest.raises(InputError, match="wanted rows of 0 to 8"):
            SparseFeatures.gather(iter(parts), np.array(wrong, dtype=np.int64))
