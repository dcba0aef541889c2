"""Published ``.pt`` files to a sae-lens folder: the one place where a torch file is read, and never by an unpickler."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saerl_fast.errors import FormatError
from saerl_fast.formats.load import LOADING, PICKLED, check_notes, load_sae
from saerl_fast.formats.sae_lens import save_sae
from saerl_fast.formats.sae_lens_config import check_metadata
from saerl_fast.formats.safetensors_file import read_json
from saerl_fast.formats.torch_file import read_torch_file
from saerl_fast.kinds import SWITCH, check_arguments, is_path, one_of, whole
from saerl_fast.kinds import Kind as ArgumentKind
from saerl_fast.sae import SAE, Kind
from saerl_fast.sae.autoencoder import KINDS

CONFIG_FILE = "config.json"
CONVERTING: Mapping[str, ArgumentKind] = {
    "source": ArgumentKind("a .pt file, a folder with one, or the folder of an SAE", is_path),
    "target": ArgumentKind("a folder to write", is_path),
    "kind": one_of(KINDS).or_none,
    "k": whole(1).or_none,
    "apply_b_dec": SWITCH.or_none,
    "metadata": LOADING["metadata"],
}
"""What each argument of convert may be."""
_NAMES = {
    "w_enc": ("W_enc", "encoder.weight", "encoder_linear.weight"),
    "w_dec": ("W_dec", "decoder.weight", "decoder_linear.weight"),
    "b_enc": ("b_enc", "encoder.bias", "encoder_linear.bias", "b_gate", "gate_bias"),
    "b_dec": ("b_dec", "bias", "decoder_bias", "decoder.bias", "decoder_linear.bias"),
    "threshold": ("threshold",),
    "r_mag": ("r_mag",),
    "b_mag": ("b_mag", "mag_bias"),
    "k": ("k",),
}
_IGNORED = {"group_sizes"}
# classes of dictionary_learning: kind, and whether b_dec is subtracted before encoding
_CLASSES: dict[str, tuple[Kind, bool]] = {
    "AutoEncoder": ("standard", True),
    "AutoEncoderNew": ("standard", False),
    "GatedAutoEncoder": ("gated", True),
    "JumpReluAutoEncoder": ("jumprelu", False),
    "AutoEncoderTopK": ("topk", True),
    "BatchTopKSAE": ("jumprelu", True),
    "MatryoshkaBatchTopKSAE": ("jumprelu", True),
}
# what its submodule_name says -> the hook point of that module's output
_SUBMODULES = {
    "resid_post": "hook_resid_post",
    "mlp_out": "hook_mlp_out",
    "attn_out": "hook_attn_out",
    "attention_out": "hook_attn_out",
}
_SUBMODULE = re.compile(rf"({'|'.join(_SUBMODULES)})_layer_?(\d{{1,4}})")
# models with a norm between a module's output and the stream, and a hook point behind that norm
_NORMED = re.compile(r"gemma-?[2-9]|olmo-?[2-9]", re.IGNORECASE)
_GOODFIRE_FILE = re.compile(r"(Llama-3\.\d-\d{1,3}B-Instruct)-SAE-l(\d{1,3})\.pth?")
_QWEN_FILE = re.compile(r"layer(\d{1,4})\.sae\.pt")
_QWEN_REPOSITORY = re.compile(r"SAE-Res-([\w.\-]+)-W(\d{1,5})K-L0_(\d{1,5})")


@dataclass(frozen=True)
class Rule:
    """What the tensors do not say: kind, k, whether b_dec is subtracted, and where the SAE came from."""

    kind: Kind | None = None
    k: int | None = None
    apply_b_dec: bool | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    kind: Kind | None = None,
    k: int | None = None,
    apply_b_dec: bool | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> SAE:
    """Read an SAE in any form that is known and write it as a sae-lens 6 folder, which ``load_sae`` reads.

    source: a ``.pt`` file (Qwen-Scope's layerN.sae.pt; dictionary_learning's ae.pt with config.json beside it;
        Goodfire's; any state dict of an encoder, a decoder and their biases), a folder that holds one, or a folder that
        ``load_sae`` reads. Torch files are read as data: opcodes are walked, nothing in them is run.
    kind, k, apply_b_dec, metadata: what the files do not say, or say wrongly. They win over the files.

    Raises DtypeError or InputError for an argument of another type or out of range, UnsafeFileError for a file with
    anything but tensors in it, FormatError for tensors that make no SAE or where a setting is needed that nothing says.
    """
    given = {"source": source, "target": target, "kind": kind, "k": k, "apply_b_dec": apply_b_dec, "metadata": metadata}
    plain = check_arguments(given, CONVERTING)
    path = Path(source)
    asked = Rule(kind, plain["k"], plain["apply_b_dec"], check_notes(metadata))
    _refuse_other(path)
    file = path if path.is_file() else _torch_file_in(path)
    if file is None:
        if asked.kind is not None or asked.k is not None or asked.apply_b_dec is not None:
            raise FormatError(
                f"{source}: this folder says itself what it is; kind, k and apply_b_dec are for .pt files"
            )
        sae = load_sae(source, metadata=asked.metadata)
    else:
        sae = sae_from_state(file, read_torch_file(file), _combine(_rule_of(file), asked))
    save_sae(sae, target)
    return sae


def _refuse_other(path: Path) -> None:
    """FormatError for a path where nothing is, and for a file of a format that is read by its folder."""
    if path.is_file() and path.suffix in (".safetensors", ".npz", ".json"):
        raise FormatError(
            f"{path}: of a file a .pt is wanted; of {path.suffix} the folder that it lies in: {path.parent}"
        )
    if not path.exists() and (path.is_absolute() or path.suffix in PICKLED or path.parts[:1] in ((".",), ("..",))):
        raise FormatError(
            f"{path}: no such file or folder; a .pt file, a folder with one, or the folder of an SAE is wanted"
        )


def sae_from_state(origin: object, tensors: Mapping[str, Tensor], rule: Rule) -> SAE:
    """An SAE from a state dict; which way a weight lies is told by the lengths of the biases."""
    if not tensors:
        raise FormatError(f"{origin}: no tensor is in it; the state dict of an SAE is wanted")
    state = _known_names(origin, tensors)
    if missing := [name for name in ("w_enc", "w_dec", "b_enc", "b_dec") if name not in state]:
        raise FormatError(f"{origin}: an SAE needs {missing} beside what is there: {sorted(tensors)[:20]}")
    for name, tensor in state.items():
        if name != "k" and (not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all())):
            raise FormatError(
                f"{origin}: {name} must be finite floating numbers; got {tensor.dtype}, or NaN or infinity"
            )
    k = rule.k if rule.k is not None else int(state["k"]) if "k" in state and state["k"].numel() == 1 else None
    kind = rule.kind or _kind_of(origin, state)
    if rule.apply_b_dec is None:
        raise FormatError(
            f"{origin}: nothing says whether b_dec is subtracted before encoding; give --subtract-b-dec or "
            "--no-subtract-b-dec (apply_b_dec in Python)"
        )
    latents, width = len(state["b_enc"].flatten()), len(state["b_dec"].flatten())
    threshold = state.get("threshold")
    if kind == "jumprelu":
        if threshold is None:
            raise FormatError(f"{origin}: a jumprelu SAE needs a threshold, and none is in the file")
        threshold = threshold.flatten().expand(latents) if threshold.numel() == 1 else threshold
    dtype = state["w_enc"].dtype
    return SAE(
        w_enc=_lying(origin, "encoder", state["w_enc"], (latents, width)),
        b_enc=state["b_enc"].to(dtype),
        w_dec=_lying(origin, "decoder", state["w_dec"], (latents, width)).to(dtype),
        b_dec=state["b_dec"].to(dtype),
        kind=kind,
        k=k if kind in ("topk", "abstopk") else None,
        threshold=threshold.to(dtype).contiguous() if kind == "jumprelu" and threshold is not None else None,
        apply_b_dec=rule.apply_b_dec,
        r_mag=state["r_mag"].to(dtype) if kind == "gated" and "r_mag" in state else None,
        b_mag=state["b_mag"].to(dtype) if kind == "gated" and "b_mag" in state else None,
        flatten_heads="hook_z" in str(rule.metadata.get("hook_name")),
        metadata=dict(rule.metadata),
    )


def _torch_file_in(folder: Path) -> Path | None:
    if not folder.is_dir():
        return None
    found = sorted(path for path in folder.iterdir() if path.suffix in PICKLED)
    if len(found) > 1:
        raise FormatError(f"{folder}: several files, {[path.name for path in found][:10]}; name the one that is meant")
    return found[0] if found else None


def _known_names(origin: object, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by our names; a prefix that all share is taken off, and a tensor that is not known is refused."""
    names = list(tensors)
    while names and all("." in name for name in names) and len({name.split(".")[0] for name in names}) == 1:
        names = [name.partition(".")[2] for name in names]
    plain = dict(zip(names, tensors.values(), strict=True))
    state = {ours: plain[name] for ours, known in _NAMES.items() for name in known if name in plain}
    if "" in plain:
        raise FormatError(f"{origin}: a single tensor; the state dict of an SAE is wanted, a tensor by each name")
    unknown = sorted(set(plain) - {name for known in _NAMES.values() for name in known} - _IGNORED)
    if unknown:
        raise FormatError(f"{origin}: tensors {unknown[:20]} are not known; an SAE has {sorted(_NAMES)}")
    return state


def _kind_of(origin: object, state: Mapping[str, Tensor]) -> Kind:
    if "r_mag" in state and "b_mag" in state:
        return "gated"
    if "threshold" in state and "k" not in state:
        return "jumprelu"
    raise FormatError(
        f"{origin}: the tensors {sorted(state)} fit more than one kind of SAE; say which: --kind standard, "
        "topk (with --k), abstopk or jumprelu"
    )


def _lying(origin: object, name: str, weight: Tensor, wanted: tuple[int, int]) -> Tensor:
    """The weight as [M, D]."""
    if wanted[0] == wanted[1]:
        raise FormatError(f"{origin}: with as many latents as channels ({wanted[0]}) no shape says how {name} lies")
    if tuple(weight.shape) == wanted:
        return weight.contiguous()
    if tuple(weight.shape) == wanted[::-1]:
        return weight.t().contiguous()
    raise FormatError(f"{origin}: {name} must be {list(wanted)}, or that transposed; got {list(weight.shape)}")


def _rule_of(file: Path) -> Rule:
    """What the file's own name, or the config.json beside it, says."""
    beside = file.parent / CONFIG_FILE
    if beside.is_file() and isinstance(trainer := (config := read_json(beside)).get("trainer"), dict):
        return _dictionary_learning(beside, trainer, config.get("buffer"))
    if layer := _QWEN_FILE.fullmatch(file.name):
        return _qwen_scope(file, layer[1])
    if named := _GOODFIRE_FILE.fullmatch(file.name):
        model, hook = f"meta-llama/{named[1]}", f"blocks.{named[2]}.hook_resid_post"
        return Rule("standard", None, False, {"format": "goodfire", "model_name": model, "hook_name": hook})
    return Rule()


def _dictionary_learning(origin: Path, trainer: dict[str, Any], buffer: Any) -> Rule:
    name = str(trainer.get("dict_class"))
    if name not in _CLASSES:
        raise FormatError(f"{origin}: dict_class {name!r} is not supported; supported are {sorted(_CLASSES)}")
    kind, apply_b_dec = _CLASSES[name]
    k = trainer.get("k")
    metadata = {"format": "dictionary_learning", "model_name": trainer.get("lm_name")}
    if hook := _hook_of(origin, trainer):
        metadata["hook_name"] = hook
    if isinstance(buffer, dict) and type(buffer.get("ctx_len")) is int:
        metadata["context_size"] = buffer["ctx_len"]
    target = trainer.get("target_l0")
    if target is not None and (type(target) not in (int, float) or not 0 < target < 1e9):
        raise FormatError(f"{origin}: target_l0 must be a positive number, below a billion; got {target!r:.80}")
    if kind == "jumprelu" and type(k) is int:
        metadata["l0"] = k
    if kind != "topk" and target is not None:
        metadata["l0"] = target
    check_metadata(origin, metadata)
    return Rule(kind, k if type(k) is int and kind == "topk" else None, apply_b_dec, metadata)


def _hook_of(origin: Path, trainer: dict[str, Any]) -> str | None:
    """The place whose activations it was trained on; None where submodule_name leaves it open."""
    name = trainer.get("submodule_name")
    said = _SUBMODULE.fullmatch(name) if isinstance(name, str) else None
    if said is None or ("out" in said[1] and _NORMED.search(str(trainer.get("lm_name")))):
        return None
    layer = int(said[2])
    if type(trainer.get("layer")) is int and trainer["layer"] != layer:
        raise FormatError(f"{origin}: submodule_name {name!r} and layer {trainer['layer']} contradict each other")
    return f"blocks.{layer}.{_SUBMODULES[said[1]]}"


def _qwen_scope(file: Path, layer: str) -> Rule:
    """Qwen-Scope: TopK, b_dec not subtracted; model and k stand in the name of the repository alone."""
    metadata: dict[str, Any] = {
        "format": "qwen_scope",
        "hook_name": f"blocks.{layer}.hook_resid_post",
        "hf_hook_name": f"model.layers.{layer}",
        "context_size": 1024,
    }
    repository = _QWEN_REPOSITORY.search(file.resolve().as_posix())
    if repository is None:
        return Rule("topk", None, False, metadata)
    return Rule("topk", int(repository[3]), False, {**metadata, "model_name": f"Qwen/{repository[1]}"})


def _combine(files: Rule, asked: Rule) -> Rule:
    said = {name: value for name in ("kind", "k", "apply_b_dec") if (value := getattr(asked, name)) is not None}
    return replace(files, **said, metadata={**files.metadata, **asked.metadata})
