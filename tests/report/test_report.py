import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from make_run import STAGES, make_run
from PIL import Image as PILImage

from segsmith.files import png_bytes, write_atomic
from segsmith.memory.ledger import DecisionRow, GuidanceRow, ModelRow, RunSummary, VerdictRow
from segsmith.report import cards, charts, sheets, statistics, thumbnails
from segsmith.report.report import build_report

HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>{{7*7}}<!--"


class Page(HTMLParser):
    """Counts elements, keeps attributes, text, styles and the bodies of scripts."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.elements, self.attributes, self.scripts, self.text, self._open = {}, [], [], "", None
        self.style, self.data = "", {}
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements[tag] = self.elements.get(tag, 0) + 1
        self.attributes += [(tag, *a) for a in attrs]
        self._open = tag
        if tag == "script":
            self._id = dict(attrs).get("id")
            if dict(attrs).get("type"):
                self.data[self._id] = ""
            else:
                self.scripts.append("")

    def handle_endtag(self, tag):
        self._open = None

    def handle_data(self, data):
        if self._open == "script" and self._id:
            self.data[self._id] += data
        elif self._open == "script":
            self.scripts[-1] += data
        elif self._open == "style":
            self.style += data
        else:
            self.text += data

    def load(self, name):
        return json.loads(self.data[name], parse_constant=lambda word: pytest.fail(word))


def build(root, **options):
    run, ledger, config = make_run(root, size=64, prompts_per_class=3, **options)
    html = build_report(run, ledger, config).read_text("utf-8")
    book = statistics.read_book(ledger)
    ledger.close()
    return html, book, run, config


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return build(tmp_path_factory.mktemp("whole"), classes=("cat", "dog", "potted plant"))


def test_page_needs_nothing_but_itself(whole):
    page = Page(whole[0])
    for tag, name, value in page.attributes:
        if name == "src":
            assert value.startswith("data:image/"), tag
        if name == "href":
            assert value.startswith("#")
        assert not name.startswith("on")
        assert name != "style"
    assert len(page.scripts) == 1
    assert "link" not in page.elements
    assert not re.search(r"https?:|//[a-z]|url\(|@import", page.style)


def test_page_tells_what_the_ledger_holds(whole):
    html, book, _, config = whole
    text = re.sub(r"\s+", " ", Page(html).text)
    assert f"{len(book.masks)} pictures with masks, 3 classes" in text
    for word in (
        "potted plant",
        "Given up: no image was accepted in several rounds",
        "8 min 32 s",
        "segsmith build --classes",
        "mIoU, test world",
    ):
        assert word in text
    assert f"{book.evaluation['test_set'].miou:.3f}" in text
    assert set(Page(html).load("prompt-table")["text"]) == {p.text for p in book.prompts.values()}
    assert set(Page(html).load("index")["id"]) == set(book.verdicts)
    for word in (
        "65452 in, 11750 out",
        "0.28 US dollars",
        "SmolLM2-135M",
        "Apache-2.0",
        "no cartoons",
        "a tail",
    ):
        assert word in text
    assert re.search(r"Energy\s*unknown", text)
    assert f"per_class = {config.per_class}" in text
    assert "Not there yet" not in text


def test_policy_allows_exactly_the_script_and_the_style_in_the_page(whole):
    page = Page(whole[0])
    policy = next(v for t, n, v in page.attributes if t == "meta" and n == "content" and "script-src" in v)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    for rule, text in (("script-src", page.scripts[0]), ("style-src", page.style)):
        assert rules[rule] == f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"


def test_hostile_names_and_texts_stay_text(tmp_path):
    calm, *_ = build(tmp_path / "calm", classes=("cat", "dog"))
    names = (f"cat{HOSTILE}", f"dog{HOSTILE}")
    run, ledger, config = make_run(
        tmp_path / "hostile",
        classes=names,
        size=64,
        prompts_per_class=3,
        text="a {cls} " + HOSTILE.replace("{", "{{").replace("}", "}}"),
    )
    rejected = next(i for i, v in ledger.verdicts().items() if not v.accepted)
    ledger.add_verdicts([VerdictRow(rejected, False, HOSTILE, {"probability": 0.1})])
    ledger.versions = {HOSTILE: HOSTILE}
    ledger.summary = RunSummary(command=HOSTILE)
    ledger.add_decision(DecisionRow("verdict", rejected, "accept", note=HOSTILE))
    ledger.add_guidance(GuidanceRow(names[0], HOSTILE, {}))
    ledger.add_models([ModelRow("llm", HOSTILE, HOSTILE, HOSTILE)])
    html = build_report(run, ledger, config).read_text("utf-8")
    ledger.close()
    page = Page(html)
    assert set(page.elements) == set(Page(calm).elements)
    assert page.elements["script"] == html.lower().count("</script") == Page(calm).elements["script"]
    assert page.style.count("}") == Page(calm).style.count("}")
    assert not [a for a in page.attributes if a[1].startswith("on")]
    assert all(HOSTILE in text for text in page.load("prompt-table")["text"])
    assert HOSTILE.replace("_", " ") in page.load("index")["reasons"]
    assert HOSTILE in page.text
    assert set(page.elements) & {"iframe", "object", "embed"} == set()


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_that_stopped_early_says_so(tmp_path, stage):
    html, *_ = build(tmp_path, classes=("cat", "dog"), stage=stage)
    text = Page(html).text
    gaps = text.count("Not there yet")
    assert (gaps == 0) == (stage == "all")
    if stage == "empty":
        assert "Nothing made yet" in text
        assert gaps >= 6
    if stage == "drawn":
        assert "accepted pictures, no masks yet" in text


def test_no_classes_and_no_events_is_still_a_page(tmp_path):
    html, *_ = build(tmp_path, classes=(), stage="empty")
    assert "Nothing made yet" in html


def test_lost_and_damaged_files_are_shown_as_such(tmp_path):
    run, ledger, config = make_run(tmp_path, classes=("cat",), size=64, prompts_per_class=3)
    for path in run.images.glob("*.png"):
        path.unlink()
    for path in run.masks.glob("*.png"):
        write_atomic(path, b"not a picture")
    run.config.unlink()
    html = build_report(run, ledger, config).read_text("utf-8")
    ledger.close()
    assert "picture file missing" in html
    assert "per_class" in html


def test_numbers_that_are_not_finite_do_not_break_the_page(tmp_path):
    run, ledger, config = make_run(tmp_path, classes=("cat",), size=64, prompts_per_class=2)
    for image_id, verdict in ledger.verdicts().items():
        ledger.add_verdicts(
            [
                VerdictRow(
                    image_id,
                    verdict.accepted,
                    verdict.reason,
                    {"probability": math.nan, "sharpness": math.inf},
                )
            ]
        )
    ledger.log("epoch", epoch=21, loss=math.nan, val_miou=None)
    html = build_report(run, ledger, config).read_text("utf-8")
    ledger.close()
    assert not re.search(r"\b(nan|inf)\b", Page(html).text.lower())
    page = Page(html)
    assert [page.load(name) for name in page.data]


def test_pictures_beyond_the_first_look_are_inert_text(whole):
    html, book, _, _ = whole
    page = Page(html)
    shown = page.elements["img"]
    assert shown <= 2 * cards.STRIP + cards.ACCEPTED + cards.REJECTED + 3 * cards.TEST
    rows = [row for name in page.data if name.startswith("sheet-") for row in page.load(name)["rows"]]
    assert len(rows) == len(book.verdicts)
    assert html.index('id="sheet-0"') > html.index("</main>")


def test_more_pictures_than_the_cap_are_sampled_and_said(tmp_path, monkeypatch):
    monkeypatch.setattr(sheets.fill_shelf, "__defaults__", ((), 30))
    html, book, *_ = build(tmp_path, classes=("a", "b", "c", "d", "e", "f"))
    page = Page(html)
    assert len(book.verdicts) > 30
    assert len(page.load("index")["id"]) == 30
    assert f"30 of {len(book.verdicts)} judged pictures are in this page" in re.sub(r"\s+", " ", page.text)


def test_funnel_and_class_rows_add_up(whole):
    _, book, _, config = whole
    drawn, accepted, labelled, masked = statistics.image_funnel(book)
    assert drawn.count >= accepted.count >= labelled.count >= masked.count > 0
    assert sum(n for *_, n in statistics.reject_reasons(book)) == drawn.count - accepted.count
    rows = statistics.class_rows(book, config)
    assert [row.name for row in rows] == list(config.classes)
    assert sum(row.accepted for row in rows) == accepted.count
    assert sum(row.drawn for row in rows) == drawn.count
    share = sum(m.pixels.get("cat", 0) for m in book.masks.values()) / (len(book.masks) * 64**2)
    assert rows[0].pixels == pytest.approx(share)


def test_a_gap_that_was_filled_later_is_not_told(whole):
    _, book, _, config = whole
    rows = statistics.class_rows(book, config)
    ((row, _),) = statistics.gaps(rows, book)
    assert row.name == config.classes[-1]
    assert (
        statistics.gaps(statistics.class_rows(book, config.model_copy(update={"per_class": 1})), book) == []
    )


def test_label_change_compares_relabelling_with_clip(whole):
    _, book, _, _ = whole
    for image_id, row in book.labels["relabel"].items():
        _, added, removed = statistics.label_change(book, image_id)
        before = set(book.labels["clip"][image_id].classes)
        assert (before | set(added)) - set(removed) == set(row.classes)
        assert set(added).isdisjoint(before)


def test_overlay_is_transparent_on_background_hatched_on_unknown_and_named(tmp_path):
    mask = np.zeros((40, 60), np.uint8)
    mask[20:30, 10:30] = 2
    mask[:10, 40:] = 255
    write_atomic(tmp_path / "m.png", png_bytes(mask))
    found = thumbnails.overlay(tmp_path / "m.png", ("cat", "dog"))
    import io

    rgba = np.asarray(PILImage.open(io.BytesIO(base64.b64decode(found.uri.split(",")[1]))).convert("RGBA"))
    assert (rgba[mask == 0][:, 3] == 0).all()
    assert (rgba[mask == 2][:, 3] == 255).all()
    assert "#{:02x}{:02x}{:02x}".format(*tuple(rgba[25, 20, :3])) == thumbnails.class_colour(2)
    assert 0.3 < (rgba[mask == 255][:, 3] > 0).mean() < 0.7
    (tag,) = found.tags
    assert tag.name == "dog"
    assert abs(tag.x - 100 * 20 / 60) < 2
    assert tag.y < 50


def test_class_colours_differ():
    assert len({thumbnails.class_colour(i) for i in range(1, 81)}) == 80
    assert all(re.fullmatch("#[0-9a-f]{6}", thumbnails.class_colour(i)) for i in range(1, 255))


def test_spread_takes_turns():
    assert thumbnails.spread(["a1", "a2", "a3", "b1", "c1", "c2"], lambda s: s[0], 5) == [
        "a1",
        "b1",
        "c1",
        "a2",
        "c2",
    ]
    assert thumbnails.spread([], str, 3) == []


def test_histogram_draws_every_value_and_the_threshold():
    assert sum(charts.bin_counts([0, 0.5, 0.999, 1, 1.2, -0.1])) == 6
    assert charts.bin_counts([1.0])[-1] == 1
    svg = charts.histogram([0.9, 0.91, 0.2], [0.1], 0.75, '<b a="')
    assert 'x1="180.0"' in svg
    assert svg.count('class="good"') == 2
    assert svg.count('class="bad"') == 1
    assert "<b" not in svg
    assert "3 accepted and 1 rejected" in svg
    assert "threshold" not in charts.histogram([], [], None, "cat")


@pytest.mark.parametrize("points", [[], [(1, 0.5)], [(1, 0.0), (2, 0.0)], [(1, -1.0), (2, 3e5)]])
def test_line_chart_takes_any_curve(points):
    svg = charts.line_chart(points, "loss")
    numbers = re.findall(r' (?:x|y|x1|y1|cx|cy)="([^"]+)"', svg)
    assert all(-1 <= float(n) <= 500 for n in numbers)
    assert ("polyline" in svg) == bool(points)


def test_report_command_opens_the_page_when_asked(tmp_path, monkeypatch, capsys):
    import sys
    import webbrowser

    from segsmith import cli

    run, ledger, _ = make_run(tmp_path / "run", classes=("cat", "dog"), size=64, prompts_per_class=2)
    ledger.close()
    opened = []
    monkeypatch.setattr(webbrowser, "open", lambda url: opened.append(url))
    for flags in ([], ["--open"]):
        monkeypatch.setattr(sys, "argv", ["segsmith", "report", str(run.root), *flags])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert not stop.value.code
    assert opened == [run.report.as_uri()]
    assert "no web browser" in capsys.readouterr().err  # the stand-in opens none


def test_names_on_a_mask_stay_inside_and_off_each_other():
    from segsmith.report.thumbnails import TAG_HEIGHT, TAG_WIDTH, name_tags

    mask = np.zeros((60, 60), np.uint8)
    for index in range(1, 5):
        mask[0:20, 10 * index : 10 * index + 6] = index
    mask[40:60, 50:60] = 5
    tags = name_tags(mask, ["cat", "dog", "horse", "chair", "boat"])
    assert [tag.name for tag in tags] == ["cat", "dog", "horse", "chair", "boat"]
    assert all(0 <= tag.x <= 100 and 0 <= tag.y <= 100 for tag in tags)
    for i, one in enumerate(tags):
        for other in tags[:i]:
            assert abs(one.x - other.x) >= TAG_WIDTH or abs(one.y - other.y) >= TAG_HEIGHT
