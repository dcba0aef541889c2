"""Options from YAML: defaults under the command line, unknown keys refused."""

import pytest

from saerl_fast.cli import build_parser, main
from saerl_fast.cli.config import apply_config
from saerl_fast.errors import FormatError, InputError


def parse(*words):
    parser, commands = build_parser()
    apply_config(words, commands)
    return parser.parse_args(list(words))


@pytest.fixture
def config(tmp_path):
    def write(text):
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_yaml_gives_options_and_the_command_line_wins(config):
    path = config("data: x.jsonl\ntext-field: problem\nmodel: m\nsae: s\nout: o\nlayer: 3\nkeep-hidden: true\n")
    found = parse("featurize", "--config", path, "--layer", "5")
    assert (found.data, found.text_field, found.layer, found.keep_hidden) == ("x.jsonl", "problem", 5, True)
    assert parse("featurize", "--config", path).layer == 3
    assert parse("featurize", "other.jsonl", "--config", path).data == "other.jsonl"


def test_a_number_for_a_word_is_that_word(config):
    assert parse("featurize", "--config", config("data: d\ntext-field: 3\nmodel: m\nsae: s\nout: 7\n")).out == "7"


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("nonsense: 1\n", InputError, r"unknown keys \['nonsense'\] for `saerl featurize`; known are"),
        ("pool: median\n", InputError, "pool must be one of"),
        ("layer: deep\n", InputError, "layer: 'deep' is not acceptable"),
        ("layer: 2024-01-01\n", InputError, "layer: .* is not acceptable"),
        ("keep-hidden: 3\n", InputError, "keep_hidden must be true or false"),
        ("- a\n", FormatError, "a mapping of options"),
        ("out: 2024-01-02\n", InputError, "out must be a word or a number; got datetime"),
        ("model: [a]\n", InputError, "model must be a word or a number"),
        ("text-field: {a: b}\n", InputError, "text_field must be a word or a number"),
        ("hook: true\n", InputError, "hook must be a word or a number"),
        ("a: [\n", FormatError, "not YAML"),
        ("a: 2024-13-45\n", FormatError, "not YAML"),
        ("a: !!int ''\n", FormatError, "not YAML"),
        ("a: !!timestamp x\n", FormatError, "not YAML"),
        (f"a: {'9' * 5000}\n", FormatError, "not YAML"),
        (f"a: {'[' * 5000}\n", FormatError, "not YAML"),
        ("!!python/object/apply:os.system ['true']\n", FormatError, "not YAML"),
    ],
)
def test_bad_yaml_is_named(config, text, error, message):
    with pytest.raises(error, match=message):
        parse("featurize", "--config", config(text))


def test_a_missing_config_is_named(tmp_path):
    with pytest.raises(FormatError, match="no such config file"):
        parse("env", "--config", str(tmp_path / "absent.yaml"))


def test_errors_are_one_line_and_exit_code_2(tmp_path, capsys):
    code = main(
        ["featurize", str(tmp_path / "no.jsonl"), "--text-field", "t", "--model", "m", "--sae", "s", "--out", "o"]
    )
    assert code == 2
    assert "FormatError" in capsys.readouterr().err


def test_a_grpo_setting_that_is_no_yaml_is_named(capsys):
    for text in ("2024-13-45", "[", "!!int ''"):
        with pytest.raises(SystemExit):
            parse("train", "--grpo", f"beta={text}")
        assert "beta: not YAML" in capsys.readouterr().err


def test_a_config_without_its_file_is_told_by_the_name_of_the_command(capsys):
    for words in (["featurize", "--config"], ["--config"]):
        with pytest.raises(SystemExit):
            main(words)
        told = capsys.readouterr().err
        assert told.startswith(f"usage: saerl {words[0] if words[1:] else 'COMMAND'} ")
        assert "expected one argument" in told


def test_columns_of_a_config_may_be_a_list(config):
    for text in ("eval-by: [topic, level]\n", 'eval-by: "[\\"topic\\", \\"level\\"]"\n'):
        assert parse("train", "--config", config("model: m\ndata: d\nout: o\n" + text)).eval_by == ["topic", "level"]


def test_a_list_of_folders_stays_a_list(config):
    assert parse("merge", "all", "--config", config("parts: [a, b]\n")).parts == ["a", "b"]
