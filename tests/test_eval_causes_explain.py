"""eval/causes: everything together on a folder of pictures, and losses under attack."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from adversarial.threat import format_epsilon
from eval.benchmark.parts import PartFolder
from eval.benchmark.predict import predict
from eval.benchmark.predictions import About
from eval.causes.attack_loss import NO_SOURCE, loss_under_attack, margin_loss
from eval.causes.explain import PARTS, CauseOptions, explain_failures
from eval.robustness.trials import Row, Trial, VictimResults, trial_records
from judge.data.examples import load_examples
from judge.encoders.dual import DualEncoder
from judge.errors import CheckpointError, ConfigError
from judge.protocol import Scores
from judge.runs.folder import RunDir
from prompts import load_taxonomy
from prompts.example import Example


class Brightness:
    """Flags pictures that are bright on average."""

    def __init__(self, name, cut):
        self.name, self.cut = name, cut

    def score(self, images, prompts, taxonomy):
        means = np.array([np.asarray(image).mean() for image in images])
        scores = 1 / (1 + np.exp((self.cut - means) / 10))
        return Scores(scores, np.column_stack([scores] * len(taxonomy)), (None,) * len(images))


CUTS = {"low": 70, "middle": 100, "high": 130}


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Examples of a folder with its own taxonomy, and what three classifiers said of them; bright pictures are unsafe."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "taxonomy.yaml").write_text(
        "name: mine\nversion: 1\ncategories:\n  - {name: Glare, definition: pictures that are too bright}\n"
    )
    rng, lines = np.random.default_rng(0), ["path,label,categories,source,prompt"]
    for number in range(40):
        source, unsafe = ("real", "generated")[number % 2], number % 4 < 2
        level = (170 if unsafe else 60) + rng.integers(-50, 40)
        noise = (5 if source == "real" else 30) * rng.standard_normal((32, 32, 3))
        Image.fromarray(np.clip(level + noise, 0, 255).astype(np.uint8)).save(folder / f"{number}.png")
        labels = "unsafe,Glare" if unsafe else "safe,"
        lines.append(f"{number}.png,{labels},{source},a picture")
    (folder / "table.csv").write_text("\n".join(lines))
    taxonomy = load_taxonomy(folder / "taxonomy.yaml")
    examples = load_examples(f"folder:{folder}", split="all", taxonomy=taxonomy).examples
    said = []
    for label, cut in CUTS.items():
        about = About(label, label, "other", taxonomy, taxonomy.keys, "folder", ("all",))
        said.append(predict(Brightness(label, cut), examples, about, PartFolder(folder / label, about)))
    return examples, said


@pytest.fixture(scope="module")
def encoder(tiny_clip_folder):
    return DualEncoder.load(tiny_clip_folder)


def load(label):
    return Brightness(label, CUTS[label])


@pytest.fixture(scope="module")
def explained(scene, encoder, tmp_path_factory):
    examples, said = scene
    broken = Example("broken", b"no picture", violates=frozenset({"Glare"}))
    lines = []
    record = explain_failures(
        [*examples, broken],
        said,
        tmp_path_factory.mktemp("causes"),
        encoder=encoder,
        load=load,
        options=CauseOptions(projection="pca"),
        progress=lines.append,
    )
    return record, lines


def test_every_part_is_made_and_plain_json(explained):
    record, lines = explained
    assert set(record) == {*PARTS, "unreadable", "not_made"}
    assert record["not_made"] == {"attack_loss": "no run of recipes/attack.py was given"}
    assert record["unreadable"]["images"] == 1
    assert "not_an_image" in record["unreadable"]["reasons"]["broken"]
    text = json.dumps(record, allow_nan=False)
    assert json.loads(text) == record
    assert len(text) < 60_000
    assert len(lines) == 3 + len(CUTS)


def test_the_parts_say_what_was_put_into_the_pictures(explained, scene):
    record, _ = explained
    examples, said = scene
    shift = record["shift"]["statistics"]
    assert shift["noise"]["against_reference"]["generated"]["cliffs_delta"] == 1.0
    assert len(record["map"]["points"]["x"]) == len(examples)
    assert record["separation"]["sources"]["generated"]["rows"] == [20, 20]
    failures = record["clusters"]["groups"]["high"]["failures"]["false_negatives"]
    missed = {row.id for row in said[2].rows if row.truth and row.unsafe < 0.5}
    assert missed
    named = {name for part in failures.values() for one in part["clusters"] for name in one["nearest"]}
    assert named <= missed
    assert sum(part["images"] for part in failures.values()) == len(missed)
    case = record["case_study"]
    # Neither paint nor tiles change how bright a picture is.
    assert {cell["share"] for cell in [*case["together"]["style"], *case["together"]["grid"]]} == {1.0}
    assert case["style"]["kind"] == "painterly"
    assert case["review"]["made"] is False
    assert case["similarity"]["style-0.1"]["lowest"] > case["similarity"]["style-0.6"]["lowest"] - 1e-6
    assert set(record["confidence"]["classifiers"]) == set(CUTS)


def test_the_same_seed_gives_the_same_record(explained, scene, encoder, tmp_path):
    record, _ = explained
    examples, said = scene
    again = explain_failures(
        examples, said, tmp_path, encoder=encoder, load=load, options=CauseOptions(projection="pca")
    )
    assert again["shift"] == record["shift"]
    assert again | {"unreadable": None} == record | {"unreadable": None}


def test_a_review_is_asked_for_and_then_obeyed(scene, tmp_path):
    examples, said = scene
    options = CauseOptions(review=tmp_path / "review", images=4, strengths=(0.5,), grids=(2,))
    first = explain_failures(examples, said, tmp_path, load=load, options=options)
    assert first["not_made"]["map"] == first["not_made"]["clusters"] == "no encoder of images was given"
    assert first["case_study"]["review"]["made"] is False
    assert "waits for a yes or no" in first["case_study"]["review"]["said"]
    table = options.review / "review.csv"
    head, *lines = table.read_text().splitlines()
    assert len(lines) == 8
    answers = [f"{line}{'no' if number == 3 else 'yes'}" for number, line in enumerate(lines)]
    table.write_text("\n".join([head, *answers]))
    second = explain_failures(examples, said, tmp_path, load=load, options=options)["case_study"]
    assert second["review"]["made"] is True
    assert second["dropped"] == first["case_study"]["images"][1:2]
    assert len(second["images"]) == 3
    kept = replace(options, review=None, keep=second["images"])
    assert (
        explain_failures(examples, said, tmp_path, load=load, options=kept)["case_study"]["images"]
        == (second["images"])
    )


def test_what_cannot_be_made_is_said(scene, encoder, tmp_path):
    examples, said = scene
    alone = explain_failures(examples, said, tmp_path)
    assert alone["not_made"]["case_study"] == "no classifiers were given, only their predictions"
    other = CauseOptions(case_source="drawn", case_labels=["low"])
    found = explain_failures(examples, said, tmp_path, load=load, options=other)
    assert found["not_made"]["case_study"] == "no unsafe image of source 'drawn' is judged right by low"
    nothing = explain_failures([], [], tmp_path, encoder=encoder, load=load)
    assert nothing["not_made"]["case_study"].endswith("by anybody")
    assert nothing["clusters"]["groups"] == {}
    one = explain_failures(examples[:1], said, tmp_path, encoder=encoder, load=load)
    assert one["map"]["points"]["x"] == [0.0]
    assert one["shift"]["statistics"]["snr"]["against_reference"] == {}


def test_wrong_options_stop_at_once(scene, tmp_path):
    for wrong in ({"threshold": 0}, {"clusters": 0}, {"images": 0}, {"batch_size": 0}):
        with pytest.raises(ConfigError, match="the others are at least 1"):
            CauseOptions(**wrong)
    with pytest.raises(ConfigError, match="Give `review` or `keep`"):
        CauseOptions(review=tmp_path, keep=[])
    options = CauseOptions(style_model=tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="cannot be read"):
        explain_failures(*scene, tmp_path, load=load, options=options)


# Losses under attack


def test_losses_of_margins_are_cross_entropies():
    margins = torch.tensor([-30.0, -2.0, 0.0, 0.5, 40.0], dtype=torch.float64)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        margins, torch.ones(5, dtype=torch.float64), reduction="none"
    )
    assert margin_loss(margins.numpy()) == pytest.approx(expected.numpy(), rel=1e-9)


@pytest.fixture
def attacked(tmp_path):
    """A run of two victims; the generated images lose more of their margin."""
    run = RunDir.create(tmp_path / "attack", kind="attack")
    epsilon = 2 / 255
    rows = [
        Row(str(n), True, ("real", "generated")[n % 2], ("three",), 0.9, image=f"image-{n}")
        for n in range(12)
    ]
    records = []
    for name in ("student", "judge"):
        trials = [
            Trial(row.id, attack, at, 2.0, 1.5 if row.source == "real" else -1.0, 1, False, {}, 1.0)
            for row in rows
            for attack in ("fgsm", "apgd")
            for at in (epsilon, 8 / 255)
        ]
        records += trial_records(VictimResults(name, rows, trials))
    run.write_rows("trials", records)
    run.write_metrics({"suite": {"threat": {"epsilon": epsilon}}})
    return run, records


def test_losses_rise_more_for_the_source_that_gives_way(attacked):
    run, records = attacked
    assert records[0]["image"] == "image-0"
    assert records[0]["truth"] is True
    found = loss_under_attack(run.path)
    assert found["epsilon"] == format_epsilon(2 / 255)
    assert set(found["victims"]) == {"student", "judge"}
    part = found["victims"]["student"]["fgsm"]
    increases = {s: one["increase"]["quantiles"][2] for s, one in part["sources"].items()}
    clean = math.log1p(math.exp(-2))
    assert increases["real"] == pytest.approx(math.log1p(math.exp(-1.5)) - clean)
    assert increases["generated"] == pytest.approx(math.log1p(math.exp(1)) - clean)
    assert part["sources"]["real"]["clean"]["rows"] == 6  # only those at the headline budget
    assert part["against_reference"]["generated"]["increase"]["cliffs_delta"] == 1.0
    assert part["against_reference"]["generated"]["clean"]["cliffs_delta"] == 0.0
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    run.write_rows("trials", [*records, {**records[0], "gap": math.inf}, {**records[0], "gap": math.nan}])
    assert loss_under_attack(run.path) == found


def test_older_and_damaged_attack_runs(attacked, tmp_path):
    run, records = attacked
    run.write_rows("trials", ({k: v for k, v in one.items() if k != "source"} for one in records))
    assert loss_under_attack(run.path)["victims"]["judge"]["apgd"]["reference"] == NO_SOURCE
    run.write_rows("trials", [{"victim": "student"}])
    with pytest.raises(CheckpointError, match="in another form"):
        loss_under_attack(run.path)
    run.write_metrics({})
    with pytest.raises(CheckpointError, match="in another form"):
        loss_under_attack(run.path)
    with pytest.raises(CheckpointError, match="does not exist"):
        loss_under_attack(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="not 'attack'"):
        loss_under_attack(RunDir.create(tmp_path / "other", kind="vlm").path)
