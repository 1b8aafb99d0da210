import base64
import hashlib
import json
import math
import re
import tracemalloc
from contextlib import closing
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from make_run import STAGES, make_run
from PIL import Image as PILImage

from segsmith.files import png_bytes, write_atomic
from segsmith.memory.ledger import (
    PAGE,
    DecisionRow,
    GuidanceRow,
    ImageRow,
    LabelRow,
    Ledger,
    MaskRow,
    ModelRow,
    PromptRow,
    RunSummary,
    UndrawnRow,
    VerdictRow,
)
from segsmith.report import cards, charts, run_data, selection, statistics, theme, thumbnails
from segsmith.report.report import build_report
from segsmith.report.run_data import read_run

HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>{{7*7}}<!--"


class Page(HTMLParser):
    """A parsed page: counts of elements, attributes, text, style, and the bodies of scripts."""

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
    data = read_run(run, ledger)
    ledger.close()
    return html, data, run, config


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return build(tmp_path_factory.mktemp("whole"), classes=("cat", "dog", "potted plant"))


def test_page_refers_to_nothing_outside_itself(whole):
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


def test_page_shows_what_the_ledger_holds(whole):
    html, data, _, config = whole
    text = re.sub(r"\s+", " ", Page(html).text)
    assert f"{data.image_counts.masks} images with masks, 3 classes" in text
    for word in (
        "potted plant",
        "Drawing stopped: no image was accepted in several rounds",
        "8 min 32 s",
        "segsmith build --classes",
        "mIoU, simulator test set",
    ):
        assert word in text
    assert f"{data.evaluation['test_set'].miou:.3f}" in text
    assert set(Page(html).load("prompt-table")["text"]) == {p.text for p in data.prompts.values()}
    assert len(set(Page(html).load("index")["id"])) == data.image_counts.judged.total()
    for word in (
        "65452 in, 11750 out",
        "0.28 US dollars",
        "SmolLM2-135M",
        "Apache-2.0",
        "no cartoons",
        "a tail",
    ):
        assert word in text
    assert f"per_class = {config.per_class}" in text
    assert "Missing." not in text
    assert "Damaged" not in text


def test_content_policy_allows_only_the_script_and_style_of_the_page(whole):
    page = Page(whole[0])
    policy = next(v for t, n, v in page.attributes if t == "meta" and n == "content" and "script-src" in v)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    for rule, text in (("script-src", page.scripts[0]), ("style-src", page.style)):
        assert rules[rule] == f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"


def test_hostile_names_and_texts_remain_text(tmp_path):
    plain, *_ = build(tmp_path / "plain", classes=("cat", "dog"))
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
    assert set(page.elements) == set(Page(plain).elements)
    assert page.elements["script"] == html.lower().count("</script") == Page(plain).elements["script"]
    assert page.style.count("}") == Page(plain).style.count("}")
    assert not [a for a in page.attributes if a[1].startswith("on")]
    assert all(HOSTILE in text for text in page.load("prompt-table")["text"])
    assert HOSTILE.replace("_", " ") in page.load("index")["reasons"]
    assert HOSTILE in page.text
    assert set(page.elements) & {"iframe", "object", "embed"} == set()


@pytest.mark.parametrize("stage", STAGES)
def test_page_of_a_run_that_stopped_early_says_what_is_missing(tmp_path, stage):
    html, *_ = build(tmp_path, classes=("cat", "dog"), stage=stage)
    text = Page(html).text
    missing = text.count("Missing.")
    assert (missing == 0) == (stage == "all")
    if stage == "empty":
        assert "Nothing generated yet" in text
        assert missing >= 6
    if stage == "drawn":
        assert "accepted images, no masks yet" in text


def test_a_run_without_classes_and_events_has_a_page(tmp_path):
    html, *_ = build(tmp_path, classes=(), stage="empty")
    assert "Nothing generated yet" in html


def test_missing_and_damaged_files_are_stated(tmp_path):
    run, ledger, config = make_run(tmp_path, classes=("cat",), size=64, prompts_per_class=3)
    for path in run.image_files():
        path.unlink()
    for path in run.mask_files():
        write_atomic(path, b"not an image")
    run.config.unlink()
    images = len(ledger.images())
    html = build_report(run, ledger, config).read_text("utf-8")
    ledger.close()
    assert f"{images} of {images} image files are missing from images/." in html
    assert "mask files" not in html  # they are there, though unreadable
    assert "image missing or unreadable" in html
    assert "per_class" in html


def test_numbers_that_are_not_finite_are_left_out(tmp_path):
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


def test_images_beyond_the_cards_are_inert_text(whole):
    html, data, _, _ = whole
    page = Page(html)
    shown = page.elements["img"]
    assert shown <= 2 * selection.STRIP + selection.ACCEPTED + selection.REJECTED + 3 * cards.EXAMPLES
    rows = [row for name in page.data if name.startswith("sheet-") for row in page.load(name)["rows"]]
    assert len(rows) == data.image_counts.judged.total()
    assert html.index('id="sheet-0"') > html.index("</main>")


def test_more_images_than_the_cap_are_sampled_and_the_page_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(selection, "CAP", 30)
    html, data, *_ = build(tmp_path, classes=("a", "b", "c", "d", "e", "f"))
    page = Page(html)
    judged = data.image_counts.judged.total()
    assert judged > 30
    assert len(page.load("index")["id"]) == 30
    assert f"This page holds 30 of {judged} judged images" in re.sub(r"\s+", " ", page.text)


def test_more_prompts_than_the_cap_are_sampled_and_counts_stay_complete(tmp_path, monkeypatch):
    monkeypatch.setattr(selection, "CAP", 30)
    monkeypatch.setattr(run_data, "PROMPT_CAP", 25)
    html, data, run, _ = build(tmp_path, classes=("a", "b", "c", "d", "e", "f"))
    page = Page(html)
    with closing(Ledger(run.ledger, read_only=True)) as ledger:
        written = len(ledger.prompts())
        drawn_from = {image.id: image.prompt_id for image in ledger.images()}
    assert written > 25
    table, index = page.load("prompt-table"), page.load("index")
    assert len(table["id"]) == 25
    assert {data.prompts[i].class_name for i in table["id"]} == set("abcdef")
    assert [table["id"][k] for k in index["prompt"]] == [drawn_from[i] for i in index["id"]]
    text = re.sub(r"\s+", " ", page.text)
    assert f"hold 25 of {written} prompts" in text
    assert statistics.prompt_funnel(data)[0].count == written


def made_up_ledger(root, images, classes=("cat", "dog")):
    """A run of so many judged and masked images, two of each prompt, without their files."""
    run, ledger, config = make_run(root, classes=classes, size=64, prompts_per_class=1, stage="empty")
    prompts = [
        PromptRow(f"p-{k:012x}", classes[k % 2], f"{classes[k % 2]} {k}", (classes[k % 2],), {"place": "street"},
                  None, 0, "admitted" if k % 3 else "dropped", {"problem": "rule: x"})
        for k in range(images // 2)
    ]  # fmt: skip
    ids = [f"i-{k:012x}" for k in range(images)]
    scores = {"probability": 0.5, "sharpness": 1.0, **{f"other {n}": 0.1 for n in range(20)}}
    with ledger.transaction():
        ledger.add_prompts(prompts)
        ledger.add_images(ImageRow(i, prompts[k // 2].id, k, "x", 0, "00") for k, i in enumerate(ids))
        ledger.add_verdicts(
            VerdictRow(i, k % 4 > 0, ("ok", "blurred")[k % 4 == 0], scores) for k, i in enumerate(ids)
        )
        ledger.add_labels(
            LabelRow(i, source, classes) for i in ids for source in ("prompt", "clip", "relabel")
        )
        ledger.add_masks(
            MaskRow(i, {"cat": 9, "dog": k}, 0.1, {"labels": ["cat"]}) for k, i in enumerate(ids)
        )
        for image_id in ids[::8]:
            ledger.add_decision(DecisionRow("verdict", image_id, "accept"))
    return run, ledger, config


def test_memory_of_a_report_is_that_of_the_page_and_not_of_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(selection, "CAP", 60)
    monkeypatch.setattr(run_data, "PROMPT_CAP", 60)
    monkeypatch.setattr(run_data, "DECISIONS_SHOWN", 20)
    fetched, peaks, pages = [], [], []
    for images in (1200, 3600):
        run, ledger, config = made_up_ledger(tmp_path / str(images), images)

        def counted(*query, read=ledger._all):
            rows = read(*query)
            fetched.append(len(rows))
            return rows

        monkeypatch.setattr(ledger, "_all", counted)
        tracemalloc.start()
        try:
            build_report(run, ledger, config)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
            ledger.close()
        assert max(fetched) <= PAGE
        assert sum(fetched) > 5 * images
        fetched.clear()
        pages.append(run.report.stat().st_size)
    assert peaks[1] < 1.3 * peaks[0]
    assert pages[1] < 1.02 * pages[0]
    text = re.sub(r"\s+", " ", Page(run.report.read_text()).text)
    assert "2700 images with masks" in text
    assert "900 rejected" in text
    assert "The newest 20 of 450 decisions" in text
    assert "60 of 1800 prompts" in text


def test_funnel_and_class_rows_add_up(whole):
    _, data, run, config = whole
    drawn, accepted, labelled, masked = statistics.image_funnel(data)
    assert drawn.count >= accepted.count >= labelled.count >= masked.count > 0
    assert sum(row.count for row in statistics.reject_reasons(data)) == drawn.count - accepted.count
    rows = statistics.class_rows(data, config)
    assert [row.name for row in rows] == list(config.classes)
    assert sum(row.accepted for row in rows) == accepted.count
    assert sum(row.drawn for row in rows) == drawn.count
    with closing(Ledger(run.ledger, read_only=True)) as ledger:
        masks = ledger.masks()
    share = sum(m.pixels.get("cat", 0) for m in masks.values()) / (len(masks) * 64**2)
    assert rows[0].pixel_share == pytest.approx(share)


def test_requested_images_that_were_not_drawn_are_counted_by_reason(tmp_path):
    run, ledger, config = make_run(tmp_path, classes=("cat",), size=64, prompts_per_class=2)
    prompt = ledger.prompts("admitted")[0]
    ledger.add_undrawn([UndrawnRow(f"i-{k}", prompt.id, 0, "filtered") for k in range(3)])
    html = build_report(run, ledger, config).read_text("utf-8")
    ledger.close()
    text = re.sub(r"\s+", " ", Page(html).text)
    assert "Why requested images were not drawn 3filtered" in text


def test_a_shortfall_that_a_later_session_filled_is_not_shown(whole):
    _, data, _, config = whole
    rows = statistics.class_rows(data, config)
    ((row, _),) = statistics.shortfalls(rows, data)
    assert row.name == config.classes[-1]
    assert (
        statistics.shortfalls(statistics.class_rows(data, config.model_copy(update={"per_class": 1})), data)
        == []
    )


def test_label_change_compares_relabelling_with_clip(whole):
    _, data, _, _ = whole
    relabelled = [image.labels for image in data.chosen.on_sheets if "relabel" in image.labels]
    assert relabelled
    for labels in relabelled:
        change = statistics.label_change(labels)
        before = set(labels["clip"])
        assert (before | set(change.added)) - set(change.removed) == set(labels["relabel"])
        assert set(change.added).isdisjoint(before)


def test_overlay_has_a_transparent_background_hatched_unknown_pixels_and_names(tmp_path):
    mask = np.zeros((40, 60), np.uint8)
    mask[20:30, 10:30] = 2
    mask[:10, 40:] = 255
    write_atomic(tmp_path / "m.png", png_bytes(mask))
    found = thumbnails.mask_overlay(tmp_path / "m.png", ("cat", "dog"))
    import io

    rgba = np.asarray(PILImage.open(io.BytesIO(base64.b64decode(found.uri.split(",")[1]))).convert("RGBA"))
    assert (rgba[mask == 0][:, 3] == 0).all()
    assert (rgba[mask == 2][:, 3] == 255).all()
    assert "#{:02x}{:02x}{:02x}".format(*tuple(rgba[25, 20, :3])) == theme.class_colour(2)
    assert 0.3 < (rgba[mask == 255][:, 3] > 0).mean() < 0.7
    (tag,) = found.tags
    assert tag.name == "dog"
    assert abs(tag.x - 100 * 20 / 60) < 2
    assert tag.y < 50


def test_class_colours_differ():
    assert len({theme.class_colour(i) for i in range(1, 81)}) == 80
    assert all(re.fullmatch("#[0-9a-f]{6}", theme.class_colour(i)) for i in range(1, 255))


def test_round_robin_takes_one_of_each_key_in_turn():
    turns = selection.RoundRobin(5)
    for item in ("a1", "a2", "a3", "b1", "c1", "c2"):
        turns.add(item[0], item)
    assert turns.chosen() == ["a1", "b1", "c1", "a2", "c2"]
    assert selection.RoundRobin(3).chosen() == []


@given(st.lists(st.sampled_from("abcdefgh"), max_size=120), st.integers(1, 9))
def test_choices_of_a_stream_are_those_of_the_whole_list_and_few_are_held(keys, limit):
    turns, best = selection.RoundRobin(limit), selection.Best(limit)
    groups = {}
    for number, key in enumerate(keys):
        turns.add(key, number)
        best.add(key, number % 5, number)
        groups.setdefault(key, []).append(number)
        assert sum(map(len, turns._groups.values())) <= 2 * limit
    in_turn = sorted(
        (k, place, number) for place, group in enumerate(groups.values()) for k, number in enumerate(group)
    )
    assert turns.chosen() == [number for *_, number in in_turn][:limit]
    for key, group in groups.items():
        assert best.of(key) == sorted(group, key=lambda n: (-(n % 5), n))[:limit]


def test_histogram_draws_every_value_and_the_threshold():
    assert [charts.bin_of(p) for p in (-0.1, 0, 0.5, 0.999, 1, 1.2)] == [0, 0, 10, 19, 19, 19]
    good, bad = [0] * charts.BINS, [0] * charts.BINS
    for p in (0.9, 0.91, 0.2):
        good[charts.bin_of(p)] += 1
    bad[charts.bin_of(0.1)] += 1
    svg = charts.histogram(good, bad, 0.75, '<b a="')
    assert 'x1="180.0"' in svg
    assert svg.count('class="good"') == 2
    assert svg.count('class="bad"') == 1
    assert "<b" not in svg
    assert "3 accepted and 1 rejected" in svg
    assert "threshold" not in charts.histogram([0] * charts.BINS, [0] * charts.BINS, None, "cat")


@pytest.mark.parametrize(
    "points", [[], [(1, 0.5)], [(1, 0.0), (2, 0.0)], [(1, -1.0), (2, 3e5)], [(1, 1e-320)]]
)
def test_line_chart_stays_in_its_frame(points):
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
    assert "No web browser was found" in capsys.readouterr().err  # the replaced function returns None


def test_name_tags_stay_inside_the_mask_and_do_not_overlap():
    mask = np.zeros((60, 60), np.uint8)
    for index in range(1, 5):
        mask[0:20, 10 * index : 10 * index + 6] = index
    mask[40:60, 50:60] = 5
    tags = thumbnails.name_tags(mask, ["cat", "dog", "horse", "chair", "boat"])
    assert [tag.name for tag in tags] == ["cat", "dog", "horse", "chair", "boat"]
    assert all(0 <= tag.x <= 100 and 0 <= tag.y <= 100 for tag in tags)
    for i, one in enumerate(tags):
        for other in tags[:i]:
            assert (
                abs(one.x - other.x) >= thumbnails.TAG_WIDTH or abs(one.y - other.y) >= thumbnails.TAG_HEIGHT
            )
