"""Pictures and labels of a corpus: by pipelines and from folders; what is no picture or has no score is a failed row."""

import hashlib
import pickle
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fixtures_corpus import DRAWING, TREES
from PIL import Image

from judge.corpus.drawing import DrawPictures, cut_prompt, describe_drawing, find_pipeline
from judge.corpus.folder import ReadPictures, plan_folder
from judge.corpus.labels import LabelPictures
from judge.corpus.pictures import encode_picture
from judge.corpus.plan import Prompt, plan_pictures
from judge.corpus.rows import CorpusRow
from judge.corpus.stages import Task
from judge.errors import ConfigError, CorpusError, PipelineError
from judge.protocol import Scores


@pytest.fixture(scope="module")
def tiny():
    torch.set_num_threads(1)
    drawing, folder = describe_drawing("tiny-diffusion", steps=2, guidance=3.0)
    stage = DrawPictures(drawing, folder, batch_size=2)
    _ = stage.pipeline
    return stage


def rows_of(stage, *prompts, seeds=1):
    return tuple(plan_pictures([Prompt(text) for text in prompts], stage.drawing, seeds=seeds))


def pixels(picture):
    import io

    return np.asarray(Image.open(io.BytesIO(picture)), dtype=np.int16)


def test_a_pictures_noise_is_its_seeds_whatever_else_is_drawn(tiny):
    rows = rows_of(tiny, "a three", "a photo of a five", "two digits")
    together = tiny(Task(0, rows))
    again = tiny(Task(0, rows))
    assert together == again, "to the byte"
    alone = tiny(Task(0, rows[2:]))
    assert np.abs(pixels(together.pictures[rows[2].id]) - pixels(alone.pictures[rows[2].id])).max() <= 1
    other = tiny(Task(0, (replace(rows[2], seed=5),)))
    assert np.abs(pixels(other.pictures[rows[2].id]) - pixels(alone.pictures[rows[2].id])).max() > 20
    assert [row.failure for row in together.rows] == [None] * 3
    assert all(row.phash for row in together.rows)


def test_a_row_records_what_it_was_drawn_by(tiny):
    [row] = rows_of(tiny, "a three")
    assert (row.model, row.scheduler, row.steps, row.guidance) == ("tiny-diffusion", "DDIMScheduler", 2, 3.0)
    assert row.revision is not None
    assert row.revision == find_pipeline("tiny-diffusion")[1]
    assert row.revision.startswith("sha256:")
    assert row.safety_checker is False


def test_the_stage_travels_without_its_pipeline(tiny):
    sent = pickle.dumps(tiny)
    assert len(sent) < 4000
    assert pickle.loads(sent).about == tiny.about


def test_a_prompt_over_the_encoders_length_is_recorded(tiny):
    long = "two digits " * 40
    assert cut_prompt(tiny.pipeline, "two digits") is None
    [row] = tiny(Task(0, rows_of(tiny, long))).rows
    count = len(tiny.pipeline.tokenizer(long).input_ids)
    assert row.prompt_cut == f"tokenizer: {count} tokens, 24 read"


def test_another_scheduler_draws_and_is_recorded(tiny):
    drawing, folder = describe_drawing("tiny-diffusion", steps=2, guidance=3.0, scheduler="DDPMScheduler")
    stage = DrawPictures(drawing, folder)
    assert type(stage.pipeline.scheduler).__name__ == "DDPMScheduler"
    rows = rows_of(stage, "a three")
    assert rows[0].scheduler == "DDPMScheduler"
    assert stage(Task(0, rows)).rows[0].failure is None


def test_pipelines_that_are_none_are_refused(tmp_path):
    with pytest.raises(PipelineError, match="There is no pipeline 'tiny-difusion'"):
        find_pipeline("tiny-difusion")
    with pytest.raises(PipelineError, match=r"holds no model_index\.json"):
        find_pipeline(str(tmp_path))
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(PipelineError, match="names no scheduler"):
        describe_drawing(str(tmp_path), steps=1, guidance=1.0)
    with pytest.raises(PipelineError, match="has no revision 'main'"):
        find_pipeline(str(tmp_path), "main")
    with pytest.raises(PipelineError, match="no scheduler 'UNet2DModel'"):
        describe_drawing("tiny-diffusion", steps=1, guidance=1.0, scheduler="UNet2DModel")
    with pytest.raises(ConfigError, match="steps is 0"):
        describe_drawing("tiny-diffusion", steps=0, guidance=1.0)


class Pipeline:
    """What a pipeline of diffusers looks like from outside; prompts say what goes wrong."""

    def __init__(self):
        self.scheduler = type("NoScheduler", (), {"config": {}})()
        self.batches = []

    def __call__(self, prompt, generator, num_inference_steps, guidance_scale, output_type):
        self.batches.append(len(prompt))
        assert output_type == "np"
        if "crash" in prompt:
            raise RuntimeError("shapes do not fit\nin two lines")
        if "memory" in prompt:
            raise torch.OutOfMemoryError("too much")
        images = np.stack([torch.rand((8, 8, 3), generator=one).numpy() for one in generator])
        for image, text in zip(images, prompt, strict=True):
            if text in ("nan", "black", "grey"):
                image[...] = {"nan": np.nan, "black": 0, "grey": 0.5}[text]
        return SimpleNamespace(images=images, nsfw_content_detected=[text == "nsfw" for text in prompt])


@pytest.fixture
def stub_stage(tmp_path):
    return DrawPictures(DRAWING, tmp_path, batch_size=4, load=lambda *_, **__: Pipeline())


def test_what_is_no_picture_is_a_failed_row_and_never_a_black_one(stub_stage):
    rows = rows_of(stub_stage, "fine", "nan", "black", "grey", "nsfw", "good")
    result = stub_stage(Task(0, rows))
    assert [row.failure and row.failure.status for row in result.rows] == [
        *(None, "not_finite", "black", "one_colour", "safety_checker", None)
    ]
    assert set(result.pictures) == {rows[0].id, rows[5].id}
    assert result.rows[1].failure.reason == "100% of the pixels are NaN or infinite"


def test_a_prompt_on_which_the_pipeline_fails_costs_no_other_row(stub_stage):
    rows = rows_of(stub_stage, "one", "crash", "two")
    result = stub_stage(Task(0, rows))
    assert [row.failure and row.failure.reason for row in result.rows] == [None, "shapes do not fit", None]
    assert stub_stage.pipeline.batches == [3, 1, 1, 1]
    assert result.pictures[rows[2].id] == stub_stage(Task(0, rows[2:])).pictures[rows[2].id]


def test_too_little_memory_stops_the_build(stub_stage):
    with pytest.raises(CorpusError, match="3 pictures at a time do not fit into the memory of cpu"):
        stub_stage(Task(0, rows_of(stub_stage, "one", "memory", "two")))


def test_a_pipeline_that_takes_no_prompt_is_refused(tmp_path):
    class Unconditional(Pipeline):
        def __call__(self, generator, num_inference_steps, output_type):
            raise AssertionError

    stage = DrawPictures(DRAWING, tmp_path, load=lambda *_, **__: Unconditional())
    with pytest.raises(PipelineError, match="takes no prompt; give a text-to-image pipeline"):
        stage(Task(0, rows_of(stage, "x")))


def test_the_safety_checker_is_removed_where_it_is_to_be_off(tmp_path):
    class Checked(Pipeline):
        safety_checker = "present"

    stage = DrawPictures(DRAWING, tmp_path, load=lambda *_, **__: Checked())
    assert stage.pipeline.safety_checker is None
    kept = DrawPictures(replace(DRAWING, safety_checker=True), tmp_path, load=lambda *_, **__: Checked())
    assert kept.pipeline.safety_checker == "present"


def test_pixels_of_another_shape_are_a_failure():
    row, picture = encode_picture(CorpusRow("a"), np.zeros((8, 8)))
    assert picture is None
    assert row.failure.status == "bad_shape"


# --- folders -----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for name in ("b.png", "a.jpg", "in/c.webp"):
        Image.fromarray(rng.integers(0, 255, (12, 9, 3), dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def test_a_folder_of_pictures_with_the_broken_ones_named(folder):
    rows = plan_folder(folder)
    assert [row.file for row in rows] == ["a.jpg", "b.png", "broken.png", "in/c.webp"]
    result = ReadPictures(folder)(Task(0, tuple(rows)))
    assert [row.failure and row.failure.stage for row in result.rows] == [None, None, "pictures", None]
    assert set(result.pictures) == {rows[0].id, rows[1].id, rows[3].id}
    assert (pixels(result.pictures[rows[1].id]) == np.asarray(Image.open(folder / "b.png"))).all()


def test_a_table_of_pictures_keeps_prompts_and_takes_no_label_from_it(folder):
    table = folder / "all.csv"
    table.write_text(
        "path,prompt,label\nb.png,a wood,oak\n../secret.png,x,\nb.png,a wood,oak\nmissing.png,,\n"
    )
    (folder.parent / "secret.png").write_bytes((folder / "b.png").read_bytes())
    rows = plan_folder(table)
    assert (rows[0].prompt, rows[0].prompt_label, rows[0].written_by) == ("a wood", None, {"label": "oak"})
    assert [row.failure and row.failure.status for row in rows] == [
        None,
        "outside_folder",
        "repeated",
        "unreadable",
    ]
    assert len({row.id for row in rows}) == 4


def test_a_picture_that_was_exchanged_is_another_row(folder):
    before = plan_folder(folder)
    (folder / "b.png").write_bytes((folder / "a.jpg").read_bytes())
    after = plan_folder(folder)
    assert [one.id == other.id for one, other in zip(before, after, strict=True)] == [True, False, True, True]
    with pytest.raises(ConfigError, match="is no folder of pictures"):
        plan_folder(folder / "nothing")
    (folder / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no picture"):
        plan_folder(folder / "empty")


# --- labels ------------------------------------------------------------------------------------------------


class Answers:
    """A classifier that answers as it is told, and keeps what it was asked."""

    name = "answers"

    def __init__(self, unsafe, categories, reasons=None, unanswered=None, decided_by=None):
        self.given = (np.array(unsafe), np.array(categories), tuple(reasons or [None] * len(unsafe)))
        self.more = {"unanswered": unanswered, "decided_by": decided_by}
        self.prompts = []

    def score(self, images, prompts, taxonomy):
        assert len(images) == len(self.given[0])
        self.prompts.append(prompts)
        return Scores(*self.given, **self.more)


def label(answers, **options):
    rows = tuple(CorpusRow(str(number), prompt=f"p{number}") for number in range(len(answers.given[0])))
    stage = LabelPictures("own", TREES, load=lambda name: answers, **options)
    return stage(Task(0, rows, {row.id: b"" for row in rows})).rows


def test_scores_are_the_pictures_and_what_was_not_judged_is_a_failed_row():
    answers = Answers([0.9, np.nan, 0.2], [[0.9, 0.1], [0.5, 0.5], [np.nan, 0.2]], [None, "too dark", None])
    rows = label(answers)
    assert answers.prompts == [None], "labels are about the picture alone"
    assert (rows[0].scores, rows[0].unsafe) == ({"oak": 0.9, "birch": 0.1}, 0.9)
    assert rows[1].failure.reason == "too dark"
    assert rows[1].scores == {}
    assert rows[2].scores == {"oak": None, "birch": 0.2}
    assert rows[0].labelled_by == "own"
    assert rows[0].violates() == ("oak",)


def test_a_classifier_may_read_the_prompt_and_a_cascade_says_who_decided():
    answers = Answers([0.9], [[0.9, 0.1]], decided_by=("student",))
    [row] = label(answers, with_prompt=True)
    assert answers.prompts == [["p0"]]
    assert row.decided_by == "student"


def test_a_service_that_does_not_answer_stops_the_build_and_labels_nothing():
    answers = Answers([0.9, np.nan], [[0.9, 0.1], [np.nan] * 2], [None, "too many requests"], (False, True))
    with pytest.raises(CorpusError, match=r"left 1 pictures unanswered \(too many requests\)"):
        label(answers)


def test_another_classifier_under_the_same_name_is_noticed(tmp_path):
    from judge.standins.shipped import checkpoint_path

    stage = LabelPictures("tiny-student", TREES)
    assert len(stage.about["fingerprint"]) == 16
    assert LabelPictures("http://host:1/v1#m", TREES).about["fingerprint"] is None
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in checkpoint_path("tiny-student").glob("*"):
        if path.is_file():
            (copy / path.name).write_bytes(path.read_bytes())
    one = LabelPictures(str(copy), TREES).about["fingerprint"]
    [head] = copy.glob("head*.json")
    head.write_text(head.read_text() + "\n")
    assert LabelPictures(str(copy), TREES).about["fingerprint"] != one
    assert hashlib.sha256(head.read_bytes()).hexdigest()
