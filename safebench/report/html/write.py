"""Writes the HTML page: figures as JSON, text through the template, style and script inlined once."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from safebench.analysis import frontier as frontiers
from safebench.analysis.claims import Ledger
from safebench.analysis.compare import Comparison
from safebench.analysis.frontier import Frontier
from safebench.crashes.detect import SCALES
from safebench.errors import MissingResource
from safebench.report import cells
from safebench.report.html import data, words
from safebench.report.html.data import (
    DIGITS,
    curves,
    drawn,
    fits_table,
    matched_table,
    rules,
    samples,
    timeline,
    to_script,
)

INSTALL = "pip install plotly"


def plotly_source() -> str:
    """Return plotly.min.js as text, about 4.8 MB. Raises ``MissingResource`` if plotly is not installed."""
    try:
        from plotly.offline import get_plotlyjs
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "plotly":
            raise
        raise MissingResource(
            "the HTML report draws its charts with plotly, which is not installed here", f"Install it: {INSTALL}"
        ) from error
    return str(get_plotlyjs())


ASSETS = resources.files("safebench.report.html") / "assets"
SCRIPTS = ("theme.js", "charts.js", "curves.js", "frontier.js", "timeline.js", "samples.js", "main.js")
"""Parts of the page's own script in the order of their dependencies; they form one script element."""


def write_report(
    comparison: Comparison,
    path: Path | str,
    *,
    ledger: Ledger | None = None,
    frontier: Frontier | None = None,
    steps: Sequence[int] | None = None,
) -> Path:
    """Write the comparison as one HTML file that loads no other file, and return its path.

    ``ledger`` holds the claims to show; without it, the section says that there are none. ``frontier`` is computed
    from the comparison's runs by default, with best of n if a record lies beside them. ``steps`` are the evaluation
    points whose replies are shown (default: up to eight, evenly spaced). The same input gives the same bytes.
    Raises ``MissingResource`` if plotly is not installed.
    """
    library, path = plotly_source(), Path(path)
    groups = {arm: [summary.run for summary in comparison.summaries[arm]] for arm in comparison.arms}
    found = frontier or frontiers.frontier(groups, baseline=comparison.baseline)
    script = "\n".join((ASSETS / name).read_text(encoding="utf-8") for name in SCRIPTS)
    page = _template().render(
        **_context(comparison, found, ledger),
        policy=_policy(library, script),
        style=(ASSETS / "page.css").read_text(encoding="utf-8"),
        data=to_script(_figures(comparison, found, steps)),
        library=library,
        script=script,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8", newline="\n")
    return path


def _figures(comparison: Comparison, found: Frontier, steps: Sequence[int] | None) -> dict[str, Any]:
    """Return the data that the script draws."""
    return {
        "arms": list(comparison.arms),
        "runs": {
            arm: {str(s.run.seed): {"status": s.run.status, "last": s.run.last_step} for s in comparison.summaries[arm]}
            for arm in comparison.arms
        },
        "curves": curves(comparison),
        "frontier": drawn(found),
        "timeline": timeline(comparison),
        "samples": samples(comparison, steps),
    }


def _context(comparison: Comparison, found: Frontier, ledger: Ledger | None) -> dict[str, Any]:
    """Return the values that the template shows."""
    planned = max(summary.run.planned_steps for found in comparison.summaries.values() for summary in found)
    return {
        "title": words.title(comparison),
        "headline": words.headline(comparison),
        "verdict": words.verdict(comparison),
        "cards": words.cards(comparison),
        "comparison": comparison,
        "header": cells.headings(comparison, comparison.arms),
        "lines": [(row, cells.line(comparison, row, comparison.arms)) for row in comparison.rows],
        "tests": cells.tests(comparison),
        "digits": DIGITS,
        "frontier": found,
        "matched": matched_table(found, comparison),
        "fits": fits_table(found),
        "crashes": cells.crashes_by_seed(comparison),
        "settings": words.settings(comparison),
        "ledger": ledger,
        "claims": data.claim_rows(ledger) if ledger is not None else (),
        "scales": [f"{scale:g}" for scale in SCALES],
        "rules": rules(comparison.spec, planned),
        "planned": planned,
        "runs": words.run_lines(comparison),
        "versions": words.versions(comparison),
    }


def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"plain": _plain, "code": _code}
    return environment.from_string((ASSETS / "page.html").read_text(encoding="utf-8"))


def _plain(value: Any) -> str:
    """Return a setting as text."""
    if isinstance(value, Mapping) and not value:
        return "none"
    return "none" if value is None else str(value)


def _code(text: str) -> Any:
    """Return text as escaped markup, with the parts between backticks as code."""
    from markupsafe import Markup, escape

    parts = (f"<code>{escape(part)}</code>" if at % 2 else str(escape(part)) for at, part in enumerate(text.split("`")))
    return Markup("".join(parts))


def _policy(*scripts: str) -> str:
    """Return the page's Content-Security-Policy: nothing is loaded, and only these scripts run.

    Inline style is allowed because plotly positions and styles its drawing with style attributes and a style element
    of its own. Images are allowed because plotly turns a chart into one when it is saved as a file.
    """
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
