"""The road on real input: real problems, real models, a real SAE (``make test-real REAL=DIR``)."""

import json
import warnings

import numpy as np
import pytest

from saerl_fast.cli import main
from saerl_fast.curriculum import BatchPlan
from saerl_fast.extract.store import load_features
from tests import tiny

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def math_folder(real, minilm, tmp_path_factory):
    """Features of all 7,474 MATH training problems."""
    out = tmp_path_factory.mktemp("math") / "f"
    words = ["featurize", str(real / "data" / "math_train.jsonl.gz"), "--text-field", "problem", "--model", minilm]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the SAE's own model: no mismatch to warn of
        assert (
            main([*words, "--sae", str(real / "models" / "minilm-l4-topk32-4096"), "--keep-hidden", "--out", str(out)])
            == 0
        )
    return out


@pytest.fixture(scope="module")
def evaluation(math_folder):
    out = math_folder.parent / "out.json"
    assert (
        main(["evaluate", str(math_folder), "--topic", "subject", "--difficulty", "difficulty", "--json", str(out)])
        == 0
    )
    return json.loads(out.read_text())


def test_features_of_the_math_problems(math_folder):
    features = load_features(math_folder)
    assert features.shape == (7474, 4096)
    assert features.status_counts() == {"ok": 7008, "truncated": 466}
    assert features.hidden.shape == (7474, 384)
    # mean-pooled rows of a k = 32 SAE hold about a fifth of its latents
    assert 800 < features.nnz / len(features) < 950


def test_sae_features_reach_their_marks_above_raw_states_and_length(evaluation):
    topic, difficulty = evaluation["topic"], evaluation["difficulty"]
    assert evaluation["rows"] == 7474
    assert topic["sae"] >= 0.74
    assert difficulty["sae"] >= 0.59
    assert topic["sae"] > topic["raw"]
    assert topic["sae"] > topic["length"]
    assert difficulty["sae"] > difficulty["raw"]
    assert difficulty["sae"] > difficulty["length"]
    assert {"tfidf", "tfidf_latex", "majority"} <= set(topic)


def test_a_plan_on_them_and_its_dataset_in_grpo_order(math_folder, real):
    datasets = pytest.importorskip("datasets")
    out = math_folder.parent / "plan"
    words = ["plan", str(math_folder), "--out", str(out), "--prompts-per-step", "64", "--policy", "saerl"]
    assert main([*words, "--difficulty", "difficulty"]) == 0
    plan = BatchPlan.load(out)
    data = datasets.load_dataset("json", data_files=str(real / "data" / "math_train.jsonl.gz"), split="train")
    ordered = plan.apply(data, id_column="id")
    assert ordered["id"] == [str(i) for i in np.asarray(plan.ids)[plan.order]]
    # one cluster at a time: outside the swapped tails a batch is of one cluster
    shares = [np.unique(step.clusters, return_counts=True)[1].max() / 64 for step in plan]
    assert np.mean(shares) > 0.7
    # easy to hard inside a cluster: later steps of a cluster are harder
    assert np.corrcoef([step.number for step in plan], [step.difficulty.mean() for step in plan])[0, 1] > 0.5


def test_the_plan_on_them_is_the_order_a_grpo_run_sees(math_folder, real, tmp_path):
    """Real problems, a real (tiny) policy, a real trainer: the first steps of the plan as the reward sees them."""
    pytest.importorskip("trl")
    import datasets
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    words = ["plan", str(math_folder), "--out", str(tmp_path / "plan"), "--prompts-per-step", "4"]
    assert main(words) == 0
    plan = BatchPlan.load(tmp_path / "plan")
    data = datasets.load_dataset("json", data_files=str(real / "data" / "math_train.jsonl.gz"), split="train")
    ordered = plan.apply(data.rename_column("problem", "prompt"), id_column="id")
    settings = plan.grpo_args(num_generations=2, per_device_train_batch_size=8)
    config = GRPOConfig(
        output_dir=str(tmp_path / "out"), max_steps=3, max_completion_length=4, use_cpu=True, bf16=False, **settings
    )
    plan.check(config)
    seen = []

    def reward(completions, id, **columns):
        seen.append(id[::2])
        return [float(len(completion)) for completion in completions]

    model = AutoModelForCausalLM.from_pretrained(real / "models" / "stories260K", dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(real / "models" / "stories260K")
    tokenizer.pad_token = tokenizer.eos_token
    GRPOTrainer(model, reward_funcs=reward, args=config, train_dataset=ordered, processing_class=tokenizer).train()
    assert seen[:3] == [np.asarray(plan.step(number).ids).tolist() for number in range(3)]


def test_the_same_road_on_a_causal_lm_with_a_random_sae(real, tmp_path):
    from saerl_fast.formats import save_sae

    save_sae(tiny.sae(d_in=64, d_sae=256, metadata={"hook_name": "blocks.2.hook_resid_post"}), tmp_path / "sae")
    model = str(real / "models" / "stories260K")
    words = ["featurize", str(real / "data" / "svamp.jsonl.gz"), "--text-field", "problem", "--model", model]
    assert main([*words, "--sae", str(tmp_path / "sae"), "--keep-hidden", "--out", str(tmp_path / "f")]) == 0
    out = tmp_path / "out.json"
    assert main(["evaluate", str(tmp_path / "f"), "--topic", "subject", "--json", str(out)]) == 0
    found = json.loads(out.read_text())["topic"]
    assert found["sae"] > found["majority"]
    assert main(["plan", str(tmp_path / "f"), "--out", str(tmp_path / "p"), "--prompts-per-step", "16"]) == 0
    assert len(BatchPlan.load(tmp_path / "p")) >= 1000
