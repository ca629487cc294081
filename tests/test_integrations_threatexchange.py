"""The classifier for pytx, against the real python-threatexchange and a real server of ours; and what theirs makes of us."""

import importlib.util
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from fixtures_server import ColourJudge, colour_service, data_url, listening, picture

from judge.errors import ConfigError, MissingExtraError
from judge.integrations import local_judge
from judge.integrations.local_judge import LocalJudge
from judge.integrations.verdict_client import NotJudgedError, VerdictClient
from prompts import load_taxonomy
from prompts.taxonomy import Taxonomy

pytest.importorskip(
    "threatexchange", reason="python-threatexchange is not installed; `make test` installs it"
)

from threatexchange.classifier.classifier import ClassificationResult, Classifier
from threatexchange.classifier.openai_moderation import OpenAIModerationClassifier
from threatexchange.content_type.photo import PhotoContent
from threatexchange.content_type.text import TextContent

from judge.integrations.threatexchange import ArbiterClassifier

POLICY = Taxonomy.from_dict(
    {
        "name": "mine",
        "version": "1",
        "categories": [
            {"name": "sexual/minors", "definition": "sexual content with children", "aliases": ["minors"]},
            {"name": "weapons", "definition": "a knife or a gun", "examples": ["a pistol"], "code": "S2"},
            {"name": "Violence, graphic", "definition": "blood"},
        ],
    }
)
DIGITS = load_taxonomy("digits")


@pytest.fixture(scope="module")
def server() -> Any:
    """A server whose own taxonomy is `POLICY`, and which blames its first category for red."""
    with listening(colour_service(ColourJudge(POLICY))) as url:
        yield url


@pytest.fixture
def ours(server: str) -> Any:
    with VerdictClient(server, POLICY, patience=0) as client:
        yield ArbiterClassifier(client)


def photo(folder: Path, data: bytes, name: str = "photo.png") -> str:
    (folder / name).write_bytes(data)
    return str(folder / name)


def test_every_category_is_a_label_under_its_own_name(ours: ArbiterClassifier, tmp_path: Path) -> None:
    assert isinstance(ours, Classifier)
    assert ours.get_name() == "arbiter"
    assert ours.get_content_types() == [PhotoContent]
    found = ours.classify(PhotoContent, photo(tmp_path, picture(red=204)))
    assert isinstance(found, ClassificationResult)
    assert list(found.labels) == list(POLICY.names)
    assert {name: info.is_match for name, info in found.labels.items()} == {
        "sexual/minors": True,
        "weapons": False,
        "Violence, graphic": False,
    }
    assert found.labels["sexual/minors"].score == pytest.approx(0.8)
    assert str(found) == "sexual/minors(80.00%)"
    assert found.row["taxonomy"]["hash"] == POLICY.hash
    safe = ours.classify_image(picture(red=51))  # bytes are taken as well
    assert list(safe.labels) == list(POLICY.names)
    assert not safe.has_match
    assert str(safe) == "None"


def test_thresholds_decide(server: str, tmp_path: Path) -> None:
    path = photo(tmp_path, picture(red=204))
    with VerdictClient(server, POLICY, thresholds={"sexual/minors": 0.9, "weapons": 0}, patience=0) as client:
        found = ArbiterClassifier(client).classify(PhotoContent, path)
    assert set(found.positive_labels) == {"weapons"}
    assert found.labels["sexual/minors"].threshold == 0.9


UNJUDGED = {
    "the classifier cannot say": picture(blue=255),
    "the classifier breaks": picture(green=255),
    "no image": b"nothing like an image",
    "half an image": picture(size=(64, 64), kind="JPEG")[:-40],
}


@pytest.mark.parametrize("what", UNJUDGED)
def test_what_is_not_judged_raises(ours: ArbiterClassifier, what: str, tmp_path: Path) -> None:
    with pytest.raises(NotJudgedError):
        ours.classify(PhotoContent, photo(tmp_path, UNJUDGED[what]))


def test_no_file_no_photo_no_server_and_an_address_raise(ours: ArbiterClassifier, tmp_path: Path) -> None:
    with pytest.raises(NotJudgedError, match="missing"):
        ours.classify(PhotoContent, str(tmp_path / "none.png"))
    with pytest.raises(ValueError, match="judges photos"):
        ours.classify(TextContent, "a text")
    with pytest.raises(NotJudgedError, match="fetches no addresses"):
        ours.classify(PhotoContent, "https://example.org/photo.png")
    with (
        VerdictClient("http://127.0.0.1:9", POLICY, patience=0) as nobody,
        pytest.raises(NotJudgedError, match="No connection"),
    ):
        ArbiterClassifier(nobody).classify(PhotoContent, photo(tmp_path, picture()))


def test_a_mistake_of_the_set_up_is_no_verdict(server: str) -> None:
    with VerdictClient(server, "no such policy", patience=0) as client, pytest.raises(ConfigError):
        ArbiterClassifier(client).classify_image(picture())
    with (
        VerdictClient(server, POLICY, thresholds={"wepons": 0.5}, patience=0) as client,
        pytest.raises(ConfigError, match="weapons"),
    ):
        ArbiterClassifier(client).classify_image(picture())


class Says:
    """A judge that gives one row, whatever it is asked."""

    def __init__(self, row: dict[str, Any]) -> None:
        self.row = row

    def ask(self, image: bytes | str, prompt: str | None = None) -> dict[str, Any]:
        return self.row


def test_a_category_without_a_score_is_not_no_match() -> None:
    row = {
        "status": "unsafe",
        "scores": {"a": 0.9},
        "flags": {"a": True},
        "thresholds": {"a": 0.5, "b": 0.5},
        "reason": "b is not covered",
    }
    with pytest.raises(NotJudgedError, match="b not judged: b is not covered; flagged: a") as caught:
        ArbiterClassifier(Says(row)).classify_image(picture())
    assert caught.value.row == row


def test_one_model_for_all_instances_of_a_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Four threads with an instance each, at once; the scores are those of the classifier itself."""
    import judge.classifiers
    from judge import open_image

    loads, load = [], judge.classifiers.load_classifier
    monkeypatch.setattr(
        judge.classifiers,
        "load_classifier",
        lambda name, **options: loads.append(name) or load(name, **options),
    )
    monkeypatch.setattr(local_judge, "_loaded", {})
    path = photo(tmp_path, picture(red=120))
    classifiers = [ArbiterClassifier(LocalJudge("tiny-student", DIGITS, device="cpu")) for _ in range(4)]
    assert loads == []
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda one: one.classify(PhotoContent, path), classifiers))
    assert loads == ["tiny-student"]
    [classifier] = [one.classifier for one in local_judge._loaded.values()]
    assert classifier is not None
    [expected] = classifier.score([open_image(path)], None, DIGITS).categories
    for result in found:
        assert list(result.labels) == list(DIGITS.names)
        assert [info.score for info in result.labels.values()] == pytest.approx(list(expected), rel=1e-6)
        assert result.row["model"]["sha256"]
    for wrong in (b"no image", str(tmp_path / "none.png")):
        with pytest.raises(NotJudgedError):
            classifiers[0].classify_image(wrong)
    with pytest.raises(ConfigError, match="without a server"):
        classifiers[0].classify_image("http://example.org/x.png")


def test_scores_that_are_no_probabilities_are_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ValueError would say that this type of content is not for this classifier."""

    class Wild(ColourJudge):
        def score(self, images: Any, prompts: Any, taxonomy: Any) -> Any:
            scores = super().score(images, prompts, taxonomy)
            scores.categories[:, 0] = scores.unsafe[:] = 7.0
            return scores

    monkeypatch.setattr(local_judge, "_loaded", {("wild", None): local_judge._Loaded(classifier=Wild())})
    with pytest.raises(NotJudgedError, match="no verdict"):
        ArbiterClassifier(LocalJudge("wild", POLICY)).classify_image(picture(red=255))


def test_settings_from_the_environment(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ARBITER_URL"):
        ArbiterClassifier.get_with_default_settings()
    (tmp_path / "mine.yaml").write_text(POLICY.to_yaml())
    monkeypatch.setenv("ARBITER_URL", server)
    monkeypatch.setenv("ARBITER_TAXONOMY", str(tmp_path / "mine.yaml"))
    ours = ArbiterClassifier.get_with_default_settings()
    assert ours.classify_image(picture(red=255)).has_match
    ours.judge.close()  # type: ignore[attr-defined]
    monkeypatch.setenv("ARBITER_JUDGE", "tiny-student")
    with pytest.raises(ConfigError, match="ARBITER_JUDGE"):
        ArbiterClassifier.get_with_default_settings()


def test_without_pytx_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "threatexchange.classifier.classifier", None)
    spec = importlib.util.find_spec("judge.integrations.threatexchange")
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(MissingExtraError, match=r"arbiter-vision\[threatexchange\]"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


# --- pytx's own client, for comparison ------------------------------------------------------------------------------


@pytest.fixture
def theirs(server: str, monkeypatch: pytest.MonkeyPatch) -> OpenAIModerationClassifier:
    monkeypatch.setattr(OpenAIModerationClassifier, "ENDPOINT", f"{server}/v1/moderations")
    return OpenAIModerationClassifier(api_key="none")


def test_their_client_drops_our_categories_and_renames_one(
    theirs: OpenAIModerationClassifier, server: str, tmp_path: Path
) -> None:
    path = photo(tmp_path, picture(red=255))
    found = theirs.classify(PhotoContent, path)
    assert "weapons" not in found.labels
    assert "Violence, graphic" not in found.labels
    assert "sexual/minors" not in found.labels
    assert found.labels["csam"].is_match
    # Nobody asked about harassment, and their label says that there is none.
    assert (found.labels["harassment"].is_match, found.labels["harassment"].score) == (False, 0.0)
    # A policy without any of their keys: the image is flagged, and their client sees nothing at all.
    sent = {
        "input": [{"type": "image_url", "image_url": {"url": data_url(picture(red=255))}}],
        "taxonomy": [{"name": "weapons", "definition": "a knife"}],
    }
    answer = requests.post(f"{server}/v1/moderations", json=sent, timeout=60).json()
    assert answer["results"][0]["flagged"] is True
    assert answer["results"][0]["categories"]["weapons"] is True
    assert not theirs._parse_response(answer).has_match


def test_their_client_raises_where_we_answer_with_an_error(
    theirs: OpenAIModerationClassifier, tmp_path: Path
) -> None:
    """So the server's errors on unjudged images are what keeps their client from "no match"."""
    with pytest.raises(requests.HTTPError):
        theirs.classify(PhotoContent, photo(tmp_path, picture(blue=255)))
    assert not theirs._parse_response(
        {"results": [{}]}
    ).has_match  # what an empty answer would have been to it
