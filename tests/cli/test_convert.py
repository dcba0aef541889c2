"""saerl convert: a published .pt file becomes a folder that featurize reads; what is hostile ends with 2 and a reason."""

import pytest
import torch

from saerl_fast.cli import main
from saerl_fast.formats import load_sae
from tests import tiny
from tests.formats.hostile_torch import HOSTILE, SENTINEL


def test_a_state_dict_becomes_a_folder(tmp_path, capsys):
    sae = tiny.sae()
    state = {
        "encoder.weight": sae.w_enc,
        "encoder.bias": sae.b_enc,
        "decoder.weight": sae.w_dec.t(),
        "b_dec": sae.b_dec,
    }
    torch.save(state, tmp_path / "sae.pt")
    words = ["convert", str(tmp_path / "sae.pt"), str(tmp_path / "out")]
    assert main(words) == 2
    assert "say which: --kind" in capsys.readouterr().err
    words += ["--kind", "topk", "--k", "8", "--subtract-b-dec", "--hook-name", "blocks.1.hook_resid_post"]
    assert main(words) == 0
    assert "topk SAE of 96 latents over 32 channels, k 8" in capsys.readouterr().out
    assert load_sae(tmp_path / "out").weights_hash() == sae.weights_hash()
    assert load_sae(tmp_path / "out").hook_name == "blocks.1.hook_resid_post"
    assert main(words) == 2
    assert "nothing is overwritten" in capsys.readouterr().err


def test_a_hostile_file_ends_with_its_reason(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sae.pt").write_bytes(HOSTILE["reduce-os-mkdir"])
    assert main(["convert", "sae.pt", "out"]) == 2
    assert "UnsafeFileError" in capsys.readouterr().err
    assert not (tmp_path / SENTINEL).exists()


def written(path, content):
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("absent.pt", None, "no such file or folder; a .pt file"),
        ("absent", None, "no such file or folder"),
        ("empty.pt", lambda path: path.write_bytes(b""), "torch.save wrote is wanted (a zip archive); it is empty"),
        ("text.pt", lambda path: path.write_bytes(b"<html>"), "it begins with b'<html>'"),
        ("none.pt", lambda path: written(path, {}), "no tensor is in it"),
        ("alone.pt", lambda path: written(path, torch.zeros(3)), "a single tensor; the state dict of an SAE"),
        ("part.pt", lambda path: written(path, {"W_enc": torch.zeros(2, 3)}), "beside what is there: ['W_enc']"),
        ("sae.safetensors", lambda path: path.write_bytes(b"x"), "of .safetensors the folder that it lies in"),
        ("folder", lambda path: path.mkdir(), "no SAE of a known format"),
    ],
)
def test_what_is_no_sae_is_told_apart(name, make, message, tmp_path, capsys):
    if make is not None:
        make(tmp_path / name)
    assert main(["convert", str(tmp_path / name), str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
