"""`report.html` and `report.md` of a benchmark: complete, one file, honest, and nobody's text becomes markup."""

import base64
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from fixtures_benchmark import synthetic_predictions
from PIL import Image

from eval.benchmark.compare import compare_published
from eval.benchmark.effectiveness import measure
from eval.benchmark.predictions import About, Prediction, Predictions, PredictionsError
from eval.benchmark.report.leaders import leaders, percent
from eval.benchmark.report.page import write_benchmark_report
from eval.benchmark.report.sections import LISTED
from eval.causes.clusters import cluster_failures
from eval.causes.explain import explain_failures
from eval.reports.page import format_value
from prompts.example import Example
from prompts.taxonomy import Category, Taxonomy

NAN = math.nan
EVIL = "<script>alert(1)</script>\"' onerror=x {{ 7*7 }} | [a](http://x)"
BIDI = "\x1b[2J safe\u202eelbirret\u2028"
EMPTY = {"threshold": 0.5, "categories": [], "classifiers": {}}
COVERS = ("three", "four")


class Page(HTMLParser):
    """Tags with attributes, and the text a reader sees."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def partial(**settings):
    """Predictions of a classifier that finds two categories."""
    return synthetic_predictions("partial", covers=COVERS, **settings)


def three():
    return [
        synthetic_predictions("weak", skill=0.2),
        partial(),
        synthetic_predictions("strong", skill=0.5, seed=1),
    ]


def written(folder, predictions, metrics=None, **options):
    """The page and the Markdown of a run."""
    metrics = metrics or (measure(predictions) if predictions else EMPTY)
    path = write_benchmark_report(folder, metrics, predictions, **options)
    assert path == folder / "report.html"
    return path.read_text(), (folder / "report.md").read_text()


def red(name):
    return Image.new("RGB", (40, 30), "red")


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """(metrics, page, Markdown) of `three`."""
    metrics = measure(three())
    return metrics, *written(tmp_path_factory.mktemp("full") / "made", three(), metrics, images=red)


def test_a_full_report_holds_every_part(full):
    metrics, html, markdown = full
    page = Page(html)
    headings = ["Leaders", "Categories", "Tables", "Precision and recall", "Reliability", "Failures to judge"]
    for heading in [*headings, "Wrong verdicts", "How it was run"]:
        assert html.count(f">{heading}</h2>") == 1
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert links == [f"#{attributes['id']}" for tag, attributes in page.tags if tag == "h2"]
    for one in metrics["classifiers"].values():
        whole = one["overall"]["all"] if one["overall"] else one["covered"]["all"]
        for value in (whole["f1"], whole["f1_interval"], whole["recall"], one["auc"]):
            assert format_value(value) in page.text
            assert format_value(value) in markdown
    assert "the model gave no answer" in page.text
    assert "Policy tests" not in page.text
    assert "Overlap" not in page.text


def test_leaders_cover_everything_first_and_are_sorted_by_f1(full):
    metrics, html, markdown = full
    found = leaders(metrics)
    assert [one.label for one in found] == ["strong", "weak", "partial"]
    assert "<details open><summary><h3>F1 by category" in html
    assert "<details><summary><h3>Recall by category" in html
    assert [one.partial for one in found] == [False, False, True]
    assert found[0].f1 > found[1].f1
    cells = metrics["classifiers"]["partial"]["cells"]
    assert found[2].mean_f1 == pytest.approx(sum(cells[key]["all"]["f1"] for key in COVERS) / 2)
    assert html.index("strong<br>") < html.index("weak<br>") < html.index("partial<br>")
    lines = [line for line in markdown.splitlines() if line.startswith(("| strong", "| weak", "| partial"))]
    assert [line.split()[1] for line in lines[:3]] == ["strong", "weak", "partial"]


def test_what_is_not_covered_is_hatched(full):
    metrics, html, _ = full
    categories = len(metrics["categories"])
    body = html[html.index('id="heat-map"') : html.index("</table>", html.index('id="heat-map"'))]
    assert body.count('class="hatched"') == categories - len(COVERS)
    assert body.count('style="background: #') == 2 * categories + len(COVERS)


def test_the_file_needs_no_other(full):
    _, html, _ = full
    page = Page(html)
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert ("meta", {"http-equiv": "Content-Security-Policy", "content": policy}) in page.tags
    sources = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(sources) > 6
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert [attributes["role"] for tag, attributes in page.tags if tag == "svg" and "role" in attributes]
    assert not {"script", "link", "iframe", "form", "object"} & {tag for tag, _ in page.tags}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    without_pictures = re.sub(r"data:image/[a-z+]+;base64,[A-Za-z0-9+/=]+", "", html)
    assert "http" not in without_pictures.replace("http-equiv", "")
    assert not re.search(r"url\((?!#)", without_pictures)  # clip paths and patterns of a figure itself
    assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")


def test_pictures_are_blurred_unless_asked_otherwise(full, tmp_path):
    _, blurred, _ = full
    sharp, _ = written(tmp_path, [synthetic_predictions()], images=red, blur=False)
    assert "Images are blurred" in blurred
    assert "Images are not blurred" in sharp
    assert 'alt="blurred image image-' in blurred
    assert "blurred image" not in sharp


def test_no_pixel_of_an_original_is_in_the_page(tmp_path, noise_image):
    """Neither the file, nor its pixels at any size that shows what is on them."""
    stored = {}

    def image(name):
        found = noise_image(sum(map(ord, name)), size=(64, 48))
        kept = BytesIO()
        found.save(kept, "PNG")
        stored[name] = (kept.getvalue(), found)
        return found

    html, _ = written(tmp_path, [synthetic_predictions()], images=image)
    shown = re.findall(r'data:image/jpeg;base64,([A-Za-z0-9+/=]+)" alt="blurred image ([^"]+)"', html)
    assert len(shown) == html.count("data:image/jpeg") > 5
    everything = b"".join(base64.b64decode(data) for data in re.findall(r"base64,([A-Za-z0-9+/=]+)", html))
    for data, name in shown:
        file, original = stored[name]
        assert not any(file[start : start + 16] in everything for start in range(60, len(file) - 16, 97))
        with Image.open(BytesIO(base64.b64decode(data))) as blurred:
            assert blurred.size == original.size  # it was small enough
            difference = np.asarray(blurred, dtype=float) - np.asarray(original, dtype=float)
            assert np.abs(difference).mean() > 40


def test_pictures_that_cannot_be_opened_are_grey_and_say_why(tmp_path):
    def broken(name):
        raise OSError(f"truncated {BIDI}")

    html, _ = written(tmp_path, [synthetic_predictions()], images=broken)
    assert "data:image/jpeg" not in html
    assert html.count("cannot be opened: truncated \\x1b[2J safe\\u202eelbirret<") > 3
    assert "no image is at hand" in written(tmp_path, [synthetic_predictions()])[0]


def hostile():
    """Predictions in which every text that is not ours is hostile."""
    text = EVIL + BIDI
    taxonomy = Taxonomy("evil", "1", (Category("Fine", "any thing"), Category("Bold", "x")))
    rows = [
        Prediction(
            f"{text}{number}",
            frozenset(["Fine"] if number % 2 else []),
            frozenset(),
            (0.1, 0.9, NAN)[number % 3],
            ((0.1, 0.1), (0.9, 0.9), (NAN, NAN))[number % 3],
            frozenset(["Fine", "Bold"]),
            source=text,
            collected_for="Fine",
            reason=text if number % 3 == 2 else None,
            note=text,
        )
        for number in range(12)
    ]
    about = About(
        text, text, "other", taxonomy, ("Fine", "Bold"), text, (text,), options={text: text}, machine=text,
        fingerprint=text,
    )  # fmt: skip
    return Predictions(about, tuple(rows))


def test_data_cannot_become_markup_or_turn_a_line(tmp_path):
    label = EVIL + BIDI
    metrics = measure([hostile()])
    metrics["overlap"] = {label: known_overlap(not_known=[label])}
    metrics["policies"] = {label: policy_record(reason=label)}

    def broken(name):
        raise OSError(label)

    html, markdown = written(tmp_path, [hostile()], metrics, images=broken)
    page = Page(html)
    assert "script" not in {tag for tag, _ in page.tags}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert page.text.count("<script>alert(1)</script>") > 20
    assert "{{ 7*7 }}" in page.text
    assert "49" not in page.text.replace("0.49", "")
    for text in (html, markdown):
        assert not re.search("[\x1b\x9b\u202e\u2028]", text)
        assert "\\u202eelbirret" in text
    assert not re.search(r"(?<!\\)<", markdown)
    assert not re.search(r"(?<!\\)\[a(?<!\\)\]\(", markdown)


def test_an_empty_run_says_so(tmp_path):
    html, markdown = written(tmp_path, [])
    assert "No classifier was asked." in html
    assert "Wrong verdicts" not in html
    assert markdown == ""


@pytest.mark.parametrize(
    "predictions",
    [
        pytest.param([synthetic_predictions(rows=1)], id="one image"),
        pytest.param([synthetic_predictions(rows=2, taxonomy="unsafebench")], id="most cells empty"),
        pytest.param([partial()], id="one partial classifier"),
    ],
)
def test_small_runs_can_be_reported(tmp_path, predictions):
    html, markdown = written(tmp_path, predictions, images=red)
    assert all(one.about.label in html and one.about.label in markdown for one in predictions)


def test_a_classifier_that_covers_nothing(tmp_path):
    about = replace(partial().about, label="nothing", covers=())
    html, _ = written(tmp_path, [synthetic_predictions("full"), Predictions(about, ())])
    assert "0 of 10" in html or "0 of " in html
    assert html.count('class="hatched"') == len(about.taxonomy) + 1  # and the key


def test_one_source_has_one_block(tmp_path):
    one = synthetic_predictions()
    real = Predictions(one.about, tuple(replace(row, source="real") for row in one.rows))
    html, _ = written(tmp_path, [real])
    assert "AI-Generated" not in html


def test_everything_unjudged_scores_nothing(tmp_path):
    one = synthetic_predictions()
    size = len(one.about.taxonomy)
    rows = (
        replace(row, unsafe=NAN, categories=(NAN,) * size, reason="timed out after 3 s") for row in one.rows
    )
    html, _ = written(tmp_path, [Predictions(one.about, tuple(rows))])
    page = Page(html)
    assert "100.0 %" in page.text
    assert "timed out after N s" in page.text
    assert "Precision and recall" not in page.text
    assert "Reliability" not in page.text
    assert "0.000" in page.text


def test_unjudged_images_are_listed_with_their_reasons_up_to_a_number(tmp_path):
    one = synthetic_predictions(rows=300)
    unjudged = [row.id for row in one.rows if math.isnan(row.unsafe)]
    assert len(unjudged) < LISTED
    html, _ = written(tmp_path, [one])
    listed = html[html.index(f"noisy: {len(unjudged)} images<") :]
    assert all(f"<code>{name}</code>: the model gave no answer" in listed for name in unjudged)
    many = Predictions(one.about, tuple(replace(row, unsafe=NAN, reason="no") for row in one.rows))
    html, _ = written(tmp_path, [many])
    assert f"noisy: 300 images, the first {LISTED} of them" in html
    assert html.count("</code>: no<") == LISTED


def test_classifiers_without_numbers_are_named(full, tmp_path):
    html, markdown = written(tmp_path, three(), full[0] | {"skipped": {"gated": "it wants a licence <b>"}})
    assert "it wants a licence &lt;b&gt;" in html
    assert "gated" in markdown
    assert "Not measured" not in full[1]


def known_overlap(**values):
    """A record of `overlap`."""
    record = {"tested": 60, "trained": 100, "exact": 2, "near": 1, "share": 0.05, "ids": [], "pairs": []}
    return record | {"unreadable": 0, "not_known": [], "reason": None} | values


def test_overlap_stands_beside_every_score(full, tmp_path):
    metrics = dict(full[0])
    metrics["overlap"] = {
        "strong": known_overlap(share=0.05, ids=["image-1", "image-2", "image-3"]),
        "weak": known_overlap(share=0.0, not_known=["its base"]),
        "partial": dict.fromkeys(known_overlap())
        | {"tested": 60, "not_known": ["no run folder"], "reason": "no run folder"},
    }
    html, markdown = written(tmp_path, three(), metrics)
    found = [one.overlap for one in leaders(metrics)]
    assert found == ["5.0 %", "≥ 0.0 %", "unknown"]
    for text in (Page(html).text, markdown):
        assert all(one in text for one in [*found, "its base", "no run folder"])
    assert {one.overlap for one in leaders(full[0])} == {"unknown"}


def policy_record(**values):
    """A record of `PolicyTests.measure`; without anything that was asked, unless given."""
    nothing = ("pair_score", "safe_to_unsafe", "unsafe_to_safe")
    numbers = dict.fromkeys([*nothing, *(f"{name}_interval" for name in nothing), "pes", "unjudged_share"])
    parts = {"obedience": None, "unseen": None, "not_drawn": {}, "failures": {}}
    return {"covers": [], "fixed": True, "pairs": 0, "reason": None} | numbers | parts | values


def test_policy_tests_have_tables(full, tmp_path):
    metrics = dict(full[0])
    metrics["policies"] = {
        "partial": policy_record(reason="it covers one category only"),
        "strong": policy_record(
            pairs=17, pair_score=0.512, pair_score_interval=[0.4, 0.6], safe_to_unsafe=0.613
        ),
    }
    html, markdown = written(tmp_path, three(), metrics)
    for text in (Page(html).text, markdown):
        for value in (
            "Opposite policies",
            "17",
            "0.512",
            "0.400 – 0.600",
            "0.613",
            "it covers one category only",
        ):
            assert value in text
    lines = [line for line in markdown.splitlines() if line.startswith(("| strong | 0 ", "| partial | 0 "))]
    assert lines[0].startswith("| strong"), "in the order of the leaders"


def test_sets_of_other_peoples_policies_have_tables(full, tmp_path):
    record = policy_record(
        name="policyshiftbench", rows=40, f1=0.431, f1_interval=[None, None], accuracy=0.532
    )
    metrics = full[0] | {
        "policy_sets": {"policyshiftbench": {"strong": record | {"by_tier": {}, "not_asked": {}}}}
    }
    html, markdown = written(tmp_path, three(), metrics)
    for text in (Page(html).text, markdown):
        assert "Policies of policyshiftbench" in text
        assert "0.431" in text


def test_published_numbers_and_differences_have_tables(full, tmp_path):
    predictions = [synthetic_predictions("Q16", taxonomy="unsafebench", rows=80)]
    metrics = measure(predictions)
    metrics["published"] = compare_published(metrics, "unsafebench")
    assert metrics["published"]["numbers"]
    html, markdown = written(tmp_path, predictions, metrics)
    for text in (Page(html).text, markdown):
        assert "Published F1 of others" in text
        assert "GPT-4V" in text
        assert re.search(r"[+-]0\.\d{3}", text)


def test_causes_have_tables_plots_and_blurred_clusters(full, tmp_path, noise_image):
    predictions = three()
    examples = [
        Example(row.id, noise_image(place, (32, 32)), violates=row.violates, source=row.source)
        for place, row in enumerate(predictions[0].rows)
    ]
    record = explain_failures(examples, predictions, tmp_path)
    vectors = np.random.default_rng(0).standard_normal((len(examples), 4))
    record["clusters"] = cluster_failures(vectors, [one.id for one in examples], predictions, clusters=2)
    pictures = {one.id: one.image for one in examples}
    html, markdown = written(tmp_path, three(), full[0] | {"causes": record}, images=pictures.__getitem__)
    assert '<h2 id="causes-of-failures">Causes of failures</h2>' in html
    assert '<a href="#causes-of-failures">' in html
    for text in (html, markdown):
        assert "Shift between sources" in text
        assert "no encoder of images was given" in text
    part = html[html.index('id="causes-of-failures"') : html.index('id="failures-to-judge"')]
    assert "signal-to-noise ratio" in part
    assert "<h4>safe, judged unsafe, real: " in part
    clusters = [
        cluster
        for group in record["clusters"]["groups"].values()
        for parts in group["failures"].values()
        for found in parts.values()
        for cluster in found["clusters"]
    ]
    assert part.count('alt="blurred image ') == len(clusters) > 4
    assert all(f"<code>{cluster['nearest'][0]}</code>" in part for cluster in clusters)


def test_metrics_of_other_predictions_are_refused(full, tmp_path):
    with pytest.raises(
        PredictionsError, match="The metrics are of weak, partial, strong, the predictions of noisy"
    ):
        write_benchmark_report(tmp_path, full[0], [synthetic_predictions()])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("share", "text"),
    [(None, "–"), (0.0, "0.0 %"), (1.0, "100.0 %"), (0.1234, "12.3 %"), (0.0001, "< 0.1 %")],
)
def test_a_small_share_is_not_shown_as_none(share, text):
    assert percent(share) == text
