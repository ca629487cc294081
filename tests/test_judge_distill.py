"""Teacher scores on disk, their variation, the losses, and calibration."""

import hashlib
import json
import math
import re
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from transformers import TrainingArguments

from judge.errors import CheckpointError, ConfigError
from judge.protocol import Scores
from judge.runs.references import teacher_identity
from judge.standins.digits import digits_examples
from judge.student.distill import (
    Distillation,
    DistillTrainer,
    alignment_loss,
    calibrate_head,
    hard_loss,
    soft_loss,
)
from judge.student.distill_data import DistillOptions, VariedGroups, vary_group
from judge.student.head import CrossAttentionHead, HeadConfig
from judge.student.lesson_table import COLUMNS, read_shard
from judge.student.teacher_scores import SHARD, ScoredGroup, read_teacher_scores, write_teacher_scores
from prompts import FlipOptions, draw_groups, load_taxonomy
from prompts.example import UNSPECIFIED, Example
from prompts.flip import Group

TAXONOMY = load_taxonomy("digits")
SOURCE = {category.key: category for category in TAXONOMY}
STILL = DistillOptions(drop=0, rename=0, reword=0, no_prompt=0)


@pytest.fixture(scope="module")
def examples():
    return digits_examples("train", count=300)


@pytest.fixture(scope="module")
def groups(examples):
    options = FlipOptions(focus=0.0, group_size=4, custom=0.5).plain
    return draw_groups(examples, TAXONOMY, options, seed=0, epoch=0, groups=SHARD + 6)


class Teacher:
    """Knows the truth but for the rows it cannot judge; counts what it is asked."""

    name = "teacher"
    supports_multilabel = True

    def __init__(self, groups, refuses=()):
        self.truth = {
            (group.taxonomy.hash, row.prompt, np.asarray(row.example.image).tobytes()): row
            for group in groups
            for row in group.rows
        }
        self.refuses, self.asked = set(refuses), 0

    def score(self, images, prompts, taxonomy, *, multilabel=False):
        assert multilabel
        self.asked += len(images)
        rows = [
            self.truth[taxonomy.hash, prompt, np.asarray(image).tobytes()]
            for image, prompt in zip(images, prompts, strict=True)
        ]
        categories = np.array(
            [[0.9 if label else 0.1 for label in taxonomy.label(row.example)] for row in rows]
        )
        unsafe = categories.max(axis=1)
        refused = [row.example.id in self.refuses for row in rows]
        unsafe[refused], categories[refused] = np.nan, np.nan
        return Scores(unsafe, categories, tuple("tired" if no else None for no in refused))


ABOUT = {"teacher": "t@1", "seed": 0}


def test_scores_come_back_as_they_were_written(groups, tmp_path):
    tired = groups[1].rows[0].example.id
    write_teacher_scores(Teacher(groups, [tired]), groups, tmp_path, about=ABOUT)
    lessons = read_teacher_scores(tmp_path, groups, about=ABOUT)
    assert len(lessons) == len(groups)
    for lesson, group in zip(lessons, groups, strict=True):
        assert lesson.rows == group.rows
        assert lesson.categories.shape == (len(group.rows), len(group.taxonomy))
        for row, unsafe, scores in zip(lesson.rows, lesson.unsafe, lesson.categories, strict=True):
            if row.example.id == tired:
                assert math.isnan(unsafe)
                assert np.isnan(scores).all()
            else:
                assert (scores > 0.5).tolist() == list(group.taxonomy.label(row.example))
                assert unsafe == scores.max()


def test_anybody_can_read_the_data_set(groups, tmp_path):
    """With `datasets` alone, by the folder too: the card says which of its files are the table."""
    import datasets

    write_teacher_scores(Teacher(groups), groups, tmp_path / "lessons", about=ABOUT)
    table = datasets.load_dataset(str(tmp_path / "lessons"), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(table) == sum(len(group.rows) for group in groups)
    assert table.column_names == list(COLUMNS)


def test_every_row_says_by_itself_what_was_asked_and_answered(groups, tmp_path):
    """Read with pyarrow alone, and held against the rows that were drawn."""
    import pyarrow.parquet as pq

    tired = groups[1].rows[0].example.id
    write_teacher_scores(Teacher(groups, [tired]), groups, tmp_path, about=ABOUT)
    found = [row for path in sorted(tmp_path.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    drawn = [row for group in groups for row in group.rows]
    for record, row in zip(found, drawn, strict=True):
        policy = json.loads((tmp_path / "taxonomies.json").read_text())[record["taxonomy"]]
        assert record["category_names"] == [category["name"] for category in policy["categories"]]
        assert record["category_definitions"] == [category["definition"] for category in policy["categories"]]
        assert record["taxonomy_name"] == policy["name"] == "digits"
        assert (record["example"], record["split"]) == (row.example.id, "train")
        assert (record["prompt"], record["prompt_of"], record["teacher"]) == (
            row.prompt,
            row.prompt_of,
            "t@1",
        )
        assert record["label"] == any(record["category_labels"]) == row.unsafe
        shown = np.asarray(row.example.image.convert("RGB"))
        size = f"RGB {shown.shape[1]}x{shown.shape[0]}\n".encode()
        assert record["image_sha256"] == hashlib.sha256(size + shown.tobytes()).hexdigest()
        assert record["image_path"] is None
        if record["example"] == tired:
            assert (record["unsafe_probability"], record["reason"]) == (None, "tired")
            assert set(record["category_probabilities"]) == {None}
        else:
            assert record["unsafe_probability"] == max(record["category_probabilities"])
            assert [score > 0.5 for score in record["category_probabilities"]] == record["category_labels"]


def test_images_of_a_folder_are_named_by_their_file_and_its_hash(groups, tmp_path):
    paths = {}
    for row in groups[0].rows:
        path = tmp_path / "mine" / row.example.split / f"{row.example.id}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        row.example.image.save(path)
        paths[row.example.id] = path
    rows = tuple(replace(r, example=replace(r.example, image=paths[r.example.id])) for r in groups[0].rows)
    group = replace(groups[0], rows=rows)
    write_teacher_scores(Teacher([groups[0]]), [group], tmp_path / "lessons", about=ABOUT)
    for record in read_shard(tmp_path / "lessons" / "lessons-00000.parquet"):
        data = paths[record["example"]].read_bytes()
        assert record["image_path"] == f"{record['example']}.png"
        assert record["image_sha256"] == hashlib.sha256(data).hexdigest()
    assert str(tmp_path) not in (tmp_path / "lessons" / "lessons-00000.parquet").read_bytes().decode("latin1")


def test_the_card_explains_every_column_and_names_no_folder_of_this_machine(groups, tmp_path):
    about = ABOUT | {"dataset": "folder:/home/me/my pictures"}
    write_teacher_scores(Teacher(groups), groups, tmp_path, about=about)
    text = (tmp_path / "README.md").read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert head["configs"][0]["data_files"] == "*.parquet"
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == set(COLUMNS)
    assert '"folder:my pictures"' in text
    assert "/home/me" not in text


def as_first_format(folder):
    """The folder as the version before wrote it."""
    import pyarrow.parquet as pq

    columns = ["group", "unsafe", "categories", "example", "prompt", "prompt_of", "taxonomy", "reason"]
    names = {"unsafe_probability": "unsafe", "category_probabilities": "categories"}
    for path in folder.glob("*.parquet"):
        table = pq.read_table(path)
        pq.write_table(
            table.rename_columns([names.get(c, c) for c in table.column_names]).select(columns), path
        )
    about = json.loads((folder / "about.json").read_text())
    (folder / "about.json").write_text(json.dumps(about | {"format": 1}))
    (folder / "README.md").unlink()


def test_lessons_of_the_version_before_are_read_but_not_continued(groups, tmp_path):
    write_teacher_scores(Teacher(groups), groups, tmp_path, about=ABOUT)
    new = read_teacher_scores(tmp_path, groups, about=ABOUT)
    as_first_format(tmp_path)
    again = Teacher(groups)
    write_teacher_scores(again, groups, tmp_path, about=ABOUT)
    assert again.asked == 0
    for one, two in zip(read_teacher_scores(tmp_path, groups, about=ABOUT), new, strict=True):
        np.testing.assert_array_equal(one.unsafe, two.unsafe)
        np.testing.assert_array_equal(one.categories, two.categories)
    (tmp_path / "lessons-00001.parquet").unlink()
    with pytest.raises(
        CheckpointError, match="begun by an earlier version, in columns of other names; delete"
    ):
        write_teacher_scores(again, groups, tmp_path, about=ABOUT)
    about = json.loads((tmp_path / "about.json").read_text())
    (tmp_path / "about.json").write_text(json.dumps(about | {"format": 3}))
    with pytest.raises(CheckpointError, match="have format 3, this version reads up to 2; update"):
        read_teacher_scores(tmp_path, groups, about=ABOUT)


def test_a_killed_teacher_goes_on_after_its_last_shard(groups, tmp_path):
    write_teacher_scores(Teacher(groups), groups, tmp_path, about=ABOUT)
    (tmp_path / "lessons-00001.parquet").unlink()
    again = Teacher(groups)
    write_teacher_scores(again, groups, tmp_path, about=ABOUT)
    assert again.asked == 4 * 6
    assert len(read_teacher_scores(tmp_path, groups, about=ABOUT)) == len(groups)


def test_processes_share_the_shards(groups, tmp_path):
    asked = []
    for process in (1, 0):
        teacher = Teacher(groups)
        write_teacher_scores(teacher, groups, tmp_path, about=ABOUT, process=process, processes=2)
        asked.append(teacher.asked)
    assert asked == [4 * 6, 4 * SHARD]
    assert len(read_teacher_scores(tmp_path, groups, about=ABOUT)) == len(groups)


def test_scores_of_other_teachers_or_rows_are_refused(groups, examples, tmp_path):
    write_teacher_scores(Teacher(groups), groups, tmp_path, about=ABOUT)
    with pytest.raises(CheckpointError, match="made with teacher 't@1', not 't@2'"):
        write_teacher_scores(Teacher(groups), groups, tmp_path, about=ABOUT | {"teacher": "t@2"})
    with pytest.raises(CheckpointError, match="made with groups 38, not 37"):
        read_teacher_scores(tmp_path, groups[:-1], about=ABOUT)
    other = draw_groups(
        examples, TAXONOMY, FlipOptions(group_size=4, focus=0).plain, seed=1, epoch=0, groups=len(groups)
    )
    with pytest.raises(CheckpointError, match="are for the taxonomy"):
        read_teacher_scores(tmp_path, other, about=ABOUT)
    swapped = [type(g)(g.taxonomy, (*g.rows[1:], g.rows[0])) for g in groups]
    with pytest.raises(CheckpointError, match="for other rows"):
        read_teacher_scores(tmp_path, swapped, about=ABOUT)
    (tmp_path / "lessons-00000.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(CheckpointError, match="missing or damaged"):
        read_teacher_scores(tmp_path, groups, about=ABOUT)
    (tmp_path / "about.json").write_text("{")
    with pytest.raises(CheckpointError, match="not JSON"):
        read_teacher_scores(tmp_path, groups, about=ABOUT)


def test_a_teacher_is_known_by_its_weights(tmp_path):
    weights = tmp_path / "run" / "adapter" / "adapter_model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"one")
    first = teacher_identity(tmp_path / "run")
    (tmp_path / "run" / "checkpoint-5").mkdir()
    (tmp_path / "run" / "checkpoint-5" / "model.safetensors").write_bytes(b"x")
    assert teacher_identity(tmp_path / "run") == first
    weights.write_bytes(b"two")
    assert teacher_identity(tmp_path / "run") != first
    assert teacher_identity("http://host/v1#m") == "http://host/v1#m"


def lesson_of(group, seed=0):
    rng = np.random.default_rng(seed)
    return ScoredGroup(
        group.taxonomy,
        group.rows,
        rng.random(len(group.rows)),
        rng.random((len(group.rows), len(group.taxonomy))),
    )


@given(st.integers(0, 37), st.integers(0, 10_000))
def test_a_restated_lesson_keeps_scores_and_labels_in_step(groups, number, seed):
    lesson = lesson_of(groups[number])
    task = vary_group(lesson, SOURCE, DistillOptions(drop=0.4, rename=0.5, reword=0.5), Random(seed))
    keys = [lesson.taxonomy.keys.index(key) for key in task.taxonomy.keys]
    assert keys == sorted(keys)
    np.testing.assert_array_equal(task.soft[:, 1:], lesson.categories[:, keys])
    for row, hard in zip(lesson.rows, task.hard, strict=True):
        labels = [lesson.taxonomy.categories[k].label(row.example) for k in keys]
        assert hard[1:].tolist() == [float(label) for label in labels]
        assert hard[0] == float(any(labels))
    if len(keys) == len(lesson.taxonomy):
        np.testing.assert_array_equal(task.soft[:, 0], lesson.unsafe)
    else:
        np.testing.assert_allclose(task.soft[:, 0], 1 - np.prod(1 - lesson.categories[:, keys], axis=1))


def test_an_unnamed_unsafe_image_is_a_hard_label_of_all_categories_only(groups):
    group = max(groups, key=lambda one: len(one.taxonomy))
    members = frozenset(key for category in group.taxonomy for key in category.members)
    unnamed = [replace(row.example, violates=frozenset({UNSPECIFIED}), unknown=members) for row in group.rows]
    rows = tuple(replace(row, example=image) for row, image in zip(group.rows, unnamed, strict=True))
    lesson = lesson_of(Group(group.taxonomy, rows))
    task = vary_group(lesson, SOURCE, STILL, Random(0))
    assert (task.hard[:, 0] == 1).all()
    fewer = vary_group(lesson, SOURCE, DistillOptions(drop=0.99, rename=0, reword=0), Random(0))
    assert len(fewer.taxonomy) < len(group.taxonomy)
    assert np.isnan(fewer.hard).all()


def test_nothing_is_restated_when_nothing_is_asked(groups):
    lesson = lesson_of(groups[0])
    task = vary_group(lesson, SOURCE, STILL, Random(0))
    assert task.taxonomy == lesson.taxonomy
    assert task.prompts == tuple(row.prompt for row in lesson.rows)


def test_names_and_definitions_vary_between_epochs(groups):
    lessons = VariedGroups([lesson_of(group) for group in groups], TAXONOMY, DistillOptions(), seed=3)
    first = [lessons[i].taxonomy for i in range(len(lessons))]
    assert first == [lessons[i].taxonomy for i in range(len(lessons))]
    lessons.set_epoch(1)
    assert first != [lessons[i].taxonomy for i in range(len(lessons))]


def test_unknown_labels_stay_unknown(groups):
    group = max(groups, key=lambda one: len(one.taxonomy))
    unknown = frozenset(group.taxonomy.categories[0].members)
    rows = tuple(
        type(row)(
            Example("x", row.example.image, None, frozenset(), unknown=unknown),
            row.taxonomy,
            None,
            None,
            False,
            None,
            None,
            "flip",
        )
        for row in group.rows
    )
    task = vary_group(
        ScoredGroup(group.taxonomy, rows, np.zeros(4), np.zeros((4, len(group.taxonomy)))),
        {},
        STILL,
        Random(0),
    )
    assert np.isnan(task.hard[:, :2]).all()
    assert (task.hard[:, 2:] == 0).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"drop": 1.5},
        {"hard_weight": -0.1},
        {"temperature": 0.0},
        {"scale_rate": 0.0},
        {"alignment_weight": -1.0},
    ],
)
def test_options_out_of_range(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        DistillOptions(**wrong)


def test_no_groups():
    with pytest.raises(ConfigError, match="no scored groups"):
        VariedGroups([], TAXONOMY, STILL, seed=0)


def test_the_soft_loss_is_a_divergence():
    logits = torch.tensor([[[0.3, -2.0, 1.0]]], requires_grad=True)
    same = soft_loss(logits, logits.detach().sigmoid(), 2.0)
    assert abs(same.item()) < 1e-6
    p = torch.tensor([[[0.9, 0.2, float("nan")]]])
    loss = soft_loss(logits, p, 2.0)
    loss.backward()
    assert logits.grad[..., 2] == 0

    def divergence(z, q):
        a, b = 1 / (1 + math.exp(-math.log(q / (1 - q)) / 2)), 1 / (1 + math.exp(-z / 2))
        return 4 * (a * math.log(a / b) + (1 - a) * math.log((1 - a) / (1 - b)))

    assert loss.item() == pytest.approx(divergence(0.3, 0.9) + divergence(-2.0, 0.2), abs=1e-5)


def test_the_hard_loss_weighs_the_whole_like_all_categories():
    logits = torch.tensor([[[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]]])
    label = torch.tensor([[[1.0, 1.0, 0.0], [float("nan"), float("nan"), 1.0]]])
    bce = torch.nn.functional.softplus
    want = (
        bce(torch.tensor(-1.0))
        + (bce(torch.tensor(-2.0)) + bce(torch.tensor(-1.0)) + bce(torch.tensor(-3.0))) / 3
    )
    assert hard_loss(logits, label).item() == pytest.approx(want.item(), rel=1e-5)


def make_head():
    torch.manual_seed(0)
    return CrossAttentionHead(HeadConfig(16, inner=16, heads=2, rank=4))


def test_alignment_pulls_an_image_towards_what_it_violates():
    head = make_head()
    image, texts = torch.randn(1, 4, 3, 16), torch.randn(1, 5, 1, 16)
    kinds = torch.zeros(1, 5, 1, dtype=torch.long)
    kinds[:, 4] = -1
    labels = torch.zeros(1, 4, 5)
    labels[0, 0, 1] = labels[0, 1, 2] = labels[0, 1, 3] = 1
    labels[..., 4] = float("nan")
    soft = torch.full_like(labels, 0.9)
    optimizer = torch.optim.Adam(head.parameters(), 0.03)
    start = None
    for _ in range(40):
        loss = alignment_loss(head, image, head.queries(texts, kinds), labels, soft)
        start = loss.item() if start is None else start
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5 * start
    similar = head.similarity(image, head.queries(texts, kinds))
    assert similar[0, 0].argmax() == 1
    assert set(similar[0, 1].topk(2).indices.tolist()) == {2, 3}
    nothing = alignment_loss(head, image, head.queries(texts, kinds), torch.zeros_like(labels), soft * 0)
    assert nothing.item() == 0


def test_a_step_lowers_every_part_of_the_loss():
    torch.manual_seed(1)
    model = Distillation(make_head(), DistillOptions())
    hard = torch.randint(0, 2, (3, 4, 2)).float()
    batch = {
        "image": torch.randn(3, 4, 5, 16),
        "prompt": torch.randn(3, 4, 2, 16),
        "prompt_mask": torch.ones(3, 4, 2, dtype=torch.bool),
        "phrases": torch.randn(3, 2, 2, 16),
        "kinds": torch.zeros(3, 2, 2, dtype=torch.long),
        "hard": torch.cat([hard.amax(-1, keepdim=True), hard], -1),
    }
    batch["soft"] = batch["hard"] * 0.8 + 0.1
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    before = model(**batch)
    for _ in range(60):
        optimizer.zero_grad()
        model(**batch)["loss"].backward()
        optimizer.step()
    after = model(**batch)
    assert all(after[name] < before[name] for name in ("loss", "soft", "hard", "alignment"))


def test_the_teacher_alone_means_that_no_label_counts():
    torch.manual_seed(1)
    model = Distillation(make_head(), DistillOptions(hard_weight=0.0))
    batch = {
        "image": torch.randn(1, 4, 5, 16),
        "prompt": torch.randn(1, 4, 2, 16),
        "prompt_mask": torch.ones(1, 4, 2, dtype=torch.bool),
        "phrases": torch.randn(1, 2, 2, 16),
        "kinds": torch.zeros(1, 2, 2, dtype=torch.long),
        "soft": torch.rand(1, 4, 3),
    }
    losses = [model(**batch, hard=torch.full((1, 4, 3), label))["loss"].item() for label in (0.0, 1.0)]
    assert losses[0] == losses[1] > 0


def test_calibration_undoes_a_known_distortion():
    rng = torch.Generator().manual_seed(0)
    true = torch.randn(4000, 3, generator=rng) * 2
    labels = torch.bernoulli(true.sigmoid(), generator=rng)
    logits = torch.cat([true[:, :1] * 2 + 1, (true[:, 1:] - 0.5) / 3], dim=1)
    labels[:50, 1] = float("nan")
    head = make_head()
    calibrate_head(head, logits, labels)
    found = head.calibration.tolist()
    assert found[0] == pytest.approx([3.0, 0.5], abs=0.2)
    assert found[1] == pytest.approx([0.5, -0.5], abs=0.15)


def test_few_rows_change_little():
    head = make_head()
    calibrate_head(head, torch.tensor([[3.0, 3.0], [-3.0, -3.0]]), torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    torch.testing.assert_close(head.calibration, torch.tensor([[1.0, 0.0], [1.0, 0.0]]), atol=0.3, rtol=0)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_calibration_needs_both_kinds(label):
    with pytest.raises(ConfigError, match="unsafe and safe"):
        calibrate_head(make_head(), torch.randn(10, 3), torch.full((10, 3), label))


@pytest.mark.slow
def test_a_head_learns_what_only_prompt_and_image_together_tell():
    """Unsafe is what the image shows and the prompt asks for; directions are new in every batch, so none is learnt."""
    torch.manual_seed(0)
    head = CrossAttentionHead(HeadConfig(48, inner=32, heads=2, rank=4))
    optimizer = torch.optim.Adam(head.parameters(), 0.01)

    def batch(rows=64):
        phrases = torch.nn.functional.normalize(torch.randn(1, 2, 1, 48), dim=-1)
        shown, said = torch.randint(0, 2, (2, rows, 2)).bool()
        image, prompt = torch.randn(1, rows, 4, 48) * 0.05, torch.randn(1, rows, 3, 48) * 0.05
        image[0, :, 1:3] += shown[..., None] * phrases[0, :, 0]
        prompt[0, :, 1:3] += said[..., None] * phrases[0, :, 0]
        kinds = torch.zeros(1, 2, 1, dtype=torch.long)
        return image, prompt, torch.ones(1, rows, 3, dtype=torch.bool), phrases, kinds, shown & said

    for _ in range(250):
        image, prompt, mask, phrases, kinds, label = batch()
        _, category = head(image, prompt, mask, head.queries(phrases, kinds))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(category[0], label.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        image, prompt, mask, phrases, kinds, label = batch(500)
        right = ((head(image, prompt, mask, head.queries(phrases, kinds))[1][0] > 0) == label).float().mean()
        silent = (
            ((head(image, prompt, ~mask, head.queries(phrases, kinds))[1][0] > 0) == label).float().mean()
        )
    assert right > 0.97
    assert silent < 0.85


def test_where_the_prompt_is_left_out_a_condition_on_it_is_not_met(examples):
    options = FlipOptions(focus=0.0, prompt_condition=1.0)
    [group] = draw_groups(examples, TAXONOMY, options, seed=0, epoch=0, groups=1)
    place = next(k for k, category in enumerate(group.taxonomy) if category.key.startswith("if "))
    still, silent = (
        vary_group(lesson_of(group), SOURCE, replace(STILL, no_prompt=share), Random(0)) for share in (0, 1)
    )
    assert still.hard[:, 1 + place].sum() == 2
    assert silent.hard[:, 1 + place].sum() == 0
    assert still.hard[:, 0].sum() == 4
    assert silent.hard[:, 0].sum() == 2  # those that violate another category
    assert np.isnan(silent.soft).any(axis=0).tolist() == [
        k in (0, 1 + place) for k in range(silent.soft.shape[1])
    ]
    assert not np.isnan(still.soft).any()


def test_scales_have_a_learning_rate_of_their_own(tmp_path):
    args = TrainingArguments(str(tmp_path), learning_rate=0.5, weight_decay=0.1, use_cpu=True)
    head = make_head()
    model = Distillation(head, DistillOptions())
    for rate in (1.0, 20.0):
        trainer = DistillTrainer(model=model, args=args, evaluator=lambda _: {}, scale_rate=rate)
        groups = trainer.create_optimizer().param_groups
        found = [p for group in groups for p in group["params"]]
        assert set(map(id, found)) == set(map(id, head.parameters()))
        assert len(found) == len(set(map(id, found)))
        fast = [group for group in groups if group["lr"] == 10.0]
        assert [set(map(id, group["params"])) for group in fast] == [set(map(id, head.scales()))][: rate > 1]
        assert all(group["weight_decay"] == 0 for group in fast)
