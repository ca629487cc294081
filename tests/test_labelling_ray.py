"""Labelling on Ray Data: a local cluster of two scorers and a reader, some of them killed; labels as on one machine."""

import base64
import io
import json
import tarfile
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fixtures_cluster import started
from fixtures_ray import BlankReader, DeadlyReader, DeadlyScorer, broken_scorer
from PIL import Image

from judge.errors import ConfigError, LabellingError
from judge.labelling.inputs.locate import find_sources
from judge.labelling.inputs.shards import Shard
from judge.labelling.job import Scoring
from judge.labelling.one_machine import one_machine
from judge.labelling.opening import Opening
from judge.labelling.plan import Plan
from judge.labelling.ray_data import (
    LabellingRayOptions,
    ReadShard,
    ScoreBlock,
    engine_of_stages,
    load_same,
    ray_engine,
)
from judge.labelling.rows import Task
from judge.labelling.run import label_shards
from judge.labelling.scoring import ClassifierFailedError, preprocessing_of
from judge.publish.hub import model_hash
from judge.runs.ray_cluster import ray_cluster
from judge.verdicts.rows import Judging
from prompts import load_taxonomy

OPTIONS = LabellingRayOptions(workers=2, readers=1, object_store=80_000_000, patience=300)
PART, BLOCK = 8, 4
on_ray = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    # At the end Ray kills its processes and forgets them without asking how they ended.
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
    # Ray Data sets options of its own that it calls deprecated.
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*"),
]


@pytest.fixture(scope="module")
def cluster():
    with started(lambda: ray_cluster(OPTIONS, OPTIONS.cpus_of(2), LabellingError), LabellingError) as ray:
        yield ray


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Ten image files, a tar of fourteen, a Parquet file of six and JSON lines of six; a few are damaged."""
    root, folder = tmp_path_factory.mktemp("input"), tmp_path_factory.mktemp("plan")
    images = [encoded(seed) for seed in range(36)]
    images[3], images[17], images[27] = b"no image", images[17][:40], b""
    for place in range(10):
        (root / f"{place}.png").write_bytes(images[place])
    with tarfile.open(root / "more.tar", "w") as tar:
        for place in range(10, 24):
            about = tarfile.TarInfo(f"{place}.png")
            about.size = len(images[place])
            tar.addfile(about, io.BytesIO(images[place]))
    pq.write_table(pa.table({"image": images[24:30]}), root / "table.parquet")
    lines = [json.dumps({"image": base64.b64encode(image).decode()}) for image in images[30:]]
    (root / "lines.jsonl").write_text("\n".join(lines))
    with Plan(folder) as plan:
        plan.extend(find_sources(str(root)), PART)
        return list(plan.shards(str(root), {}))


def encoded(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def scoring():
    taxonomies = [load_taxonomy("digits"), replace(load_taxonomy("digits"), name="again")]
    hashed = model_hash("tiny-student")
    return Scoring(
        "tiny-student", tuple(Judging(one, model="student", model_hash=hashed) for one in taxonomies)
    )


def blank_tasks(count):
    return [Task(Shard(number, "images", ".", ("blank",))) for number in range(count)]


def labels(folder, shards, engine):
    """The rows that a run writes, and its tally; each file has the same rows whatever the engine."""
    folder.mkdir()
    tally = label_shards(shards, folder, PART, engine, {"taxonomies": {}})
    names = sorted(path.name for path in folder.glob("part-*"))
    return pa.concat_tables([pq.read_table(folder / name) for name in names]), tally


def sent(value):
    """What a stage puts into a row."""
    import pickle

    return pa.table({"pickled": pa.array([pickle.dumps(value)], pa.large_binary())})


def test_a_worker_of_other_versions_says_which():
    import pickle
    import zlib

    [row] = ReadShard(BlankReader, {"numpy": "0.1"})(sent(zlib.compress(pickle.dumps(blank_tasks(1)[0]))))
    error = pickle.loads(row["pickled"][0].as_py())
    assert isinstance(error, LabellingError)
    assert f"numpy {np.__version__} instead of 0.1" in str(error)
    # It passes the second stage as it is, which loads nothing for it.
    passed = ScoreBlock(partial(int, "no scorer"), {})(row)
    assert str(pickle.loads(passed["pickled"][0].as_py())) == str(error)


def test_a_worker_with_another_model_says_so(scoring):
    other = tuple(replace(judging, model_hash="0" * 64) for judging in scoring.judgings)
    with pytest.raises(
        LabellingError, match=r"tiny-student has the fingerprint \w{64} there, and 0{64} where"
    ):
        load_same(replace(scoring, judgings=other))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere", "127.0.0.1:99999"])
def test_an_address_that_nobody_answers_is_said(scoring, address):
    options = replace(OPTIONS, address=address)
    with pytest.raises(ConfigError, match="No Ray cluster at"), ray_engine(Opening(), scoring, options):
        pass


@pytest.mark.parametrize(
    ("given", "scorers", "readers", "cpus"),
    [({}, 9, 3, 12), ({"gpus": 1}, 2, 2, 4), ({"readers": 2, "reader_cpus": 0.5, "cpus": 0.5}, 3, 2, 3)],
)
def test_readers_are_as_many_as_scorers_need(given, scorers, readers, cpus):
    options = LabellingRayOptions(**given)
    assert options.readers_of(scorers) == readers
    assert options.cpus_of(scorers) == cpus


@pytest.mark.parametrize("given", [{"readers": 0}, {"reader_cpus": 0}, {"workers": 0}])
def test_options_outside_their_range_are_refused(given):
    with pytest.raises(ConfigError, match=next(iter(given))):
        LabellingRayOptions(**given)


@pytest.mark.usefixtures("cluster")
class TestOnRay:
    pytestmark = on_ray

    def test_killed_workers_lose_and_double_nothing(self, tmp_path, shards, scoring):
        scorer = scoring.load()
        opening = Opening(preprocessing_of(scorer.classifier), part_rows=PART, block_rows=BLOCK, workers=1)
        tar = next(shard.number for shard in shards if shard.kind == "tar")
        deaths = [tmp_path / "reader", tmp_path / "scorer"]
        for file in deaths:
            file.write_text("1")
        read = partial(DeadlyReader, opening, deaths[0], (tar, 8))
        load = partial(DeadlyScorer, partial(load_same, scoring), deaths[1], (tar, 4))
        with engine_of_stages(read, load, OPTIONS) as engine:
            there, tally = labels(tmp_path / "ray", shards, engine)
        here, _ = labels(tmp_path / "here", shards, one_machine(opening, scorer))
        assert [file.read_text() for file in deaths] == ["0", "0"]
        assert len(list(tmp_path.glob("scorer-*"))) >= 2
        assert tally.rows == there.num_rows == 36
        assert there.equals(here)
        assert tally.counts.statuses["ok"] == 33

    def test_a_classifier_that_fails_ends_the_run_with_its_own_error(self, scoring, capfd):
        load = partial(broken_scorer, scoring.judgings)
        with (
            engine_of_stages(BlankReader, load, OPTIONS) as engine,
            pytest.raises(
                ClassifierFailedError, match=r"broken failed on 4 images.*grey one.*a kernel is missing"
            ),
        ):
            list(engine(blank_tasks(3)))
        assert "Traceback" not in "".join(capfd.readouterr())

    def test_a_block_that_kills_every_worker_ends_the_run(self, tmp_path, capfd):
        (tmp_path / "deaths").write_text("999")
        load = partial(DeadlyScorer, dict, tmp_path / "deaths", (0, 0))
        with (
            engine_of_stages(BlankReader, load, replace(OPTIONS, workers=1, patience=4)) as engine,
            pytest.raises(
                LabellingError, match=r"Ray gave up.*made no progress.*run the same command again"
            ) as caught,
        ):
            list(engine(blank_tasks(1)))
        assert "\n" not in str(caught.value)
        assert "Traceback" not in "".join(capfd.readouterr())
