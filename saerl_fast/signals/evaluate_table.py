"""The result of `evaluate` as a table in plain text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KINDS = {
    "sae": "SAE features",
    "sae_elasticnet": "SAE features, elastic net",
    "raw": "raw hidden states",
    "tfidf": "TF-IDF",
    "tfidf_latex": "TF-IDF, LaTeX, 1-2-grams",
    "length": "length",
    "majority": "guessing",
}
METRICS = {"accuracy": "accuracy", "spearman": "Spearman", "auc": "AUC"}


def format_table(result: Mapping[str, Any]) -> str:
    """One line per kind of feature, one column per label; the best of each column has a star."""
    details = result["details"]
    columns = [name for name in ("topic", "difficulty", "quality", "topic_nmi") if name in result]
    kinds = [kind for kind in KINDS if any(kind in result[name] for name in columns)]
    head = ["", *(_title(name, details) for name in columns)]
    lines = [head, *([KINDS[kind], *(_cell(result[name], kind) for name in columns)] for kind in kinds)]
    labels = [name for name in columns if name in details]
    for word in ("standard_error", "labelled", "unlabelled", "tested"):
        cells = [str(details[name][word]) + "  " if name in labels else "" for name in columns]
        lines.append([word.replace("_", " "), *cells])
    widths = [max(len(line[place]) for line in lines) for place in range(len(head))]
    text = [
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    ]
    rule = "-" * len(text[0])
    body = [text[0], rule, *text[1 : 1 + len(kinds)], rule, *text[1 + len(kinds) :]]
    title = f"{result['rows']} rows, {details['held_out']} held out (seed {details['seed']}); * best"
    return "\n".join([title, "", *(line.rstrip() for line in body)])


def _title(name: str, details: Mapping[str, Any]) -> str:
    if name == "topic_nmi":
        return "clusters, NMI  "
    return f"{name}, {METRICS[details[name]['metric']]}  "


def _cell(scores: Mapping[str, float], kind: str) -> str:
    if kind not in scores:
        return "-  "
    best = max(scores.values())
    return f"{scores[kind]:.3f}" + (" *" if scores[kind] == best else "  ")
