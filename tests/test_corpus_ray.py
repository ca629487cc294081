"""The Ray engine: two workers on this machine, one of them killed; the shards are those of the engine without Ray."""

import os
import sys
from contextlib import contextmanager
from dataclasses import replace

import pytest
from fixtures_cluster import cannot_start, processes_of_ray, started
from fixtures_corpus import StubLabels, stub_plan, stub_stages
from fixtures_ray import Deadly, Wrong

from judge.corpus import ray_engine as ray_engine_module
from judge.corpus.builder import build
from judge.corpus.ray_engine import RayOptions, ray_engine
from judge.corpus.stages import Task
from judge.errors import ConfigError, CorpusError, MissingExtraError
from judge.runs.folder import RunDir

OPTIONS = RayOptions(workers=2, object_store=80_000_000, patience=300, attempts=2)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    # At the end Ray kills its processes and forgets them without asking how they ended.
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
]


@pytest.fixture(scope="module")
def engine():
    with started(lambda: ray_engine(OPTIONS), CorpusError) as engine:
        yield engine


def test_a_killed_worker_loses_and_doubles_nothing(tmp_path, engine):
    (tmp_path / "deaths").write_text("1")
    stages = replace(stub_stages(), labels=Deadly(tmp_path / "deaths", 2))
    built = build(stub_plan(), stages, tmp_path / "ray", engine)
    local = build(stub_plan(), stub_stages(), tmp_path / "local")
    assert (tmp_path / "deaths").read_text() == "0"
    assert built.shards == local.shards
    assert built.counts == local.counts
    for name in ("rows.jsonl", "failed.jsonl"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()


def test_the_recipe_builds_the_same_corpus_with_it(tmp_path, engine, run_recipe, shapes, monkeypatch):
    """Its options reach the engine, and its stages the workers of the cluster that is there."""
    given = []

    @contextmanager
    def on_this_cluster(options):
        given.append(options)
        yield engine

    monkeypatch.setattr(ray_engine_module, "ray_engine", on_this_cluster)
    (tmp_path / "own.yaml").write_text("shares: {train: 1.0}\nray: {workers: 3, address: auto}\n")
    for place, picture in enumerate(sorted(shapes.folder.glob("files/test *.png"))[:3]):
        (tmp_path / f"{place}.png").write_bytes(picture.read_bytes())
    (tmp_path / "all.csv").write_text(
        "path,prompt\n" + "".join(f"{place}.png,a shape\n" for place in range(3))
    )
    for name in ("local", "ray"):
        run_recipe(
            "build_corpus",
            config=tmp_path / "own.yaml",
            pictures=tmp_path / "all.csv",
            engine=name,
            max_failures=1.0,
            output_dir=tmp_path / name,
        )
    assert given == [RayOptions(workers=3, address="auto")]
    local, ray = (RunDir.open(tmp_path / name, kind="corpus") for name in ("local", "ray"))
    assert ray.metrics["shards"] == local.metrics["shards"] != {}
    assert ray.metrics["in_shards"] > 0


def test_each_chunk_is_asked_for_when_there_is_room(engine):
    asked = []

    def tasks():
        for chunk in range(40):
            asked.append(chunk)
            yield Task(chunk, ())

    results = engine(StubLabels(), tasks())
    next(results)
    assert len(asked) <= 2 * 2 + 1
    assert sorted(result.chunk for result in results) != []
    assert asked == list(range(40))


def test_an_error_of_a_stage_arrives_as_it_is(engine):
    with pytest.raises(CorpusError, match=r"chunk 3 in process") as caught:
        list(engine(Wrong(), [Task(3, ())]))
    assert str(os.getpid()) not in str(caught.value)


def test_a_chunk_that_kills_every_worker_stops_the_build(tmp_path, engine):
    (tmp_path / "deaths").write_text("3")
    with pytest.raises(CorpusError, match="labels lost 2 workers at chunk 1"):
        list(engine(Deadly(tmp_path / "deaths", 1), [Task(1, ())]))
    assert (tmp_path / "deaths").read_text() == "1"


def test_what_a_worker_needs_and_no_machine_has_is_said(engine):
    assert processes_of_ray()
    with (
        pytest.raises(ConfigError, match=r"needs \{'CPU': 1, 'GPU': 4\}, which no machine"),
        ray_engine(RayOptions(gpus=4)),
    ):
        pass
    assert processes_of_ray()  # of a cluster that somebody else started nothing ends


def test_a_stage_that_workers_cannot_import_is_said(tmp_path, engine):
    class Local(StubLabels):
        pass

    Local.__module__, Local.__qualname__ = "no_such_module", "Local"
    sys.modules["no_such_module"] = type(sys)("no_such_module")
    sys.modules["no_such_module"].Local = Local
    try:
        with pytest.raises(CorpusError, match=r"cannot run its stage: .*no_such_module"):
            list(engine(Local(), [Task(0, ())]))
    finally:
        del sys.modules["no_such_module"]


def test_a_machine_on_which_ray_does_not_start_skips_unless_it_has_to_start(monkeypatch):
    error = CorpusError("Ray did not start on this machine: too busy")
    monkeypatch.delenv("ARBITER_REQUIRE_RAY", raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"does not start on this machine .*too busy"):
        cannot_start(error)
    monkeypatch.setenv("ARBITER_REQUIRE_RAY", "1")
    with pytest.raises(CorpusError, match="too busy"):
        cannot_start(error)


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"arbiter-vision\[ray\]"), ray_engine():
        pass


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"workers": 0}, "workers is 0"),
        ({"attempts": 0}, "attempts is 0"),
        ({"object_store": 10}, "object_store is 10; give at least 80,000,000"),
        ({"cpus": 0}, "cpus is 0"),
        ({"patience": -1}, "patience -1"),
    ],
)
def test_options_outside_their_range_are_refused(options, says):
    with pytest.raises(ConfigError, match=says):
        RayOptions(**options)
