"""Every format x kind that is read, and what its encode is held against: the library that owns it, or its formula.

The libraries that are not among our dependencies are used where they are importable, past their front doors, which want
more than their SAEs do: ``pip install --no-deps --target DIR eai-sparsify dictionary-learning llamascopium`` and a few
small ones they miss, with DIR on PYTHONPATH.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import pytest
import torch

from saerl_fast.formats import load_sae, save_sae
from saerl_fast.formats.convert import convert
from tests import tiny
from tests.formats import test_golden as golden
from tests.formats import test_llama_scope as llama
from tests.formats.test_golden import LATENTS, WIDTH, assert_same, features, rows

KINDS = ("standard", "topk", "abstopk", "jumprelu", "gated", "transcoders")


@dataclass(frozen=True)
class Case:
    """One comparison. owner: "formula", or the library's name on PyPI; compare(home, monkeypatch) raises where it fails."""

    format: str
    kind: str
    owner: str
    compare: Callable[[Any, Any], None]


CASES: dict[str, Case] = {}


def case(name: str, format_: str, kind: str, owner: str) -> Callable[[Callable], Callable]:
    def keep(compare: Callable) -> Callable:
        CASES[name] = Case(format_, kind, owner, compare)
        return compare

    return keep


def past_the_door(package: str, *inside: str) -> list[ModuleType]:
    """Modules of a package without running its __init__, nor those of the folders on the way; skips where it is absent."""
    found = find_spec(package) if package not in sys.modules else sys.modules[package].__spec__
    if found is None:
        pytest.skip(f"{package} is not installed")
    for way in sorted({package, *(f"{package}.{name}".rpartition(".")[0] for name in inside)}):
        if way not in sys.modules:
            module = ModuleType(way)
            tail = way.removeprefix(package).lstrip(".").split(".")
            module.__path__ = ["/".join([found.submodule_search_locations[0], *filter(None, tail)])]
            module.__spec__ = found
            sys.modules[way] = module
    return [importlib.import_module(f"{package}.{name}") for name in inside]


# ---- sae-lens

PLAIN = {kind: tiny.sae(kind) for kind in KINDS[:-1]}
TRANSCODERS = {
    "transcoder": tiny.transcoder(),
    "skip-transcoder": tiny.transcoder(w_skip=torch.randn(tiny.WIDTH_OUT, tiny.WIDTH)),
    "jumprelu-transcoder": tiny.transcoder("jumprelu"),
    "jumprelu-skip-transcoder": tiny.transcoder("jumprelu", w_skip=torch.randn(tiny.WIDTH_OUT, tiny.WIDTH)),
}


def by_sae_lens(sae: Any) -> Callable[[Any, Any], None]:
    def compare(home: Any, _: Any) -> None:
        sae_lens = pytest.importorskip("sae_lens")
        save_sae(sae, home / "ours")
        theirs = sae_lens.SAE.load_from_disk(str(home / "ours"), device="cpu")
        theirs.save_model(str(home / "theirs"))  # from here on the files are theirs
        with torch.no_grad():
            assert_same(features(load_sae(home / "theirs"), rows()), theirs.encode(rows()))

    return compare


for _name, _sae in {**PLAIN, **TRANSCODERS}.items():
    case(f"sae-lens-{_name}", "sae-lens 6", _name if _name in PLAIN else "transcoders", "sae-lens")(by_sae_lens(_sae))


def as_before_6(settings: dict) -> Callable[[Any, Any], None]:
    def compare(home: Any, _: Any) -> None:
        sae_lens = pytest.importorskip("sae_lens")
        golden.old_folder(home / "sae", settings)
        theirs = sae_lens.SAE.load_from_disk(str(home / "sae"), device="cpu")
        with torch.no_grad():
            assert_same(features(load_sae(home / "sae"), rows()), theirs.encode(rows()))

    return compare


for _kind, _old in {
    "standard": "standard",
    "topk": "topk-as-activation",
    "jumprelu": "jumprelu",
    "gated": "gated",
}.items():
    case(f"before-6-{_kind}", "sae-lens before 6.0", _kind, "sae-lens")(as_before_6(golden.OLD[_old]))


# ---- sparsify


def of_sparsify(transcode: bool, against: str) -> Callable[[Any, Any], None]:
    def compare(home: Any, _: Any) -> None:
        folder = home / "layers.3"
        tensors = golden.sparsify_folder(folder, transcode=transcode, skip_connection=transcode)
        ours = load_sae(folder)
        if against == "formula":
            wanted = golden.sparsify_formula(tensors, rows(), 6, subtract=not transcode)
        else:
            theirs = pytest.importorskip("sparsify").SparseCoder.load_from_disk(folder)
            with torch.no_grad():
                found = theirs.encode(rows())
                wanted = torch.zeros(64, LATENTS).scatter_(1, found.top_indices, found.top_acts)
                decoded = theirs.decode(found.top_acts, found.top_indices)
                torch.testing.assert_close(ours.decode(ours.encode(rows())), decoded, rtol=1e-4, atol=1e-4)
        assert_same(features(ours, rows()), wanted)

    return compare


for _owner in ("formula", "eai-sparsify"):
    case(f"sparsify-topk-{_owner}", "EleutherAI sparsify", "topk", _owner)(of_sparsify(False, _owner))
    case(f"sparsify-transcoder-{_owner}", "EleutherAI sparsify", "transcoders", _owner)(of_sparsify(True, _owner))


# ---- Gemma Scope

PARTS = {"res": "jumprelu", "mlp": "jumprelu", "att": "jumprelu", "transcoders": "transcoders"}


def of_gemma_scope(part: str, against: str) -> Callable[[Any, Any], None]:
    def compare(home: Any, monkeypatch: Any) -> None:
        folder = home / f"gemma-scope-2b-pt-{part}" / "layer_3" / "width_16k" / "average_l0_14"
        arrays = golden.gemma_folder(folder)
        ours = load_sae(folder)
        if against == "formula":
            names = ("w_enc", "b_enc", "threshold")
            assert_same(features(ours, rows()), golden.jumprelu_formula(rows(), *(arrays[name] for name in names)))
            return
        theirs = gemma_scope_by_sae_lens(monkeypatch, folder, part)
        x = rows().view(64, 4, 8) if part == "att" else rows()
        with torch.no_grad():
            assert_same(features(ours, x), theirs.encode(x))
        assert ours.hook_name == theirs.cfg.metadata.hook_name

    return compare


def gemma_scope_by_sae_lens(monkeypatch: Any, folder: Any, part: str) -> Any:
    """sae-lens's own loader on our file, told the sizes that it would guess from a name."""
    sae_lens = pytest.importorskip("sae_lens")
    from sae_lens.loading import pretrained_sae_loaders as loaders

    monkeypatch.setattr(loaders, "hf_hub_download", lambda *_, **__: str(folder / "params.npz"))
    sizes = {"d_in": WIDTH, "d_sae": LATENTS} | ({"d_out": WIDTH} if part == "transcoders" else {})
    load = {
        True: loaders.gemma_2_transcoder_huggingface_loader,
        False: loaders.gemma_2_sae_huggingface_loader,
    }[part == "transcoders"]
    settings, state, _ = load(
        f"google/gemma-scope-2b-pt-{part}", "layer_3/width_16k/average_l0_14", cfg_overrides=sizes
    )
    theirs = sae_lens.SAE.from_dict(loaders.handle_config_defaulting(settings | sizes))
    theirs.load_state_dict(state)
    return theirs


for _part, _kind in PARTS.items():
    for _owner in ("formula", "sae-lens"):
        case(f"gemma-scope-{_part}-{_owner}", "Gemma Scope (npz)", _kind, _owner)(of_gemma_scope(_part, _owner))


# ---- Llama Scope


def of_llama_scope(part: str, against: str) -> Callable[[Any, Any], None]:
    def compare(home: Any, monkeypatch: Any) -> None:
        changes = llama.TRANSCODER if part == "transcoders" else {}
        counts = against != "sae-lens"  # it leaves the norm of the decoder out
        averages = (9.0, 3.0) if changes else (9.0, 9.0)
        tensors = golden.llama_folder(home, sparsity_include_decoder_norm=counts, **changes)
        ours = load_sae(home)
        if against == "formula":
            wanted = llama.formula(tensors, rows(), averages=averages, counts=counts)
        elif against == "sae-lens":
            with torch.no_grad():
                wanted = llama.by_sae_lens(monkeypatch, home).encode(rows())
        else:
            wanted = by_openmoss(home, tensors)
        assert_same(features(ours, rows()), wanted)

    return compare


def by_openmoss(home: Any, tensors: dict) -> torch.Tensor:
    """Their class, folded for inference by their own method, as their loader did when these SAEs were published.

    Its features are those of unscaled activations, smaller than ours by the scale of the input.
    """
    (module,) = past_the_door("llamascopium", "models.sae")
    settings = json.loads((home / "hyperparams.json").read_text())
    reads, writes = settings["hook_point_in"], settings["hook_point_out"]
    theirs = module.SparseAutoEncoder(
        module.SAEConfig(
            d_model=WIDTH, expansion_factor=LATENTS / WIDTH, act_fn="jumprelu", norm_activation="dataset-wise",
            sparsity_include_decoder_norm=True, hook_point_in=reads, hook_point_out=writes, dtype=torch.float32,
        )
    )  # fmt: skip
    average = settings["dataset_average_activation_norm"]
    with torch.no_grad():
        theirs.W_E.copy_(tensors["encoder.weight"].t())
        theirs.b_E.copy_(tensors["encoder.bias"])
        theirs.W_D.copy_(tensors["decoder.weight"].t())
        theirs.b_D.copy_(tensors["decoder.bias"])
        theirs.set_dataset_average_activation_norm({reads: average["in"], writes: average["out"]})
        theirs.standardize_parameters_of_dataset_norm()
        theirs.activation_function.log_jumprelu_threshold.fill_(settings["jump_relu_threshold"]).log_()
        return theirs.encode(rows()) * WIDTH**0.5 / average["in"]


for _part, _kind in {"sae": "jumprelu", "transcoders": "transcoders"}.items():
    for _owner in ("formula", "llamascopium") + (("sae-lens",) if _part == "sae" else ()):
        case(f"llama-scope-{_part}-{_owner}", "Llama Scope", _kind, _owner)(of_llama_scope(_part, _owner))


# ---- files of torch, by way of convert


def of_qwen_scope(against: str) -> Callable[[Any, Any], None]:
    def compare(home: Any, monkeypatch: Any) -> None:
        folder = home / "SAE-Res-Qwen3-1.7B-Base-W32K-L0_50"
        folder.mkdir()
        state = {
            "W_enc": golden.normal(LATENTS, WIDTH), "W_dec": golden.normal(WIDTH, LATENTS, seed=2),
            "b_enc": golden.normal(LATENTS, seed=1), "b_dec": golden.normal(WIDTH, seed=3),
        }  # fmt: skip
        torch.save(state, folder / "layer7.sae.pt")
        convert(folder / "layer7.sae.pt", home / "out")
        if against == "formula":
            h = rows().double() @ state["W_enc"].double().t() + state["b_enc"].double()
            top = h.topk(50, dim=1)
            wanted = torch.zeros_like(h).scatter_(1, top.indices, top.values.relu())
        else:
            sae_lens = pytest.importorskip("sae_lens")
            from sae_lens.loading import pretrained_sae_loaders as loaders

            monkeypatch.setattr(loaders, "hf_hub_download", lambda *_, **__: str(folder / "layer7.sae.pt"))
            sizes = {"d_in": WIDTH, "d_sae": LATENTS}
            settings, tensors, _ = loaders.qwen_scope_sae_huggingface_loader(
                f"Qwen/{folder.name}", "layer7.sae.pt", cfg_overrides=sizes
            )
            theirs = sae_lens.SAE.from_dict(loaders.handle_config_defaulting(settings))
            theirs.load_state_dict(tensors)
            with torch.no_grad():
                wanted = theirs.encode(rows())
        assert_same(features(load_sae(home / "out"), rows()), wanted)

    return compare


for _owner in ("formula", "sae-lens"):
    case(f"qwen-scope-{_owner}", "Qwen-Scope (.pt)", "topk", _owner)(of_qwen_scope(_owner))

# class -> where it lies, what it is made with, and its kind here
DICTIONARIES: dict[str, tuple[str, tuple, str]] = {
    "AutoEncoder": ("dictionary", (), "standard"),
    "AutoEncoderNew": ("dictionary", (), "standard"),
    "GatedAutoEncoder": ("dictionary", (), "gated"),
    "JumpReluAutoEncoder": ("dictionary", (), "jumprelu"),
    "AutoEncoderTopK": ("trainers.top_k", (9,), "topk"),
    "BatchTopKSAE": ("trainers.batch_top_k", (9,), "jumprelu"),
    "MatryoshkaBatchTopKSAE": ("trainers.matryoshka_batch_top_k", (9, [32, 64]), "jumprelu"),
}


def of_dictionary_learning(name: str, against: str) -> Callable[[Any, Any], None]:
    def compare(home: Any, _: Any) -> None:
        made = golden.dictionary(name)
        if against == "formula":
            golden.dictionary_folder(home / "trainer_0", name, made)
            wanted = golden.dictionary_formula(name, made, rows())
        else:
            where, arguments, _ = DICTIONARIES[name]
            (module,) = past_the_door("dictionary_learning", where)
            theirs = getattr(module, name)(WIDTH, LATENTS, *arguments)
            theirs.load_state_dict(made.state_dict())  # every tensor by its name, and no other
            golden.dictionary_folder(home / "trainer_0", name, theirs)
            with torch.no_grad():
                wanted = theirs.encode(rows())
        convert(home / "trainer_0", home / "out")
        assert_same(features(load_sae(home / "out"), rows()), wanted)

    return compare


for _name, (_, _, _kind) in DICTIONARIES.items():
    for _owner in ("formula", "dictionary-learning"):
        _compare = of_dictionary_learning(_name, _owner)
        case(f"{_name}-{_owner}", "dictionary_learning (.pt)", _kind, _owner)(_compare)
