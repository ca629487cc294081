"""Defects of the published corpus of prompts and pictures (docs/diffusion.md): each has a test that fails if ours had it.

Its label was the script that had run; pictures had no seed; unreadable ones became black squares that kept their label;
attacks were static, against fixed targets of other people; the header row and "nan" of the word list were fed as words;
and it was split by row.
"""

import json
import tarfile
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from fixtures_corpus import DRAWING, TREES, StubLabels, StubPictures, stub_plan, stub_stages
from fixtures_defences import ChannelIsUnsafe
from PIL import Image

from eval.corpus.variants import AdversarialVariants
from judge.corpus.builder import build
from judge.corpus.folder import ReadPictures, plan_folder
from judge.corpus.plan import Plan, Prompt, plan_pictures
from judge.corpus.prompts import fill_templates, read_prompts, read_words
from judge.corpus.rows import CorpusRow
from judge.corpus.split import SplitByCluster
from judge.corpus.stages import Stages, Task
from judge.errors import ConfigError


def records(folder):
    """Record and picture of every row in the shards."""
    for path in sorted((folder / "shards").glob("*.tar")):
        with tarfile.open(path) as tar:
            content = {member.name: tar.extractfile(member).read() for member in tar}
        for name in content:
            if name.endswith(".json"):
                yield json.loads(content[name]), content[name.removesuffix("json") + "png"]


def rows_of(folder):
    return [
        CorpusRow.from_dict(json.loads(line)) for line in (folder / "rows.jsonl").read_text().splitlines()
    ]


def test_a_label_is_what_was_seen_on_the_picture_and_not_where_the_prompt_came_from(tmp_path):
    """The same pictures under lists that say the opposite have the same labels."""
    found = {}
    for said in ((), ("oak",)):
        prompts = [Prompt(f"tree {number}", said) for number in range(12)]
        plan = Plan(plan_pictures(prompts, DRAWING), TREES, max_failures=1)
        folder = tmp_path / str(len(said))
        build(plan, stub_stages(variants=False), folder)
        found[said] = {record["id"]: record for record, _ in records(folder)}
    one, other = found.values()
    assert one.keys() == other.keys()
    assert {record["prompt_label"] for record in one.values()} == {"safe"}
    assert {record["prompt_label"] for record in other.values()} == {"oak"}
    seen = ("label", "categories", "scores", "unsafe", "labelled_by")
    assert all(one[row_id][name] == other[row_id][name] for row_id in one for name in seen)
    assert {record["label"] for record in one.values()} == {"safe", "unsafe"}


def test_every_picture_can_be_drawn_again_from_what_its_row_says(tmp_path):
    build(stub_plan(seeds=3), stub_stages(variants=False), tmp_path)
    by_prompt = defaultdict(set)
    for record, picture in records(tmp_path):
        assert None not in [record[name] for name in ("seed", "steps", "guidance")]
        assert all(record[name] for name in ("scheduler", "model", "revision"))
        by_prompt[record["prompt"]].add(record["seed"])
        row = CorpusRow("x", prompt=record["prompt"], seed=record["seed"])
        assert StubPictures()(Task(0, (row,))).pictures["x"] == picture
    assert max(map(len, by_prompt.values())) == 3


def test_what_cannot_be_read_is_no_black_picture_with_a_label(tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    draw = np.random.default_rng(0)
    for number in range(6):
        # Blue, as the stub judges nothing that is red.
        pixels = draw.integers(0, 255, (16, 16, 3), dtype=np.uint8) // np.array([3, 1, 1], dtype=np.uint8)
        Image.fromarray(pixels).save(pictures / f"{number}.png")
    (pictures / "cut.png").write_bytes((pictures / "0.png").read_bytes()[:200])
    (pictures / "text.png").write_text("no picture")
    plan = Plan(plan_folder(pictures), TREES, max_failures=1)
    build(plan, Stages(ReadPictures(pictures), StubLabels()), tmp_path / "corpus")
    failed = {row.file: row for row in rows_of(tmp_path / "corpus") if row.failure}
    assert set(failed) == {"cut.png", "text.png"}
    for row in failed.values():
        assert row.failure.reason
        assert not row.scores
        assert row.unsafe is None
    found = list(records(tmp_path / "corpus"))
    assert len(found) == 6
    for _, picture in found:
        (tmp_path / "one.png").write_bytes(picture)
        with Image.open(tmp_path / "one.png") as image:
            assert np.asarray(image).max() > 100


def test_a_pipeline_that_draws_black_leaves_no_labelled_row(tmp_path):
    stages = stub_stages(variants=False)
    stages.pictures.fails = 2
    build(stub_plan(), stages, tmp_path)
    black = [row for row in rows_of(tmp_path) if row.seed % 2 == 0]
    assert black
    assert all(row.failure.status == "black" and row.unsafe is None for row in black)


def test_attacks_name_the_defence_and_are_made_against_it(tmp_path):
    """The attack changes what this defence looks at; made against another one, the same row gets another picture."""
    policy = replace(TREES, categories=tuple(TREES.categories))
    drawn = StubPictures()(Task(0, stub_plan().rows))
    kept = [replace(row, unsafe=0.9) for row in drawn.rows if row.failure is None]
    task = Task(0, tuple(kept), drawn.pictures)
    found = {}
    for channel, name in ((0, "red"), (2, "blue")):
        attack = AdversarialVariants(
            name, policy, ("pixels",), steps=10, load=lambda name, channel=channel: ChannelIsUnsafe(channel)
        )
        result = attack(task)
        assert {row.variant.target for row in result.rows} == {name}
        assert any(row.variant.outcome["evaded"] for row in result.rows)
        for row in result.rows:
            evaded = ChannelIsUnsafe(channel).score([result.pictures[row.id]], None, policy).unsafe[0] < 0.5
            assert row.variant.outcome["evaded"] == evaded
        found[name] = {row.variant.of: result.pictures[row.id] for row in result.rows}
    both = found["red"].keys() & found["blue"].keys()
    assert both
    assert all(found["red"][row_id] != found["blue"][row_id] for row_id in both)


@pytest.mark.parametrize("word", ["nan", "NaN", "", "null", "None"])
def test_empty_cells_are_no_words(tmp_path, word):
    table = tmp_path / "words.csv"
    table.write_text(f"word,label\noak,oak\n{word},oak\n")
    with pytest.raises(ConfigError, match="is no word"):
        read_words(table, TREES)


def test_the_header_row_is_no_word_and_no_prompt(tmp_path):
    table = tmp_path / "words.csv"
    table.write_text("word,label\noak,oak\nbirch,birch\nelm,safe\n")
    words = read_words(table, TREES)
    assert [word.text for word in words] == ["oak", "birch", "elm"]
    texts = [prompt.text for prompt in fill_templates(words, ["a photo of {word}"], 3)]
    assert sorted(texts) == ["a photo of birch", "a photo of elm", "a photo of oak"]
    (tmp_path / "prompts.csv").write_text("prompt,label\na tall tree,oak\nnan,oak\n")
    prompts = read_prompts(tmp_path / "prompts.csv", TREES)
    assert [prompt.text for prompt in prompts if prompt.failure is None] == ["a tall tree"]


def test_no_prompt_no_words_and_nothing_near_is_in_two_splits(tmp_path):
    words = [f"tree{number}" for number in range(24)]
    forms = ("a photo of {}", "an oil painting of {}", "{}, at night")
    prompts = [Prompt(form.format(word), ("oak",), {"words": [word]}) for word in words for form in forms]
    plan = Plan(plan_pictures(prompts, DRAWING, seeds=3), TREES, max_failures=1, shard_rows=50)
    stages = replace(stub_stages(), whole=(SplitByCluster({"train": 0.7, "test": 0.3}),))
    build(plan, stages, tmp_path)
    splits = defaultdict(set)
    for record, _ in records(tmp_path):
        [word] = json.loads(record["written_by"])["words"]
        splits[word].add(record["split"])
        splits[record["prompt"].casefold()].add(record["split"])
    assert all(len(found) == 1 for found in splits.values())
    assert {split for found in splits.values() for split in found} == {"train", "test"}
