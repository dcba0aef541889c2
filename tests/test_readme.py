"""The README's Python runs as it stands, on a tiny model and a tiny table in place of the named ones."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from saerl_fast.formats import save_sae
from tests import tiny

ROOT = Path(__file__).parent.parent


def test_the_ten_lines_run(tmp_path, monkeypatch):
    pytest.importorskip("trl")
    monkeypatch.chdir(tmp_path)
    tiny.causal_lm().save_pretrained("model")
    tiny.tokenizer().save_pretrained("model")
    save_sae(tiny.sae(), "sae")
    rows = [{"id": f"p{n}", "problem": text, "level": n % 5 + 1} for n, text in enumerate(tiny.texts(64))]
    Path("problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code = re.search(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.DOTALL | re.MULTILINE)[1]
    for written, here in {"Qwen/Qwen2.5-1.5B": "model", "path/to/sae": "sae"}.items():
        assert written in code
        code = code.replace(written, here)
    code = code.replace("num_generations=8)", "num_generations=8, use_cpu=True, bf16=False, output_dir='out')")
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["train_dataset"]["id"][:] == [f"p{n}" for n in np.asarray(names["plan"].order)]
    assert names["config"].shuffle_dataset is False
    # the plan tells another dataset by its ids, and finds its rows in any order
    shuffled = names["data"].shuffle(seed=1)
    assert names["plan"].apply(shuffled, id_column="id")["id"][:] == names["train_dataset"]["id"][:]


def test_links_lead_somewhere():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_the_picture_of_a_plan(tmp_path):
    pytest.importorskip("matplotlib")
    import runpy

    from saerl_fast import make_plan

    generator = np.random.default_rng(0)
    plan = make_plan(
        list(range(100)), clusters=generator.integers(0, 4, 100), difficulty=generator.random(100), prompts_per_step=10
    )
    draw = runpy.run_path(str(ROOT / "examples" / "plan_picture.py"))["draw"]
    draw(plan, str(tmp_path / "plan.svg"))
    assert (tmp_path / "plan.svg").read_text().startswith("<?xml")
