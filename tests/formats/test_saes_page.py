"""The table of docs/saes.md is made here: a cell is checked when a file of that format was read as that kind just now."""

from pathlib import Path

from saerl_fast.formats import load_sae, save_sae
from saerl_fast.formats.convert import convert
from tests import tiny
from tests.formats import test_golden as golden

PAGE = Path(__file__).parents[2] / "docs" / "saes.md"
KINDS = ("standard", "topk", "abstopk", "jumprelu", "gated", "transcoders")


def of_sae_lens(home):
    made = [tiny.sae(kind) for kind in KINDS[:-1]]
    made += [tiny.transcoder(), tiny.transcoder("jumprelu", w_skip=tiny.transcoder().w_dec.new_zeros(24, 32))]
    for number, sae in enumerate(made):
        save_sae(sae, home / str(number))
        yield load_sae(home / str(number))


def of_sae_lens_before_6(home):
    for case in ("standard", "topk-as-activation", "jumprelu", "gated"):
        golden.old_folder(home / case, golden.OLD[case])
        yield load_sae(home / case)


def of_sparsify(home):
    for transcode in (False, True):
        golden.sparsify_folder(home / str(transcode) / "layers.1", transcode=transcode)
        yield load_sae(home / str(transcode) / "layers.1")


def of_gemma_scope(home):
    for part in ("res", "transcoders"):
        folder = home / f"gemma-scope-2b-pt-{part}" / "layer_1"
        golden.gemma_folder(folder)
        yield load_sae(folder)


def of_llama_scope(home):
    golden.llama_folder(home / "sae")
    yield load_sae(home / "sae")


def of_qwen_scope(home):
    sae = tiny.sae()
    state = {"W_enc": sae.w_enc, "W_dec": sae.w_dec.t().contiguous(), "b_enc": sae.b_enc, "b_dec": sae.b_dec}
    golden.torch.save(state, home / "layer3.sae.pt")
    yield convert(home / "layer3.sae.pt", home / "out", k=8)


def of_dictionary_learning(home):
    for name in golden.DICTIONARIES:
        golden.dictionary_folder(home / name, name)
        yield convert(home / name, home / f"{name}-out")


FORMATS = {
    "sae-lens 6": (of_sae_lens, "`load_sae`", "sae-lens"),
    "sae-lens before 6.0": (of_sae_lens_before_6, "`load_sae`", "sae-lens"),
    "EleutherAI sparsify": (of_sparsify, "`load_sae`", "formula; sparsify where installed"),
    "Gemma Scope (npz)": (of_gemma_scope, "`load_sae`", "formula, sae-lens's loader"),
    "Llama Scope": (of_llama_scope, "`load_sae`", "formula"),
    "Qwen-Scope (.pt)": (of_qwen_scope, "`saerl convert`", "formula"),
    "dictionary_learning (.pt)": (of_dictionary_learning, "`saerl convert`", "formula; the library where installed"),
}


def test_the_table_is_what_was_read(tmp_path):
    lines = [
        "| format | by | " + " | ".join(KINDS) + " | encode compared with |",
        "|---|---|" + "---|" * (len(KINDS) + 1),
    ]
    for name, (make, door, owner) in FORMATS.items():
        home = tmp_path / name.replace(" ", "_")
        home.mkdir()
        read = {"transcoders" if sae.transcoder else sae.kind for sae in make(home)}
        cells = ["✓" if kind in read else "–" for kind in KINDS]
        lines.append(f"| {name} | {door} | " + " | ".join(cells) + f" | {owner} |")
    table = "\n".join(lines)
    assert table in PAGE.read_text(encoding="utf-8"), f"docs/saes.md must hold:\n{table}"
