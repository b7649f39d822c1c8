"""The LaTeX tables compile: with several arms, with names that TeX would trip over."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from safebench.analysis import runs
from safebench.analysis.compare import compare
from safebench.report.table import render
from tests.support.synthetic import collapsing, healthy, write_run

pytestmark = pytest.mark.tex

DOCUMENT = r"""
\documentclass{article}
\usepackage{booktabs}
\begin{document}
\scriptsize
\input{table}
\end{document}
"""


@pytest.mark.parametrize(
    ("second", "third"), [("safe", None), ("safe@stress-noise", "a_b%c#d$e&f~g^h{i}\\j"), ("[0.1]", "é ± ×")]
)
def test_the_table_compiles(tmp_path: Path, second: str, third: str | None) -> None:
    write_run(tmp_path, "ppo", 0, collapsing(0))
    write_run(tmp_path, "ppo", 1, collapsing(1), state="unstable")
    for seed in range(2):
        write_run(tmp_path, "safe", seed, healthy(seed))
    found = {arm: [run for run in runs.find(tmp_path) if run.experiment == arm] for arm in ("ppo", "safe")}
    groups = {"ppo": found["ppo"], second: found["safe"]} | ({third: found["safe"]} if third else {})
    (tmp_path / "table.tex").write_text(render(compare(groups), "latex"), encoding="utf-8")
    (tmp_path / "document.tex").write_text(DOCUMENT, encoding="utf-8")
    pdflatex = shutil.which("pdflatex")
    assert pdflatex, "no pdflatex here: `make test-extra` says what to install"
    command = [pdflatex, "-interaction=nonstopmode", "-halt-on-error", "document.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, errors="replace")
    assert done.returncode == 0, done.stdout[-3000:]
    assert (tmp_path / "document.pdf").read_bytes().startswith(b"%PDF")
