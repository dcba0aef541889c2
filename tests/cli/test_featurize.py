"""saerl featurize: prompts and completions from a table, another hook, long texts; and the texts read again."""

import json

import numpy as np
import pytest

import saerl_fast
from saerl_fast.cli import main
from saerl_fast.extract.source import as_text, read_texts_again
from saerl_fast.extract.store import load_features
from saerl_fast.formats import save_sae
from tests import families, tiny

ROWS = [
    {"id": "a", "q": "find the sum of ", "a": "ten apples", "level": 1},
    {"id": "b", "q": "solve for x ", "a": " ".join(tiny.WORDS * 2), "level": 2},
    {"id": "c", "q": "a train ", "a": None, "level": 3},
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    families.model("llama").save_pretrained(home / "model")
    tiny.tokenizer().save_pretrained(home / "model")
    save_sae(tiny.sae(), home / "sae")
    (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return home


def words(home, out, *more):
    data = [str(home / "rows.jsonl"), "--text-field", "q", "--model", str(home / "model"), "--sae", str(home / "sae")]
    return ["featurize", *data, "--out", str(home / out), *more]


@pytest.mark.filterwarnings("ignore::saerl_fast.errors.MismatchWarning")
def test_completions_in_windows_at_another_hook(home):
    more = [
        "--completion-field",
        "a",
        "--pool-over",
        "completion",
        "--hook",
        "model.layers.1.mlp",
        "--max-length",
        "20",
    ]
    assert main(words(home, "f", *more, "--long-texts", "window", "--window-stride", "12", "--skip-first", "1")) == 0
    found = load_features(home / "f")
    assert found.ids == ("a", "b", "c")
    assert found.status == ("ok", "windowed", "empty")
    wanted = saerl_fast.featurize(
        [{"prompt": row["q"], "completion": row["a"]} for row in ROWS],
        families.model("llama"),
        tiny.sae(),
        tokenizer=tiny.tokenizer(),
        hook="blocks.1.hook_mlp_out",
        pool_over="completion",
        max_length=20,
        long_texts="window",
        window_stride=12,
        skip_first=1,
        progress=False,
    )
    np.testing.assert_array_equal(found.values, wanted.values)
    assert found.provenance["hook"] == "layers.1.mlp.output"
    texts = read_texts_again(home / "f", None, 3)
    assert [as_text(text) for text in texts] == [
        f"{ROWS[0]['q']}\nten apples",
        f"{ROWS[1]['q']}\n{ROWS[1]['a']}",
        "a train ",
    ]


def test_columns_that_are_not_there_and_texts_that_are_too_long(home, capsys):
    assert main(words(home, "g", "--completion-field", "answer")) != 0
    assert "has no column 'answer'" in capsys.readouterr().err
    assert main(words(home, "g", "--completion-field", "a", "--max-length", "20", "--long-texts", "error")) != 0
    assert "1 of 3 texts have more than 20 tokens (ids b with" in capsys.readouterr().err
    assert not (home / "g").exists()
