"""Torch files read as data: what torch.save wrote comes back bit for bit, and what could run is refused."""

import collections
import os

import pytest
import torch

from saerl_fast.errors import FormatError, SaerlError, UnsafeFileError
from saerl_fast.formats import load_sae
from saerl_fast.formats.convert import convert
from saerl_fast.formats.torch_file import read_torch_file
from tests.formats import hostile_torch
from tests.formats.hostile_torch import HOSTILE, SENTINEL
from tests.formats.limits import at_once


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = torch.nn.Linear(4, 6)
        self.decoder = torch.nn.Linear(6, 4, bias=False)
        self.decoder.weight.data = self.encoder.weight.data.t()
        self.register_buffer("k", torch.tensor(3, dtype=torch.int))


def tensors_of(value, name=""):
    if isinstance(value, torch.Tensor):
        yield name, value.detach()
    elif isinstance(value, (dict, list, tuple)):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from tensors_of(child, f"{name}.{key}" if name else str(key))


BASE = torch.arange(24.0)
SAVED = {
    "state-dict": Net().state_dict(),
    "views-of-one-storage": {"t": BASE.view(4, 6).t(), "step": BASE[3:9:2], "part": BASE[5:], "whole": BASE},
    "dtypes": {
        str(dtype): torch.arange(-3, 9).to(dtype)
        for dtype in (
            torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
            torch.int8, torch.uint8, torch.bool,
        )
    },
    "shapes": {"scalar": torch.tensor(2.5), "none": torch.zeros(0, 3), "four": torch.randn(2, 3, 4, 5)},
    "nested": {"model": collections.OrderedDict(w=torch.ones(2)), "list": [torch.zeros(2), (torch.ones(1), 3)]},
    "parameter": {"w": torch.nn.Parameter(torch.randn(3, 3))},
    "beside-settings": {"w": torch.ones(2), "lr": 1e-3, "big": 2**40, "name": "x", "none": None, "flag": True, 7: [1]},
    "channels-last": {"w": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)},
    "bare": torch.randn(4, 4),
}  # fmt: skip


@pytest.mark.parametrize("case", SAVED)
def test_what_torch_saved_comes_back_bit_for_bit(case, tmp_path):
    torch.save(SAVED[case], tmp_path / "x.pt")
    wanted, got = dict(tensors_of(SAVED[case])), read_torch_file(tmp_path / "x.pt")
    assert set(got) == set(wanted)
    for name, tensor in wanted.items():
        assert got[name].dtype == tensor.dtype
        assert torch.equal(got[name], tensor), name


def test_tensors_of_one_storage_are_in_memory_once(tmp_path):
    big = torch.zeros(1_000_000)
    torch.save({str(i): big[i:] for i in range(50)}, tmp_path / "x.pt")
    got = read_torch_file(tmp_path / "x.pt")
    assert len({tensor.untyped_storage().data_ptr() for tensor in got.values()}) == 1


def test_the_good_file_of_the_makers_is_read(tmp_path):
    (tmp_path / "x.pt").write_bytes(hostile_torch.good())
    assert torch.equal(read_torch_file(tmp_path / "x.pt")["w"], torch.zeros(4))


@pytest.mark.parametrize("empty", [b"N", b"}"])
def test_metadata_that_says_nothing_is_passed_over(empty, tmp_path):
    opcodes = hostile_torch.in_dict(hostile_torch.tensor().replace(b")RtR", b")R" + empty + b"tR"))
    (tmp_path / "x.pt").write_bytes(hostile_torch.torch_file(opcodes))
    assert torch.equal(read_torch_file(tmp_path / "x.pt")["w"], torch.zeros(4))


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused_at_once_and_run_nothing(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "layer0.sae.pt").write_bytes(HOSTILE[case])
    with at_once(), pytest.raises(UnsafeFileError) as caught:
        convert(tmp_path / "layer0.sae.pt", tmp_path / "out", k=1)
    assert "layer0.sae.pt" in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert not (tmp_path / SENTINEL).exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("reduce-os-mkdir", r"names posix\.mkdir"),
        ("global-builtins-eval", r"names __builtin__\.eval"),
        ("stack-global-eval", r"opcode b'\\x93'"),
        ("dotted-name", "_rebuild_tensor_v2.__globals__"),
        ("list-in-itself", "nested deeper"),
        ("billion-laughs", "nested deeper than 8, or more than 10000 values"),
        ("storage-larger-than-its-member", "needs 20 bytes; its member holds 16"),
        ("view-beyond-the-storage", "reaches element 4; its storage has 4"),
        ("stride-0-to-10^9", "repeats the elements"),
        ("negated-by-its-metadata", r"tensor 'w' has metadata \(neg, conj or the like\)"),
        ("metadata-of-another-type", "tensor 'w' has metadata"),
        ("compressed", "encrypted or compressed"),
        ("overlapping-members", "overlap"),
        ("member-with-a-path", "member name"),
        ("many-members", "301 members, more than the cap"),
        ("wrong-checksum", "CRC"),
        ("before-1.6", "torch before 1.6"),
        ("big-endian", "little-endian|must have 6 bytes"),
        ("whole-module", r"names torch\.nn\.modules"),
        ("float8", "_rebuild"),
    ],
)
def test_the_refusal_names_its_cause(case, message, tmp_path):
    (tmp_path / "x.pt").write_bytes(HOSTILE[case])
    with pytest.raises(UnsafeFileError, match=message):
        read_torch_file(tmp_path / "x.pt")


@pytest.mark.parametrize("case", ["reduce-os-mkdir", "bare-pickle"])
def test_loading_never_takes_a_torch_file_and_names_convert(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ae.pt").write_bytes(HOSTILE[case])
    for path in (tmp_path, tmp_path / "ae.pt"):
        with pytest.raises(UnsafeFileError, match="never loaded.*saerl convert"):
            load_sae(path)
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(UnsafeFileError, match="regular file"):
        read_torch_file(tmp_path / "pipe.pt")
    assert not (tmp_path / SENTINEL).exists()


def test_damage_anywhere_is_refused_by_name_or_changes_only_numbers(tmp_path):
    """One bit of every byte of a small file, flipped: no other error, no crash, and never more tensors than there were."""
    good = bytearray(hostile_torch.good())
    path = tmp_path / "x.pt"
    outcomes = collections.Counter()
    for at in range(len(good)):
        bit = 1 << at % 8
        good[at] ^= bit
        path.write_bytes(good)
        good[at] ^= bit
        try:
            found = read_torch_file(path)
        except SaerlError:
            outcomes["refused"] += 1
        else:
            outcomes["read"] += 1
            assert len(found) <= 1
    assert outcomes["refused"] > outcomes["read"]


def test_state_dicts_that_make_no_sae_are_named(tmp_path):
    state = {"encoder.weight": torch.randn(9, 4), "encoder.bias": torch.zeros(9), "decoder.weight": torch.randn(4, 9)}
    state["bias"] = torch.zeros(4)

    def refused(match, changes=None, **settings):
        torch.save(state | (changes or {}), tmp_path / "x.pt")
        with pytest.raises(FormatError, match=match):
            convert(tmp_path / "x.pt", tmp_path / "out", **settings)

    refused("say which: --kind standard")
    refused("--subtract-b-dec", kind="standard")
    both = {"kind": "standard", "apply_b_dec": True}
    refused(r"tensors \['extra'\] are not known", {"extra": torch.zeros(1)}, **both)
    refused("finite floating numbers", {"bias": torch.full((4,), torch.nan)}, **both)
    refused("finite floating numbers", {"bias": torch.zeros(4, dtype=torch.int64)}, **both)
    refused(r"encoder must be \[9, 4\]", {"encoder.weight": torch.randn(9, 5)}, **both)
    refused("no shape says how encoder lies", {"bias": torch.zeros(9), "encoder.weight": torch.randn(9, 9)}, **both)
    refused("needs a threshold", kind="jumprelu", apply_b_dec=True)
    torch.save({f"model.{name}": tensor for name, tensor in state.items()}, tmp_path / "x.pt")
    made = convert(tmp_path / "x.pt", tmp_path / "out", **both, metadata={"model_name": "m"})
    assert torch.equal(load_sae(tmp_path / "out").w_enc, state["encoder.weight"])
    assert made.model_name == "m"
    (tmp_path / "y.pt").write_bytes((tmp_path / "x.pt").read_bytes())
    with pytest.raises(FormatError, match="several files"):
        convert(tmp_path, tmp_path / "out2")
    with pytest.raises(FormatError, match="says itself what it is"):
        convert(tmp_path / "out", tmp_path / "out2", kind="topk")
