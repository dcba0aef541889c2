"""One self-contained HTML page about a run: what its stations have left in a folder, claims beside their controls.

::

    find       which pieces lie where            clusters, scores, difficulty, quality, training, sources:
    read       the pieces, checked               one section each, as plain data
    pictures   charts, as inline SVG             page: all of it through the templates into one file
"""

from saerl_fast.report.page import write_report

__all__ = ["write_report"]
