"""The code in docs/plan.md runs as it stands."""

import re
from pathlib import Path

from tests.rl.conftest import SMALL, tiny_model, tiny_tokenizer

PAGE = Path(__file__).parents[2] / "docs" / "plan.md"


def test_the_page_runs(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == 5
    monkeypatch.chdir(tmp_path)
    names = {"model": tiny_model(), "tokenizer": tiny_tokenizer(), "settings": SMALL}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    printed = capsys.readouterr().out
    promised = re.search(r"print\(plan\) +# (.*)", PAGE.read_text())[1]
    assert promised in printed
    assert names["trainer"].state.global_step == names["plan"].steps
    assert (tmp_path / "ordered.parquet").is_file()
