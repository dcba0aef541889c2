"""The shell road on tiny models: featurize, evaluate, plan, and what each refuses."""

import csv
import gzip
import json

import numpy as np
import pytest
import torch

from saerl_fast.cli import main
from saerl_fast.curriculum import BatchPlan
from saerl_fast.extract.job import Job
from saerl_fast.extract.store import load_features, read_columns
from saerl_fast.formats import save_sae
from saerl_fast.steer import read_signals
from tests import tiny


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model folder, an SAE folder, and a table whose topics and levels the words tell."""
    root = tmp_path_factory.mktemp("world")
    tiny.causal_lm().save_pretrained(root / "model")
    tiny.tokenizer().save_pretrained(root / "model")
    save_sae(tiny.sae(), root / "sae")
    generator = np.random.default_rng(0)
    with gzip.open(root / "data.jsonl.gz", "wt") as file:
        for row in range(160):
            topic = ["trains", "apples"][row % 2]
            words = tiny.WORDS[:10] if row % 2 else tiny.WORDS[10:25]
            level = int(generator.integers(1, 6))
            text = " ".join(generator.choice(words, 12)) + " find" * level
            fields = {
                "id": f"p{row}",
                "problem": text if row else "",
                "topic": topic,
                "level": None if row == 5 else level,
            }
            file.write(json.dumps(fields) + "\n")
    return root


def featurize(world, out, *more):
    options = [
        "--text-field",
        "problem",
        "--model",
        str(world / "model"),
        "--sae",
        str(world / "sae"),
        "--out",
        str(out),
    ]
    return main(["featurize", str(world / "data.jsonl.gz"), *options, *more])


@pytest.fixture(scope="module")
def folder(world):
    assert featurize(world, world / "f", "--keep-hidden", "--shard-rows", "50") == 0
    return world / "f"


def test_featurize_keeps_ids_and_columns(folder, world):
    features = load_features(folder)
    assert features.ids == tuple(f"p{row}" for row in range(160))
    assert features.status_counts() == {"ok": 159, "empty": 1}
    columns = read_columns(folder)
    assert (
        columns[5] == {"id": "p5", "topic": "apples" if 5 % 2 else "trains", "level": None}
        or columns[5]["level"] is None
    )
    assert "problem" not in columns[0]
    source = Job.load(folder).source
    assert source["data"] == str(world / "data.jsonl.gz")
    assert source["text_field"] == "problem"


def test_a_finished_folder_is_read_and_another_job_is_refused(folder, world, capsys):
    before = {path: path.read_bytes() for path in folder.rglob("*.safetensors")}
    assert featurize(world, folder, "--keep-hidden", "--shard-rows", "50") == 0
    assert {path: path.read_bytes() for path in folder.rglob("*.safetensors")} == before
    assert featurize(world, folder, "--keep-hidden", "--shard-rows", "50", "--pool", "max") == 2
    assert "pool: folder 'mean', this run 'max'" in capsys.readouterr().err


def test_evaluate_writes_every_control(folder, world, capsys):
    out = world / "out.json"
    assert main(["evaluate", str(folder), "--topic", "topic", "--difficulty", "level", "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    assert result["rows"] == 160
    for name in ("sae", "raw", "tfidf", "tfidf_latex", "length"):
        assert name in result["topic"]
        assert name in result["difficulty"]
    assert result["topic"]["tfidf"] > 0.95  # the words tell the topic
    assert result["topic"]["majority"] < 0.7
    assert result["difficulty"]["length"] > 0.5  # the level is written on the length
    assert "TF-IDF" in capsys.readouterr().out


def test_evaluate_and_plan_take_some_of_too_many_rows(folder, world, caplog):
    out = world / "some.json"
    words = ["evaluate", str(folder), "--difficulty", "level", "--rows", "120", "--json", str(out)]
    assert main(words) == 0
    result = json.loads(out.read_text())
    assert (result["rows"], result["details"]["rows_in_folder"]) == (120, 160)
    assert result["difficulty"]["length"] > 0.5  # texts, labels and features are of the same rows
    assert "120 of 160 rows are used" in caplog.text
    words = ["plan", str(folder), "--out", str(world / "some-plan"), "--prompts-per-step", "8", "--clusters", "4"]
    assert main([*words, "--difficulty", "level", "--fit-rows", "100"]) == 0
    plan = BatchPlan.load(world / "some-plan")
    assert len(plan.ids) == 160
    assert "fitted on 100 of them" in caplog.text


def test_evaluate_refuses_changed_data_and_missing_columns(folder, world, capsys, tmp_path):
    assert main(["evaluate", str(folder)]) == 2
    assert "at least one column" in capsys.readouterr().err
    assert main(["evaluate", str(folder), "--topic", "subject"]) == 2
    assert "no column 'subject'" in capsys.readouterr().err
    with gzip.open(tmp_path / "other.jsonl.gz", "wt") as file:
        file.write('{"problem": "x"}\n' * 160)
    assert main(["evaluate", str(folder), "--topic", "topic", "--data", str(tmp_path / "other.jsonl.gz")]) == 2
    assert "SHA-256 differs" in capsys.readouterr().err


@pytest.mark.parametrize("policy", ["saerl", "default", "stratified", "easy_to_hard", "random"])
def test_plan_writes_a_plan(folder, world, policy):
    out = world / f"plan-{policy}"
    words = ["plan", str(folder), "--out", str(out), "--prompts-per-step", "8", "--clusters", "4", "--policy", policy]
    assert main([*words, "--difficulty", "level", "--epochs", "2"]) == 0
    plan = BatchPlan.load(out)
    assert plan.prompts_per_step == 8
    assert plan.epochs == 2
    assert "p0" not in [row for step in plan for row in np.asarray(step.ids).tolist()]  # the empty text


def test_plan_takes_pass_rates_of_saerl_label(folder, world, capsys):
    labels = world / "labels.jsonl"
    rows = [
        {"id": f"p{row}", "pass_rate": row % 9 / 8, "correct": row % 9, "rollouts": 8, "mean_score": row % 9 / 8}
        for row in range(1, 80)
    ]
    labels.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["plan", str(folder), "--prompts-per-step", "8", "--clusters", "4", "--labels", str(labels)]
    assert main([*words, "--out", str(world / "plan-labels")]) == 0
    assert BatchPlan.load(world / "plan-labels").difficulty is not None
    signals = read_signals(world / "plan-labels" / "signals.json")
    assert signals["labelled"] == {"difficulty": 79}
    assert (signals["features"], signals["filtered"]) == ("../f", False)
    assert signals["held_out"]["difficulty"]["metric"] == "spearman"
    assert main([*words, "--out", str(world / "never"), "--difficulty", "level"]) == 2
    assert "give one of them" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("t.jsonl", lambda path, rows: path.write_text("".join(json.dumps(row) + "\n" for row in rows))),
        ("t.csv", lambda path, rows: _write_csv(path, rows)),
        ("t.parquet", lambda path, rows: _write_parquet(path, rows)),
    ],
)
def test_every_kind_of_table(name, write, tmp_path):
    from saerl_fast.extract.inputs import read_table

    rows = [{"id": "a", "text": 'x, "y"\nz'}, {"id": "b", "text": "ü"}]
    write(tmp_path / name, rows)
    assert read_table(str(tmp_path / name)) == rows


def _write_csv(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "text"])
        writer.writeheader()
        writer.writerows(rows)


def _write_parquet(path, rows):
    pytest.importorskip("pyarrow")
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", '{"a": 1}\n{"a": \n', "line 2: not JSON"),
        ("t.jsonl", "[1]\n", "line 1: a JSON object is wanted"),
        ("t.jsonl", "\n", "no rows"),
        ("t.txt", "x", "is wanted; got .txt"),
    ],
)
def test_bad_tables_are_named(name, content, message, tmp_path):
    from saerl_fast.errors import SaerlError
    from saerl_fast.extract.inputs import read_table

    (tmp_path / name).write_text(content)
    with pytest.raises(SaerlError, match=message):
        read_table(str(tmp_path / name))


def test_broken_files_are_named(tmp_path):
    from saerl_fast.errors import FormatError
    from saerl_fast.extract.inputs import read_table

    whole = gzip.compress(b'{"text": "a"}\n' * 1000)
    broken = {
        "cut.jsonl.gz": whole[: len(whole) // 2],
        "latin.jsonl": '{"text": "ü"}'.encode("latin-1"),
        "latin.csv": "id,text\n1,ü\n".encode("latin-1"),
        "huge.csv": b"id,text\n1," + b"x" * 200_000 + b"\n",
        "not.parquet": b"PAR1 or not",
    }
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FormatError, match=name):
            read_table(str(tmp_path / name))


def test_a_spreadsheets_csv_and_rows_without_the_field(tmp_path, world):
    from saerl_fast.extract.inputs import read_table

    (tmp_path / "bom.csv").write_bytes(b"\xef\xbb\xbfproblem,level\nfind ten,1\n")
    assert read_table(str(tmp_path / "bom.csv")) == [{"problem": "find ten", "level": "1"}]
    (tmp_path / "gaps.jsonl").write_text('{"level": 1}\n{"problem": "find ten"}\n')
    words = ["featurize", str(tmp_path / "gaps.jsonl"), "--text-field", "problem", "--model", str(world / "model")]
    assert main([*words, "--sae", str(world / "sae"), "--out", str(tmp_path / "f")]) == 0
    assert load_features(tmp_path / "f").status == ("empty", "ok")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--shard-rows", "0"], "shard_rows must be a whole number from 1 up; got 0"),
        (["--device", "foo"], "device must be a torch.device, or a string that torch knows"),
        (["--model", "/nowhere/at/all"], "no such folder"),
        (["--text-field", "nothing"], "has no column 'nothing'; it has"),
        (["--out", __file__], "is a file; a folder is wanted"),
        (["--layer", "9"], "layer 9 is out of range"),
        (["--sae", "/nowhere"], "no such folder"),
    ],
)
def test_what_a_user_gets_wrong_is_named_and_writes_nothing(world, tmp_path, capsys, changed, message):
    assert featurize(world, tmp_path / "f", *changed) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "f" / "shards").exists()


def test_changed_labels_are_another_job(world, tmp_path, capsys):
    data = tmp_path / "d.jsonl"
    words = ["featurize", str(data), "--text-field", "problem", "--model", str(world / "model")]
    words += ["--sae", str(world / "sae"), "--out", str(tmp_path / "f")]
    data.write_text('{"problem": "find ten", "level": 1}\n')
    assert main(words) == 0
    data.write_text('{"problem": "find ten", "level": 2}\n')
    assert main(words) == 2
    assert "columns: folder has other content" in capsys.readouterr().err


def test_a_plan_without_ids_tells_its_dataset_by_content(world, tmp_path):
    datasets = pytest.importorskip("datasets")
    from saerl_fast.errors import PlanError

    rows = [{"problem": None if n == 3 else text} for n, text in enumerate(tiny.texts(24))]
    data = tmp_path / "d.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["featurize", str(data), "--text-field", "problem", "--model", str(world / "model")]
    assert main([*words, "--sae", str(world / "sae"), "--out", str(tmp_path / "f")]) == 0
    plan = ["plan", str(tmp_path / "f"), "--out", str(tmp_path / "p"), "--prompts-per-step", "4", "--clusters", "2"]
    assert main(plan) == 0
    whole = datasets.Dataset.from_list(rows)
    assert len(BatchPlan.load(tmp_path / "p").apply(whole)) == 24  # 23 texts, one of them twice to fill the last batch
    with pytest.raises(PlanError, match="not the one the plan was made from"):
        BatchPlan.load(tmp_path / "p").apply(whole.shuffle(seed=1))


def test_ids_that_do_not_name_every_row_once(caplog):
    from saerl_fast.extract.inputs import choose_ids

    assert choose_ids([{"id": "a"}, {"id": "b"}]) == (["a", "b"], "id")
    assert choose_ids([{"id": "a"}, {"id": "a"}]) == ([0, 1], None)
    assert "does not name every row once" in caplog.text
    assert choose_ids([{}, {}]) == ([0, 1], None)


def test_featurize_says_what_screening_did():
    from saerl_fast.cli.featurize import screened_since
    from saerl_fast.kernels import int8_product
    from saerl_fast.ops import screening_counts
    from tests.kernels.int8_cases import encode, zipf_encoder

    before = screening_counts()
    assert screened_since(before) is None
    if int8_product.missing():
        pytest.skip(str(int8_product.missing()))
    arguments = zipf_encoder(5, 64, 600)
    arguments["x"][3] = torch.inf
    encode(arguments, 4)
    assert screened_since(before) == "screening: 5 token rows encoded, 1 of them scored whole"
