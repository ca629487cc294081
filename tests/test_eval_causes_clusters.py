"""eval/causes: maps of embeddings, how far sources are apart, clusters of failures."""

import json
import math

import numpy as np
import pytest
from fixtures_benchmark import synthetic_predictions

from eval.benchmark.predictions import About, Prediction, Predictions
from eval.causes.clusters import SHOWN, cluster_failures, default_groups
from eval.causes.embedding import MOST_POINTS, embed_images, embedding_map, separation
from judge.encoders.dual import DualEncoder
from judge.errors import ConfigError, ImageError
from prompts import load_taxonomy
from prompts.example import Example

KEYS = frozenset(load_taxonomy("digits").keys)


def predictions(label, scores, *, truth=True, source="real", group="other", **values):
    """A classifier that gave these p(unsafe) to images 0, 1, ..., all unsafe or all safe."""
    about = About(label, label, group, load_taxonomy("digits"), tuple(KEYS), "digits", ("test",))
    rows = tuple(
        Prediction(
            str(number),
            frozenset({"three"} if truth else ()),
            frozenset(),
            score,
            (score,) * len(KEYS),
            KEYS,
            source=source,
            **values,
        )
        for number, score in enumerate(scores)
    )
    return Predictions(about, rows)


def blobs(count, each, seed=0):
    """(count * each, 8) points in tight, distant blobs, those of one blob in succession."""
    rng = np.random.default_rng(seed)
    return np.repeat(5 * np.eye(8)[:count], each, axis=0) + 0.01 * rng.standard_normal((count * each, 8))


def names(vectors):
    return [str(number) for number in range(len(vectors))]


def test_separate_blobs_become_clusters_shown_by_their_middles():
    vectors = blobs(4, 10)
    vectors[20] = 5 * np.eye(8)[2]  # the middle of the third blob
    found = cluster_failures(vectors, names(vectors), [predictions("one", [0.1] * 40)])
    part = found["groups"]["one"]["failures"]["false_negatives"]["real"]
    assert part["images"] == part["of"] == 40
    assert part["note"] is None
    assert [one["size"] for one in part["clusters"]] == [10] * 4
    for one in part["clusters"]:
        assert len({int(name) // 10 for name in one["nearest"]}) == 1
        assert len(one["nearest"]) == SHOWN
        assert one["violates"] == {"three": 10}
    third = next(one for one in part["clusters"] if int(one["nearest"][0]) // 10 == 2)
    assert third["nearest"][0] == "20"
    assert list(found["groups"]) == ["one"]  # a single classifier is no group


def test_unjudged_rows_are_no_false_negatives():
    vectors = blobs(2, 3)
    scores = [0.1, 0.1, math.nan, math.nan, 0.9, 0.1]
    found = cluster_failures(vectors, names(vectors), [predictions("one", scores)])["groups"]["one"]
    counts = {kind: parts["real"]["images"] for kind, parts in found["failures"].items()}
    assert counts == {"false_negatives": 3, "false_positives": 0, "unjudged": 2}
    assert found["failures"]["false_positives"]["real"]["of"] == 0
    assert found["failures"]["unjudged"]["real"]["of"] == 6


def test_fewer_images_than_clusters_are_said():
    vectors = np.ones((5, 8))
    vectors[3:] = 0.5
    found = cluster_failures(vectors, names(vectors), [predictions("one", [0.1] * 5)])
    part = found["groups"]["one"]["failures"]["false_negatives"]["real"]
    assert [one["size"] for one in part["clusters"]] == [3, 2]
    assert part["note"] == "2 instead of 4, as many as there are different images"
    one = cluster_failures(vectors[:1], ["0"], [predictions("one", [0.9], truth=False)])
    part = one["groups"]["one"]["failures"]["false_positives"]["real"]
    assert part["clusters"] == [{"size": 1, "nearest": ["0"], "violates": {}}]


def test_groups_share_a_failure_only_where_all_fail_alike():
    vectors = blobs(2, 3)
    both = [
        predictions("one", [0.1, 0.1, 0.1, math.nan, 0.9, 0.9], group="ours"),
        predictions("two", [0.1, 0.9, math.nan, math.nan, 0.1], group="ours"),
        predictions("three", [0.1] * 6, group="zero_shot"),
    ]
    found = cluster_failures(vectors, names(vectors), both)["groups"]
    assert list(found) == ["one", "two", "three", "all of ours", "all"]
    ours = found["all of ours"]
    assert ours["images"] == 5  # the second was not asked about the last image
    assert ours["mixed"] == 1
    counts = {kind: parts["real"]["images"] for kind, parts in ours["failures"].items()}
    assert counts == {"false_negatives": 1, "false_positives": 0, "unjudged": 1}
    assert found["all"]["mixed"] == 2
    assert default_groups([*both[:2], predictions("covers nothing", [])]) == {"all": ["one", "two"]}


def test_groups_and_categories_can_be_chosen():
    vectors = blobs(1, 4)
    one, two = predictions("one", [0.1] * 4), predictions("two", [0.1] * 4)
    found = cluster_failures(vectors, names(vectors), [one, two], groups={"pair": ["two", "one"]})
    assert found["groups"]["pair"]["labels"] == ["two", "one"]
    assert cluster_failures(vectors, names(vectors), [one], category="three")["groups"]["one"]["images"] == 4
    assert cluster_failures(vectors, names(vectors), [one], category="four")["groups"]["one"]["images"] == 0
    for_four = predictions("one", [0.9] * 4, truth=False, collected_for="four")
    found = cluster_failures(vectors, names(vectors), [for_four], category="four")
    assert found["groups"]["one"]["failures"]["false_positives"]["real"]["images"] == 4
    for wrong in ({"pair": ["one", "too"]}, {"pair": []}):
        with pytest.raises(ConfigError, match="'pair' is of"):
            cluster_failures(vectors, names(vectors), [one, two], groups=wrong)


def test_images_without_an_embedding_are_counted():
    vectors = blobs(1, 3)
    found = cluster_failures(vectors[:2], ["0", "1"], [predictions("one", [0.1] * 3)])
    part = found["groups"]["one"]["failures"]["false_negatives"]["real"]
    assert (part["images"], part["without_embedding"]) == (3, 1)
    assert sum(one["size"] for one in part["clusters"]) == 2


def test_clusters_are_repeatable_and_plain_json():
    several = [synthetic_predictions(label, rows=80, seed=seed) for seed, label in enumerate("ab")]
    ids = [row.id for row in several[0].rows]
    vectors = np.random.default_rng(0).standard_normal((80, 6))
    found = cluster_failures(vectors, ids, several, seed=1)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert cluster_failures(vectors, ids, several, seed=1) == found
    assert cluster_failures(vectors, ids, several, seed=2) != found
    empty = cluster_failures(vectors[:0], [], [Predictions(several[0].about, ())])["groups"]["a"]
    assert empty["images"] == 0
    assert empty["failures"]["unjudged"] == {}


def two_sources(vectors, share=0.5, **values):
    edge = int(len(vectors) * share)
    return [
        Example(name, None, source="real" if number < edge else "generated", **values)
        for number, name in enumerate(names(vectors))
    ]


@pytest.mark.parametrize("distance", [0.0, 1.0, 6.0])
def test_separation_grows_with_the_distance_of_the_sources(distance):
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((600, 4))
    vectors[300:, 0] += distance
    found = separation(vectors, two_sources(vectors), seed=1)
    auc, (low, high) = found["sources"]["generated"]["auc"], found["sources"]["generated"]["interval"]
    # Of two normal clouds the best AUC is Phi(distance / sqrt(2)): 0.5, 0.76 and 1.
    best = {0.0: 0.5, 1.0: 0.76, 6.0: 1.0}[distance]
    assert low <= auc <= high
    assert auc == pytest.approx(best, abs=0.06)
    assert separation(vectors, two_sources(vectors), seed=1) == found


@pytest.mark.parametrize(("real", "generated"), [(0, 0), (3, 0), (3, 1), (1, 1), (3, 2)])
def test_few_images_of_a_source(real, generated):
    vectors = np.random.default_rng(0).standard_normal((real + generated, 4))
    examples = two_sources(vectors, real / max(1, real + generated))
    found = separation(vectors, examples)
    if generated:
        assert (found["sources"]["generated"]["auc"] is None) == (generated < 2)
    else:
        assert found["sources"] == {}
    points = embedding_map(vectors, examples)["points"]
    assert len(points["x"]) == len(points["y"]) == len(points["source"]) == real + generated


@pytest.mark.parametrize("projection", ["tsne", "pca"])
def test_a_map_keeps_blobs_apart(projection):
    vectors = blobs(2, 30)
    examples = two_sources(vectors, violates=frozenset({"seven", "four"}))
    found = embedding_map(vectors, examples, projection=projection, seed=1)
    assert found["projection"] == projection
    assert found["points"]["violates"] == ["four"] * 60
    places = np.column_stack([found["points"]["x"], found["points"]["y"]])
    assert np.abs(places).max() <= 1
    centres = places[:30].mean(axis=0), places[30:].mean(axis=0)
    spread = max(places[:30].std(), places[30:].std())
    assert np.linalg.norm(centres[0] - centres[1]) > 2 * spread
    assert embedding_map(vectors, examples, projection=projection, seed=1) == found


def test_maps_of_many_and_of_equal_images():
    vectors = np.random.default_rng(0).standard_normal((MOST_POINTS + 200, 3))
    found = embedding_map(vectors, two_sources(vectors, 0.9), projection="pca")
    counts = [found["points"]["source"].count(source) for source in ("real", "generated")]
    assert counts == [MOST_POINTS // 2, 110]
    equal = embedding_map(np.ones((8, 3)), two_sources(np.ones((8, 3))))
    assert set(equal["points"]["x"] + equal["points"]["y"]) == {0.0}
    with pytest.raises(ConfigError, match="'umap'; it is one of tsne, pca"):
        embedding_map(vectors, two_sources(vectors), projection="umap")


def test_embeddings_are_the_encoders_and_cached(tiny_clip_folder, tmp_path, noise_image, monkeypatch):
    encoder = DualEncoder.load(tiny_clip_folder)
    examples = [Example(str(number), noise_image(number)) for number in range(5)]
    found = embed_images(encoder, examples, tmp_path)
    pooled = encoder.encode_images([example.image for example in examples])[:, 0].numpy()
    assert found == pytest.approx(pooled / np.linalg.norm(pooled, axis=1, keepdims=True), abs=2e-3)  # float16
    assert np.linalg.norm(found, axis=1) == pytest.approx(1)
    assert list(tmp_path.rglob("*.safetensors"))
    monkeypatch.setattr("eval.causes.embedding.UNCACHED", 2)
    assert embed_images(encoder, examples, None) == pytest.approx(found, abs=2e-3)
    assert embed_images(encoder, [], None).shape == (0, encoder.width)
    with pytest.raises(ImageError, match="example broken"):
        embed_images(encoder, [Example("broken", b"nothing")], tmp_path)
