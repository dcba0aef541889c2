"""SAEs by name out of sae-lens's registry, through sae-lens itself: what no reader here knows, it may."""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from saerl_fast.errors import FormatError, MissingDependency, UnsafeFileError
from saerl_fast.formats import llama_scope, sparsify
from saerl_fast.formats.sae_lens import build_sae
from saerl_fast.sae import SAE

logger = logging.getLogger(__name__)

# formats that are read here from the files themselves: of sae-lens's own loaders one fails on real files, and the other
# leaves a setting out. Loader -> its reader, the files that it needs, and where a file that may be there lies
_READ_HERE: dict[str, tuple[Callable[[Path], SAE], tuple[str, ...], str]] = {
    "sparsify": (sparsify.read_folder, (sparsify.CONFIG_FILE, sparsify.WEIGHTS_FILE), "config.json"),
    "llama_scope": (llama_scope.read_folder, (llama_scope.CONFIG_FILE, llama_scope.WEIGHTS_FILE), ""),
}
# loaders of sae-lens that read JSON, YAML, safetensors and npz; its others hand a .pt file to torch.load
_READS_NO_PICKLE = frozenset(
    {
        "sae_lens", "gemma_2", "gemma_3", "gemma_2_transcoder", "llama_scope_r1_distill", "mwhanna_transcoder",
         "mntss_clt_layer_transcoder", "temporal",
    }
)  # fmt: skip


def load(name: str) -> SAE:
    """The SAE "release/sae_id" of the registry, downloaded by sae-lens where it is not in its cache.

    Raises FormatError where there is no such folder and no such release, UnsafeFileError where sae-lens would
    unpickle a file for it, MissingDependency where sae-lens is not installed.
    """
    release, _, sae_id = name.partition("/")
    if not sae_id or not re.fullmatch(r"[A-Za-z0-9][\w.\-]*", release):
        raise FormatError(f"{name}: no such folder; the folder of an SAE is wanted, or RELEASE/SAE_ID of sae-lens")
    found = importlib.util.find_spec("sae_lens")
    if found is None or not found.submodule_search_locations:
        raise MissingDependency(
            f"{name}: no such folder. If it is a release of sae-lens: pip install 'saerl-fast[sae-lens]'"
        )
    # a look into the list of names, since importing sae-lens to find a misspelt path takes many seconds
    listed = Path(found.submodule_search_locations[0], "pretrained_saes.yaml").read_text(encoding="utf-8")
    if not re.search(rf"^{re.escape(release)}:", listed, re.MULTILINE):
        raise FormatError(f"{name}: no such folder, and {release!r} is no release of the installed sae-lens")
    return _load(release, sae_id)


def from_sae_lens(loaded: Any) -> SAE:
    """The SAE that an inference object of sae-lens holds; its weights are shared where their layout allows."""
    origin = f"{type(loaded).__name__} of sae-lens"
    config = dict(loaded.cfg.to_dict())
    config["metadata"] = {key: value for key, value in dict(config.get("metadata") or {}).items() if value is not None}
    tensors = {name: tensor.detach() for name, tensor in loaded.state_dict().items()}
    return build_sae(origin, config, tensors)


def _load(release: str, sae_id: str) -> SAE:
    from sae_lens import SAE as SaeLensSAE
    from sae_lens.loading.pretrained_sae_loaders import get_conversion_loader_name
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    known = get_pretrained_saes_directory()[release]
    if sae_id not in known.saes_map:
        some = ", ".join(list(known.saes_map)[:5])
        raise FormatError(f"{release} has no SAE {sae_id!r}; it has {len(known.saes_map)}, such as {some}")
    loader = get_conversion_loader_name(release)
    if loader not in _READS_NO_PICKLE and loader not in _READ_HERE:
        raise UnsafeFileError(
            f"{release}/{sae_id} is published as a pickle, which sae-lens would load ({loader}). Fetch "
            f"{known.saes_map[sae_id]} of {known.repo_id} yourself, and `saerl convert` it"
        )
    if loader in _READ_HERE:
        sae = _read_here(loader, known.repo_id, known.saes_map[sae_id])
    else:
        sae = from_sae_lens(SaeLensSAE.from_pretrained(release, sae_id, device="cpu"))
    l0 = known.expected_l0.get(sae_id)
    return replace(sae, metadata={"l0": float(l0), **sae.metadata}) if l0 else sae


def _read_here(loader: str, repository: str, folder: str) -> SAE:
    """The SAE in a folder of a repository of the hub, by our own reader; what is in the hub's cache is not fetched."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    read, files, beside = _READ_HERE[loader]
    for name in files:
        found = Path(hf_hub_download(repository, f"{folder}/{name}"))
    if beside:
        parent = folder.rpartition("/")[0]
        try:
            hf_hub_download(repository, f"{parent}/{beside}".lstrip("/"))
        except EntryNotFoundError:
            logger.warning("%s has no %s in %r: model and context size are not known", repository, beside, parent)
    # the files lie as in the repository
    return read(found.parents[files[-1].count("/")])
