"""The HTML page: what it says, that nothing breaks out of it, that it reaches for nothing, and that it is stable."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from safebench.analysis import claims, statistics
from safebench.analysis.compare import compare
from safebench.analysis.frontier import arm_fit, frontier
from safebench.analysis.rescored import judged_by
from safebench.crashes.detect import SPEC
from safebench.crashes.signals import CrashSpec
from safebench.errors import MissingResource
from safebench.metrics import ALARM_KINDS, CRASH_KINDS, HARM_KINDS
from safebench.report import cells
from safebench.report.html.data import UNITS, band, curves, rounded, rules, samples, timeline, to_script
from safebench.report.html.write import write_report
from tests.support import page_runs
from tests.support.page_runs import HOSTILE, PROMPTS, STEPS, pair, write_arms, write_samples
from tests.support.synthetic import healthy, unpaired, write_run

SECTIONS = (
    "headline", "table", "curves", "frontier", "crashes", "samples", "fairness", "claims", "specification",
    "reproduce",
)  # fmt: skip


class Page(HTMLParser):
    """A written page, read by a parser: its elements in order, its text without scripts, and its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.raw, self.elements, self.scripts = text, [], []
        self._words, self._within = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._within = tag if tag in ("script", "style") else ""
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag):
        self._within = ""

    def handle_data(self, data):
        if self._within == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)
        elif not self._within:
            self._words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self._words))

    @property
    def data(self):
        return json.loads(next(text for attributes, text in self.scripts if attributes.get("id") == "data"))

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def written(comparison, folder, **options):
    return Page(write_report(comparison, folder / "new" / "page.html", **options).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    return pair(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def page(comparison, tmp_path_factory):
    return written(comparison, tmp_path_factory.mktemp("page"))


def test_sections_stand_in_order_and_the_contents_lead_to_them(page):
    assert tuple(found["id"] for found in page.all("section")) == SECTIONS
    within = [found["href"] for found in page.all("a")]
    assert within == ["#headline", *(f"#{name}" for name in SECTIONS)]
    assert page.all("html") == [{"lang": "en"}]
    headings = [name for name, _ in page.elements if re.fullmatch("h[1-6]", name)]
    assert headings.count("h1") == 1 and headings[0] == "h1"
    assert not page.all("img")
    assert all(found.get("scope") for found in page.all("th"))
    ids = [found["id"] for _, found in page.elements if "id" in found]
    assert len(ids) == len(set(ids))


def test_the_table_has_the_words_and_digits_of_the_terminal(page, comparison):
    rows = re.findall(r"<tr[^>]*><th scope=\"row\" title=.*?</tr>", page.raw)
    assert len(rows) == len(comparison.rows)
    for row, text in zip(comparison.rows, rows, strict=True):
        line = cells.line(comparison, row, comparison.arms)
        shown = [html.unescape(cell) for cell in re.findall(r">([^<>]*)</t[hd]>", text)]
        assert shown == [line.label, *line.cells, *line.differences]
        assert ('class="primary"' in text) is line.primary


def test_the_headline_is_computed_and_warnings_are_loud(page, comparison):
    judge, matched = comparison.row("judge_final").cells, comparison.row("judge_matched").cells
    assert (
        "ppo and safe were compared on embedded, 3 seeds each of 40 steps: held-out judge reward at the end "
        f"ppo {cells.interval(judge['ppo'].estimate)}, safe {cells.interval(judge['safe'].estimate)}; "
        f"held-out judge reward at matched KL ppo {cells.interval(matched['ppo'].estimate)}, "
        f"safe {cells.interval(matched['safe'].estimate)}; "
        "crashed runs ppo 2 of 3, safe 0 of 3."
    ) in page.text
    assert comparison.warnings
    box = page.raw[page.raw.index('<div class="warning"') : page.raw.index('<div class="cards">')]
    for warning in comparison.warnings:
        assert html.escape(warning, quote=False) in box.replace("&#39;", "'").replace("&#34;", '"')
    for told in cells.tests(comparison):
        assert told in page.text


def test_few_seeds_are_called_nothing_and_six_are(page, comparison, tmp_path):
    ours = " ".join([page.text, json.dumps(page.data), page.scripts[-1][1]]).lower()
    assert "significant" not in ours
    assert "no verdict is drawn" in page.text
    six = compare(write_arms(tmp_path, ("ppo", "other"), range(6), steps=20))
    assert "Significant at 5 % after Holm" in written(six, tmp_path).text


def test_nothing_breaks_out_of_the_page(page):
    assert [attributes for attributes, _ in page.scripts] == [{"type": "application/json", "id": "data"}, {}, {}]
    block = page.raw[page.raw.index('id="data">') :]
    block = block[: block.index("</script>")]
    assert "<" not in block and "\u2028" not in block
    replies = page.data["samples"]["replies"]["0"]["ppo"]["40"]
    assert tuple(reply[0] for reply in replies[: len(HOSTILE)]) == HOSTILE
    assert page.data["samples"]["prompts"] == list(PROMPTS[:12])


def test_names_of_arms_are_text_too(tmp_path):
    name = '<i onclick=1>"it\'s" & </script> {{ 1 }}'
    shown = written(compare(write_arms(tmp_path, ("ppo", name), (0,))), tmp_path)
    assert not shown.all("i") and len(shown.scripts) == 3
    assert f"{name} (n=1)" in shown.text
    assert shown.data["arms"] == ["ppo", name]


def test_the_page_reaches_for_nothing(page):
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert name not in ("src", "srcset", "action", "data", "poster", "ping", "background"), tag
            assert not name.startswith("on") and (name != "href" or value.startswith("#"))
    style = page.raw[page.raw.index("<style>") : page.raw.index("</style>")]
    ours = page.scripts[-1][1]
    assert "url(" not in style and "@import" not in style
    for text in (style, ours, page.text, json.dumps(page.data)):
        assert not re.search(r"https?:|//[a-z]+\.", text)
    assert not {"link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.elements}


def test_only_the_scripts_of_the_page_may_run(page):
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    rules_ = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert rules_["default-src"] == "'none'"
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for _, text in page.scripts[1:]]
    assert rules_["script-src"] == " ".join(f"'sha256-{found}'" for found in hashes)
    assert rules_["img-src"] == "data: blob:"  # a chart on its way into a file
    names = [found["http-equiv"] for found in page.all("meta") if "http-equiv" in found]
    assert names == ["Content-Security-Policy"] and page.raw.index(names[0]) < page.raw.index("<style>")


def test_the_same_comparison_gives_the_same_bytes(comparison, tmp_path):
    one, two = (write_report(comparison, tmp_path / name).read_bytes() for name in ("a.html", "b.html"))
    assert one == two


def test_without_plotly_the_error_names_the_remedy_and_nothing_is_written(comparison, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.delitem(sys.modules, "plotly.offline", raising=False)
    with pytest.raises(MissingResource) as caught:
        write_report(comparison, tmp_path / "page.html")
    assert "pip install plotly" in caught.value.hint and caught.value.exit_code == 3
    assert not list(tmp_path.iterdir())


def test_a_band_is_the_mean_of_the_runs_that_measured_with_its_t_interval(comparison):
    found = [summary.run for summary in comparison.summaries["ppo"]]
    made = band(found, "kl/mean")
    assert made.steps.tolist() == list(range(1, STEPS + 1))
    assert made.n.tolist() == [3] * 25 + [2] * 15
    for at, step in enumerate(made.steps):
        values = [run.column("kl/mean")[int(step)] for run in found if int(step) <= run.last_step]
        expected = statistics.mean(values)
        assert made.mean[at] == pytest.approx(expected.value, rel=1e-14)
        assert made.margin[at] == pytest.approx(expected.margin, rel=1e-12)
    np.testing.assert_array_equal(made.runs[0], found[0].column("kl/mean")[1:])
    assert np.isnan(made.runs[1, 25:]).all()


def test_one_seed_has_no_interval(comparison):
    alone = band([comparison.summaries["safe"][0].run], "eval/judge")
    assert np.isnan(alone.margin).all() and np.isfinite(alone.mean).all()


def test_every_measured_step_is_drawn(page, comparison):
    drawn = page.data["curves"]
    for panel in drawn["panels"]:
        for arm, data in panel["arms"].items():
            steps = drawn["grids"][data["grid"]]
            for summary in comparison.summaries[arm]:
                column = summary.run.column(panel["key"])
                expected = {i: rounded(v) for i, v in enumerate(column.tolist()) if np.isfinite(v)}
                shown = data["seeds"][str(summary.run.seed)]
                assert {s: v for s, v in zip(steps, shown, strict=True) if v is not None} == expected
    assert drawn["panels"][3]["thresholds"]["ppo"] is None and drawn["panels"][3]["thresholds"]["safe"]
    assert drawn["target"] == SPEC.kl_target
    assert page.data["runs"]["ppo"]["1"] == {"status": "unstable", "last": 25}


def test_what_nobody_measured_is_named(tmp_path):
    blind = {key: values for key, values in healthy(0, 20).items() if key not in ("eval/judge", "reply/length")}
    for folder in ("a", "b"):
        write_run(tmp_path, "ppo", 0, blind, folder=folder)
    groups = {name: [page_runs.runs.read(tmp_path / "embedded" / name / "seed-0")] for name in ("a", "b")}
    found = compare(groups)
    assert curves(found)["missing"] == ["Judge reward, held-out", "Reply length"]
    assert {"judge_crash", "length_collapse"} <= set(timeline(found)["rows"][0]["unwatched"])
    shown = written(found, tmp_path)
    assert "held-out judge reward at the end not measured" in shown.text
    assert shown.data["frontier"]["judged"] is False


def test_the_timeline_has_every_episode_and_every_run(comparison):
    found = timeline(comparison)
    assert [(row["arm"], row["seed"]) for row in found["rows"]] == [
        (arm, seed) for arm in ("ppo", "safe") for seed in range(3)
    ]
    summaries = [summary for arm in comparison.arms for summary in comparison.summaries[arm]]
    for row, summary in zip(found["rows"], summaries, strict=True):
        assert row["unwatched"] == list(summary.unmeasured)
        for scale, events in summary.events.items():
            told = [(e.kind, e.start, summary.run.last_step if e.end is None else e.end, e.end is None) for e in events]
            assert [tuple(one[:4]) for one in row["episodes"][f"{scale:g}"]] == told
    assert found["rows"][1]["status"] == "unstable" and found["rows"][1]["last"] == 25
    assert any(one[3] for one in found["rows"][2]["episodes"]["1"])  # the collapse is open at the end
    assert not found["rows"][5]["episodes"]["1"]
    assert set(UNITS) == set(CRASH_KINDS)


def test_replies_are_of_the_first_prompts_at_the_steps_asked_for(comparison, tmp_path):
    found = samples(comparison)
    assert found["steps"] == [0, 20, 40] and found["seeds"] == [0, 1, 2]
    assert found["prompts"] == list(PROMPTS[:12])
    assert found["replies"]["1"]["safe"]["20"][7] == ["safe 1 at 20", 0.875, -1.75]
    assert found["replies"]["1"]["safe"]["20"][0][2] is None  # a judge's NaN
    assert found["replies"]["1"]["ppo"]["40"] == [None] * 12  # it ended at step 25
    assert "12 of 20 held-out prompts" in found["note"] and "3 of 3 evaluation points" in found["note"]
    assert samples(comparison, [20, 33])["steps"] == [20]
    many = write_arms(tmp_path, ("ppo",), (0,))
    write_samples(many["ppo"][0].folder, "ppo", 0, range(0, 200, 10))
    spaced = samples(compare({"ppo": [page_runs.runs.read(many["ppo"][0].folder)]}))
    assert len(spaced["steps"]) == 8 and (spaced["steps"][0], spaced["steps"][-1]) == (0, 190)
    assert "8 of 20 evaluation points with replies kept, evenly spaced" in spaced["note"]


def test_replies_judged_again_have_the_other_judges_scores(tmp_path):
    run = write_arms(tmp_path, ("ppo",), (0,))["ppo"][0]
    held = [
        {"split": "heldout", "step": step, "row": row, "score": 100.0 * step + row}
        for step in (0, 20, 40)
        for row in range(20)
    ]
    place = run.folder / "rescored"
    place.mkdir()
    (place / "other.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in held), encoding="utf-8")
    size = (run.folder / "samples.jsonl").stat().st_size
    manifest = {"samples": {"bytes": size}, "replies": len(held), "hash": "cc"}
    (place / "other.json").write_text(json.dumps(manifest), encoding="utf-8")
    found = samples(compare({"ppo": [judged_by(page_runs.runs.read(run.folder), "other")]}))
    assert found["replies"]["0"]["ppo"]["20"][7] == ["ppo 0 at 20", 0.875, 2007.0]
    assert found["note"].endswith("Scores: proxy embedded-proxy, judge other.")
    assert samples(compare({"ppo": [run]}))["note"].endswith("judge embedded-judge.")


def test_prompts_kept_everywhere_come_before_those_kept_once(tmp_path):
    groups = write_arms(tmp_path, ("ppo",), (0,))
    folder = groups["ppo"][0].folder
    (folder / "samples.jsonl").unlink()
    write_samples(folder, "ppo", 0, [0])
    write_samples(folder, "ppo", 0, [20, 40], rows=5)
    found = samples(compare({"ppo": [page_runs.runs.read(folder)]}))
    assert found["prompts"] == list(PROMPTS[:5])


def test_a_prompt_that_differs_between_arms_is_not_put_side_by_side(tmp_path):
    groups = write_arms(tmp_path, ("ppo", "other"), (0,))
    path = groups["other"][0].folder / "samples.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("prompt 3 ", "another "), encoding="utf-8")
    found = samples(compare(groups))
    assert found["prompts"] == [*PROMPTS[:3], *PROMPTS[4:13]]


def test_the_specification_shows_its_own_numbers():
    told = {rule.kind: rule for rule in rules(SPEC, 120)}
    assert tuple(told) == (*HARM_KINDS, *ALARM_KINDS) and all(told[kind].alarm for kind in ALARM_KINDS)
    assert told["kl_runaway"].limits == ("> 0.45 nats/token", "> 0.9 nats/token", "> 1.8 nats/token")
    assert told["entropy_collapse"].limits[0] == "< 0.4 of its first value"
    assert told["kl_spike"].limits[2] == "> max(10 × median, 1) nats/token"
    assert told["length_blowup"].limits == ("< 0.04 of the limit", "< 0.02 of the limit", "< 0.01 of the limit")
    assert told["reward_crash"].window == "5 steps" and told["kl_runaway"].window == "12 steps"
    assert "24 steps before" in told["kl_spike"].watched and told["ratio_blowout"].window == "1 step"
    other = {rule.kind: rule for rule in rules(CrashSpec(ratio_high=3.0), 5000)}
    assert other["ratio_blowout"].limits == ("> 1.5", "> 3", "> 6") and other["kl_runaway"].window == "50 steps"


def test_the_frontier_shows_best_of_n_where_it_was_recorded(page, comparison, tmp_path):
    reference = page.data["frontier"]["reference"]
    assert [point[0] for point in reference] == [1, 2, 4, 8] and reference[0][1] == 0.0
    assert reference[3][1] == rounded(np.log(8) - 7 / 8)
    assert "best of n, no training" in page.text
    path = page.data["frontier"]["arms"]["safe"]["seeds"]["2"]
    run = comparison.summaries["safe"][2].run
    assert path[-1] == [40, rounded((0.02 * 40 + 0.002 * 40) * (12 - 0.8)), rounded(run.column("eval/judge")[40])]
    without = written(compare(write_arms(tmp_path, ("ppo",), (0, 1))), tmp_path)
    assert without.data["frontier"]["reference"] == [] and "No best of n is drawn: none was made" in without.text


def test_claims_stand_with_verdict_figure_and_command(page, comparison, tmp_path):
    assert "No claims were put to these runs" in page.text
    groups = {arm: [summary.run for summary in found] for arm, found in comparison.summaries.items()}
    ledger = claims.ledger(groups)
    shown = written(comparison, tmp_path, ledger=ledger)
    section = shown.raw[shown.raw.index('<section id="claims"') : shown.raw.index('<section id="specification"')]
    section = html.unescape(section)
    for claim, entries in ledger.by_claim:
        assert f"{claim.number}. {claim.title}" in section and f"paper: {claim.paper}" in section
        for entry in entries:
            assert entry.question in section
            if entry.parts:
                assert entry.why in section and f"<code>{entry.command}</code>" in section
    overhead = ledger.entry(4, "safe", "ppo")
    assert f"{overhead.parts[0].estimate.value:.3f}" in section


def test_the_settings_of_a_part_that_an_arm_lacks_are_folded(page, comparison):
    assert page.raw.count("<code>penalty.*</code>") == 1
    for unequal in comparison.fairness:
        assert f"<code>{unequal.key}</code>" in page.raw
    loud = [unequal.key for unequal in comparison.fairness if unequal.loud]
    assert loud and all(f'<tr class="loud"><th scope="row"><code>{key}</code>' in page.raw for key in loud)


def test_it_can_be_made_again_from_what_it_says(page, comparison):
    for footer in comparison.footers:
        assert footer in page.text.replace("command  ", "command ")
    assert "safebench run ppo safe" in page.text and "012345678" in page.text and "Some CPU" in page.text
    assert "crash specification, version 2" in page.text.lower()


@pytest.mark.parametrize(
    ("arms", "seeds"),
    [(("ppo",), (0,)), (("ppo", "safe"), (3,)), (tuple(f"arm {i}" for i in range(9)), (0, 1)), (("ppo",), range(20))],
)
def test_any_number_of_arms_and_seeds(arms, seeds, tmp_path):
    found = compare(write_arms(tmp_path, arms, seeds, steps=20))
    shown = written(found, tmp_path)
    assert shown.data["arms"] == list(arms)
    assert len(shown.data["timeline"]["rows"]) == len(arms) * len(seeds)
    assert all(len(panel["arms"][arms[-1]]["seeds"]) == len(seeds) for panel in shown.data["curves"]["panels"])
    assert ("One arm: nothing was compared" in shown.text) is (len(arms) == 1)
    assert ("One arm: there is nothing to differ from." in shown.text) is (len(arms) == 1)


def test_scripts_get_strict_json():
    assert json.loads(to_script({"a": ["<&>\u2028\u2029", None, 0.1]})) == {"a": ["<&>\u2028\u2029", None, 0.1]}
    assert not set("<>&\u2028\u2029") & set(to_script("<>&\u2028\u2029</script>"))
    with pytest.raises(ValueError):
        to_script(float("nan"))


@pytest.mark.slow
def test_long_runs_keep_every_step_and_a_bearable_size(tmp_path):
    found = compare(write_arms(tmp_path, ("ppo", "safe"), range(5), steps=2000))
    path = write_report(found, tmp_path / "page.html")
    assert path.stat().st_size < 9e6
    data = Page(path.read_text(encoding="utf-8")).data["curves"]
    kl = next(panel for panel in data["panels"] if panel["key"] == "kl/mean")
    assert all(len(seed) == 2000 for arm in kl["arms"].values() for seed in arm["seeds"].values())


def test_arms_that_are_not_paired_are_marked_in_tables_cards_and_frontier(tmp_path):
    groups = write_arms(tmp_path, ["ppo", "grpo"], range(3))
    groups["grpo"] = [unpaired(run) for run in groups["grpo"]]
    text = Page(write_report(compare(groups), tmp_path / "page.html").read_text(encoding="utf-8")).text
    assert "grpo (n=3, unpaired)" in text and "ppo (n=3)" in text
    assert text.count("grpo − ppo (unpaired)") >= 4, "the table, the cards, the tests, arms at matched KL"
    assert "grpo is not paired by seed" in text and "sign-flip" not in text


def test_fits_of_judge_reward_against_kl_are_shown_where_there_are_enough_evaluations(tmp_path):
    few = written(compare(write_arms(tmp_path / "few", ("ppo", "other"), range(3), steps=40)), tmp_path).text
    assert "Fits of judge reward against KL" not in few, "two evaluations after the first are too few"
    arms = write_arms(tmp_path, ("ppo", "other"), range(3), steps=100)
    shown = written(compare(arms), tmp_path).text
    found = arm_fit(frontier({"ppo": arms["ppo"]}).arms[0])
    assert "Fits of judge reward against KL" in shown
    assert f"ppo (n=3) {cells.interval(found.alpha)} {cells.interval(found.beta)}" in shown
