"""saerl featurize: prompts and completions from a table, another hook, long texts; and the texts read again."""

import json
import warnings

import numpy as np
import pytest

import saerl_fast
from saerl_fast.cli import main
from saerl_fast.errors import MismatchWarning
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
    assert found.provenance["hook"] == "blocks.1.hook_mlp_out"
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


@pytest.mark.filterwarnings("ignore::saerl_fast.errors.MismatchWarning")
def test_dtype_and_device_map_from_the_command_line_and_a_config(home, tmp_path, capsys):
    assert main(words(home, "plain", "--dtype", "bfloat16", "--device", "cpu")) == 0
    wanted = load_features(home / "plain")
    assert wanted.provenance["model_dtype"] == "bfloat16"
    everything = '{"": "cpu"}'
    assert main(words(home, "mapped", "--dtype", "bfloat16", "--device-map", everything)) == 0
    config = tmp_path / "run.yaml"
    config.write_text(
        "dtype: bfloat16\ndevice-map:\n  embed_tokens: cpu\n  layers: cpu\n  norm: cpu\n  rotary_emb: cpu\n"
    )
    assert main(words(home, "by-config", "--config", str(config))) == 0
    for name in ("mapped", "by-config"):
        found = load_features(home / name)
        assert found.provenance["model_dtype"] == "bfloat16"
        np.testing.assert_array_equal(found.values, wanted.values)
    (home / "by-config" / "shards" / "00000.safetensors").unlink()
    assert main(["repair", str(home / "by-config")]) == 0
    np.testing.assert_array_equal(load_features(home / "by-config").values, wanted.values)
    capsys.readouterr()
    assert main(words(home, "h", "--device", "cpu", "--device-map", "auto")) == 2
    assert "both say where the model goes" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(words(home, "h", "--device-map", "{layers: cpu}"))
    assert "not a JSON object" in capsys.readouterr().err
    assert not (home / "h").exists()


def test_a_warning_is_one_line_in_the_shell(home, capsys, monkeypatch):
    def warn(args):
        # as the interpreter shows it; under pytest a real one is kept for its own summary
        print(warnings.formatwarning(MismatchWarning("another layer"), MismatchWarning, "featurizer.py", 120))
        return 0

    monkeypatch.setattr("saerl_fast.cli.featurize.run", warn)
    before = warnings.formatwarning
    assert main(words(home, "warned")) == 0
    assert capsys.readouterr().out.strip() == "saerl: MismatchWarning: another layer"
    assert warnings.formatwarning is before
