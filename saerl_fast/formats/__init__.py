"""Reading and writing other people's files: an SAE from a folder, and nothing from a pickle."""

from saerl_fast.formats.load import as_sae, load_sae
from saerl_fast.formats.sae_lens import save_sae
from saerl_fast.formats.safetensors_file import read_tensors

__all__ = ["as_sae", "load_sae", "read_tensors", "save_sae"]
