"""A student as ONNX files answers as it does in PyTorch, also where there is no torch."""

import json
import os
import random
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pytest
from cachetools import LRUCache
from PIL import Image
from scipy.special import logit

from judge import load_classifier
from judge.data.preprocessing import ImagePreprocessing
from judge.errors import CheckpointError, ConfigError, MissingExtraError
from judge.lessons.envelope import LessonsEnvelope
from judge.lessons.evidence import Evidence, read_text
from judge.lessons.record import Record, record_to_dict
from judge.protocol import ScoresFeatures
from judge.serve.cli import main
from judge.student.onnx import OnnxStudent, load_onnx_student
from judge.student.onnx_files import SIDES
from prompts import Taxonomy, load_taxonomy
from prompts.taxonomy import Category

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

ROOT = Path(__file__).parents[1]
NEEDED = (
    *("numpy", "pillow", "pyyaml", "cachetools", "onnxruntime", "tokenizers", "typer"),
    # what typer imports
    *("annotated-doc", "shellingham"),
    *("pydantic", "pydantic-core", "annotated-types", "typing-extensions", "typing-inspection"),
)
"""Distributions that `arbiter judge --judge student.onnx` needs; none of them brings torch."""
FEW = Taxonomy(
    "few", 1, (Category("dogs", "dog; cat", ("toy",)), Category("rain", "rain"), Category("7", "7"))
)
MANY = Taxonomy("many", 1, tuple(Category(f"no {number}", "red; blue") for number in range(20)))


@pytest.fixture
def copied(exported, tmp_path):
    """The path of an export that may be damaged."""
    shutil.copytree(exported("clip")[1].parent, tmp_path / "copy")
    return tmp_path / "copy" / "student.onnx"


def edit(path, **changes):
    manifest = path.with_suffix(".json")
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | changes))


def assert_same(ours, theirs, tolerance=1e-4):
    """Logits agree: probabilities near 0 or 1 would hide differences."""
    assert ours.reasons == theirs.reasons
    np.testing.assert_allclose(logit(theirs.unsafe), logit(ours.unsafe), atol=tolerance)
    np.testing.assert_allclose(
        logit(theirs.category_probabilities), logit(ours.category_probabilities), atol=tolerance
    )
    np.testing.assert_allclose(logit(theirs.categories), logit(ours.categories), atol=3 * tolerance)
    judged = ~np.isnan(theirs.unsafe)
    assert (theirs.categories[judged].max(axis=1) == theirs.unsafe[judged]).all()  # on one scale


@pytest.mark.slow
@pytest.mark.parametrize("family", ["clip", "siglip", "mean", "tiny-clip"])
def test_onnx_answers_as_pytorch(exported, noise_image, family):
    student, path = exported(family)
    runtime = load_onnx_student(path)
    images = [
        noise_image(seed, size) for seed, size in enumerate([(20, 16), (16, 41), (90, 33), (16, 16), (5, 7)])
    ]
    said = ["two dogs", None, " ", "a very long prompt, longer than one window " * 9, "\ud800 rain"]
    for taxonomy in (FEW, MANY, FEW.select(["rain"]), FEW.names_only()):
        for batch in (1, 3, 5):
            for prompts in (None, said[:batch], [None] * batch):
                ours = student.score(images[:batch], prompts, taxonomy)
                assert_same(ours, runtime.score(images[:batch], prompts, taxonomy))
    assert (
        np.ptp(logit(ours.categories), axis=0).max() > 0.1
    )  # answers that hardly differ would hide mistakes
    assert runtime.name == student.name
    assert runtime.default_taxonomy == student.default_taxonomy


def test_batches_do_not_matter(exported, noise_image):
    _, path = exported("clip")
    images, prompts = [noise_image(seed) for seed in range(5)], ["a", None, "rain " * 9, None, "toy"]
    small, large = OnnxStudent(path, batch_size=2), OnnxStudent(path, batch_size=32)
    assert_same(large.score(images, prompts, FEW), small.score(images, prompts, FEW))


def test_images_are_encoded_once_for_several_taxonomies(exported, noise_image):
    runtime = load_onnx_student(exported("clip")[1], batch_size=2)
    assert isinstance(runtime, ScoresFeatures)
    images = [noise_image(seed, (30 + seed, 40)) for seed in range(3)]
    prompts = [None, "two dogs", "neon " * 40]
    pixels = np.stack([runtime.image_preprocessing.resized(image) for image in images])
    features = runtime.encode_resized(pixels)
    np.testing.assert_array_equal(features, runtime.encode_images(images))
    runtime.envelope = LessonsEnvelope.of([FEW], ["neon " * 50])
    for scores, taxonomy in zip(
        runtime.score_features(features, prompts, [FEW, MANY, FEW.select(["7"])]),
        [FEW, MANY, FEW.select(["7"])],
        strict=True,
    ):
        alone = runtime.score(images, prompts, taxonomy)
        np.testing.assert_allclose(scores.unsafe, alone.unsafe, atol=1e-5)
        np.testing.assert_allclose(scores.category_probabilities, alone.category_probabilities, atol=1e-5)
        assert (scores.reasons, scores.notes) == (alone.reasons, alone.notes)
        assert scores.decided_by == ("student",) * 3
        assert np.isnan(scores.unsafe).all() == (taxonomy == MANY)


def test_a_permuted_taxonomy_permutes_the_answers(exported, noise_image):
    runtime = load_onnx_student(exported("siglip")[1])
    shuffled = MANY.shuffled(random.Random(3))
    images, prompts = [noise_image(0), noise_image(1)], ["rain", None]
    before, after = (runtime.score(images, prompts, taxonomy) for taxonomy in (MANY, shuffled))
    np.testing.assert_allclose(after.unsafe, before.unsafe, atol=1e-5)
    places = [MANY.index(name) for name in shuffled.names]
    np.testing.assert_allclose(after.categories, before.categories[:, places], atol=1e-5)


def test_prompt_and_definition_have_an_effect(exported, noise_image):
    runtime = load_onnx_student(exported("clip")[1])
    runtime.prompt_mode = "use"
    score = lambda prompt, taxonomy: runtime.score([noise_image(0)], [prompt], taxonomy).categories  # noqa: E731
    plain = score("rain", FEW)
    assert np.abs(plain - score("two dogs", FEW)).max() > 1e-4
    assert np.abs(plain - score(None, FEW)).max() > 1e-4
    assert np.abs(plain - score("rain", FEW.reword({"dogs": "a car"}))).max() > 1e-4


def test_no_image_gives_no_score(exported):
    scores = load_onnx_student(exported("clip")[1]).score([], None, FEW)
    assert scores.unsafe.shape == (0,)
    assert scores.categories.shape == (0, 3)


def test_taxonomies_and_phrases_are_read_once(exported, noise_image, monkeypatch):
    from judge.student import onnx as onnx_student

    runtime = load_onnx_student(exported("clip")[1])
    read, monkey = [], runtime.encode_texts
    monkeypatch.setattr(runtime, "encode_texts", lambda texts: read.append(list(texts)) or monkey(texts))
    runtime.queries(FEW)
    runtime.queries(FEW)
    runtime.queries(FEW.extend({"snow": "rain"}))
    assert [len(texts) for texts in read] == [7, 1]
    monkeypatch.setattr(runtime, "_queries", LRUCache(1))
    runtime.queries(FEW)
    runtime.queries(MANY)
    assert list(runtime._queries) == [MANY.hash]
    monkeypatch.setattr(onnx_student, "MAX_CACHED_PHRASES", 0)
    runtime.queries(FEW)
    assert set(runtime._phrases) <= {"dogs", "dog; cat", "dog", "cat", "toy", "rain", "7"}


def test_what_is_not_finite_is_not_judged(exported, noise_image, monkeypatch):
    runtime = load_onnx_student(exported("clip")[1])
    monkeypatch.setattr(
        runtime,
        "logits",
        lambda tokens, readings, taxonomies: [
            (np.array([0.0, np.nan], np.float32), np.array([[1, -1000, 1000], [0, 0, 0]], np.float32))
        ],
    )
    scores = runtime.score([noise_image(0)] * 2, None, FEW)
    np.testing.assert_allclose(scores.category_probabilities[0], [1 / (1 + np.exp(-1)), 0, 1])
    assert scores.unsafe[0] == 0.5
    assert np.isnan(scores.unsafe[1])
    assert np.isnan(scores.categories[1]).all()
    assert scores.reasons == (None, "the student gave no finite score")


@pytest.mark.parametrize("size", [(16, 16), (17, 40), (40, 17), (9, 33), (5, 5), (301, 200)])
@pytest.mark.parametrize(
    "settings",
    [
        {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}},
        {"size": {"shortest_edge": 13}, "crop_size": {"height": 16, "width": 11}, "resample": 2},
        {"size": {"height": 16, "width": 12}, "do_center_crop": False, "image_mean": [0.5] * 3},
        {"do_resize": False, "crop_size": {"height": 18, "width": 25}, "do_normalize": False},
        {
            "size": {"height": 8, "width": 8},
            "do_center_crop": False,
            "do_rescale": False,
            "do_normalize": False,
        },
    ],
)
def test_images_are_prepared_as_transformers_does(noise_image, size, settings):

    from transformers import CLIPImageProcessorPil

    from judge.encoders.processor_settings import image_preprocessing

    processor = CLIPImageProcessorPil(**settings)
    steps = image_preprocessing(processor, name="x")
    image = noise_image(3, size)
    expected = processor(images=[image], return_tensors="np")["pixel_values"][0]
    np.testing.assert_array_equal(steps(image), expected.astype(np.float32))


def test_siglip_images_are_prepared_as_transformers_does(noise_image):

    from transformers import SiglipImageProcessorPil

    from judge.encoders.processor_settings import image_preprocessing

    processor = SiglipImageProcessorPil(size={"height": 20, "width": 20})
    steps = image_preprocessing(processor, name="x")
    image = noise_image(3, (33, 50))
    expected = processor(images=[image], return_tensors="np")["pixel_values"][0]
    np.testing.assert_array_equal(steps(image), expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"do_center_crop": False},  # sizes would differ from image to image
        {"size": {"longest_edge": 16}},
        {"do_pad": True},
    ],
)
def test_unknown_image_processors_are_refused(settings):

    from transformers import CLIPImageProcessorPil

    from judge.encoders.processor_settings import image_preprocessing

    with pytest.raises(CheckpointError, match="prepares images by CLIPImageProcessorPil"):
        image_preprocessing(CLIPImageProcessorPil(**settings), name="x")


def test_tokenizers_without_a_file_are_refused():
    from types import SimpleNamespace

    from judge.student.export import text_preprocessing

    for tokenizer in (
        SimpleNamespace(),
        SimpleNamespace(backend_tokenizer=1, padding_side="left", pad_token_id=0),
    ):
        with pytest.raises(CheckpointError, match="fast tokenizer that pads and truncates on the right"):
            text_preprocessing(SimpleNamespace(name="x", tokenizer=tokenizer))


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_a_definition_longer_than_the_context_is_read_in_windows(exported, noise_image, family):
    student, path = exported(family)
    runtime, images = load_onnx_student(path), [noise_image(seed) for seed in range(2)]
    text = (
        "a definition of more words than fit at once, as a lawyer writes it, with " + "many more words " * 4
    )
    long = FEW.extend({"long": text.strip()})
    assert student.encoder.token_count(text) > 2 * student.encoder.context
    ours = student.score(images, None, long)
    assert_same(ours, runtime.score(images, None, long))
    assert not np.isnan(ours.categories).any()
    # All of it counts: another last word is another category.
    other = student.score(images, None, FEW.extend({"long": text + "and rain"}))
    assert np.abs(other.category_probabilities[:, -1] - ours.category_probabilities[:, -1]).max() > 1e-6


def test_a_phrase_that_no_number_of_windows_holds(exported):
    student, path = exported("clip")
    taxonomy = FEW.extend({"long": "word " * 399 + "word"})
    with pytest.raises(ConfigError, match=r"all the windows of 12 .* 'word word") as ours:
        student.queries(taxonomy)
    with pytest.raises(ConfigError, match="all the windows of 12 ") as theirs:
        load_onnx_student(path).queries(taxonomy)
    assert str(theirs.value).split("more than")[1] == str(ours.value).split("more than")[1]


@pytest.mark.parametrize("prompt", ["word " * 3000, "\u8a9e" * 200])
def test_a_prompt_that_is_too_long(exported, noise_image, prompt):
    student, path = exported("clip")
    notes = []
    for classifier in (student, load_onnx_student(path)):
        scores = classifier.score([noise_image(0)] * 2, [prompt, "word"], FEW)
        alone = classifier.score([noise_image(0)] * 2, None, FEW)
        assert scores.unsafe[0] == alone.unsafe[0]
        assert scores.reasons == (None, None)
        assert scores.notes[0].startswith("the prompt was not read: ")
        notes.append(scores.notes)
    assert notes[0] == notes[1]
    plain = OnnxStudent(path, prompt_mode="use").score([noise_image(0)], [prompt], FEW)
    assert np.isnan(plain.unsafe[0])


def test_no_prompt_lowers_a_score(exported, noise_image):
    """As in `test_judge_suspicion`, of which this is the exported student's part."""
    rng, letters = random.Random(0), "aeinost 0123,.\u200b\0\u202e\U0001f642\u8a9e\u05d0"
    prompts = ["".join(rng.choices(letters, k=rng.choice([2, 8, 30, 500]))) for _ in range(200)]
    images = [noise_image(place % 4) for place in range(len(prompts))]
    runtime = OnnxStudent(exported("clip")[1], threads=1)
    found, alone = (runtime.score(images, asked, FEW) for asked in (prompts, None))
    assert (found.unsafe >= alone.unsafe).all()
    assert (found.categories >= alone.categories).all()
    assert (found.unsafe > alone.unsafe).any()


def test_one_prompt_each(exported, noise_image):
    with pytest.raises(ValueError, match="1 images but 2 prompts"):
        load_onnx_student(exported("clip")[1]).score([noise_image(0)], ["a", "b"], FEW)


def test_lessons_travel_with_an_export(copied, noise_image):
    envelope = LessonsEnvelope.of([FEW], ["two dogs"])
    evidence = Evidence(frozenset({read_text(FEW.categories[0])}), {"rain": 0.9})
    edit(copied, lessons=record_to_dict(Record(envelope, evidence)))
    student = load_onnx_student(copied)
    assert (student.envelope, student.evidence) == (envelope, evidence)
    assert np.isfinite(student.score([noise_image(0)], ["two dogs"], FEW).unsafe).all()
    outside = student.score([noise_image(0)], None, MANY)
    assert np.isnan(outside.unsafe).all()
    assert "20 categories" in outside.reasons[0]
    unread = student.score([noise_image(0)], ["собаки"], FEW)
    assert "Cyrillic" in unread.notes[0]
    assert unread.unsafe == student.score([noise_image(0)], None, FEW).unsafe


def test_files_that_are_missing(copied, tmp_path):
    with pytest.raises(CheckpointError, match="arbiter export RUN"):
        load_onnx_student(tmp_path / "nothing.onnx")
    copied.with_suffix(".text.onnx").unlink()
    with pytest.raises(CheckpointError, match=r"student.text.onnx cannot be read"):
        load_onnx_student(copied)
    copied.with_suffix(".json").unlink()
    with pytest.raises(CheckpointError, match=r"student.json is missing"):
        load_onnx_student(copied)


@pytest.mark.parametrize("side", SIDES)
def test_files_that_are_damaged(copied, side):
    from judge.runs.files import file_hash

    file = copied.with_suffix(SIDES[side])
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="is not the file that was exported"):
        load_onnx_student(copied)
    manifest = json.loads(copied.with_suffix(".json").read_text())
    edit(copied, sha256=manifest["sha256"] | {side: file_hash(file)})
    with pytest.raises(CheckpointError, match=f"{file.name} is damaged"):
        load_onnx_student(copied)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 1}, "export format 1"),
        ({"kinds": ["name"]}, "export it again"),
        ({"format": "one"}, "is damaged"),
        ({"sha256": []}, "is damaged"),
        ({"head": {}}, "is damaged"),
        ({"image": {"size": 3}}, "is damaged"),
        ({"taxonomy": {"name": "x"}}, "is damaged"),
        ({"lessons": {"trained": 4}}, "damaged record"),
    ],
)
def test_manifests_of_something_else(copied, changes, message):
    edit(copied, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_onnx_student(copied)


def test_a_manifest_that_is_no_json(copied):
    copied.with_suffix(".json").write_text("{")
    with pytest.raises(CheckpointError, match=r"student.json is damaged"):
        load_onnx_student(copied)


@pytest.mark.parametrize("package", ["onnxruntime", "tokenizers"])
def test_running_without_the_extra(exported, monkeypatch, package):
    _, path = exported("clip")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"needs {package}; .*arbiter-vision\[onnx\]"):
        load_onnx_student(path)


def test_exporting_without_the_extra(monkeypatch, tmp_path):
    from judge.student import export

    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(MissingExtraError, match=r"needs onnxscript; .*arbiter-vision\[onnx\]"):
        export.export_student("runs/student", tmp_path / "student.onnx")


def test_nothing_is_overwritten(exported, tmp_path):
    from judge.student.export import export_student

    student, path = exported("clip")
    with pytest.raises(ConfigError, match="nothing is overwritten"):
        export_student(student, path)
    (tmp_path / "new.tokenizer.json").write_text("mine")
    with pytest.raises(ConfigError, match=r"new.tokenizer.json: there already"):
        export_student(student, tmp_path / "new.onnx")
    with pytest.raises(ConfigError, match=r"must end in .onnx"):
        export_student(student, tmp_path / "new.pt")
    assert [file.name for file in tmp_path.iterdir()] == ["new.tokenizer.json"]


def test_other_precisions_are_not_exported(fresh_student, tmp_path):
    from judge.student.export import export_student

    fresh_student.encoder.model.half()
    with pytest.raises(ConfigError, match="float32 on the CPU"):
        export_student(fresh_student, tmp_path / "student.onnx")


def test_an_export_that_answers_otherwise_is_not_kept(fresh_student, tmp_path, monkeypatch):
    from judge.student import export

    for wrong in (0.01, float("nan")):
        monkeypatch.setattr(export, "largest_difference", lambda *_, wrong=wrong: wrong)
        monkeypatch.setattr(export, "write_graphs", lambda student, size, made, int8: None)
        monkeypatch.setattr(export, "file_hash", lambda file: "")
        monkeypatch.setattr(export, "OnnxStudent", lambda file: None)
        with pytest.raises(CheckpointError, match="differs from PyTorch"):
            export.export_student(fresh_student, tmp_path / "student.onnx")
        assert not list(tmp_path.iterdir())


def test_graphs_in_several_files_are_refused(fresh_student, tmp_path, monkeypatch):
    from judge.student import export

    def write(student, size, made, int8):
        made["image"].with_name("student.onnx.data").write_bytes(b"")

    monkeypatch.setattr(export, "write_graphs", write)
    with pytest.raises(CheckpointError, match=r"one ONNX file of 2 GB .* int8"):
        export.export_student(fresh_student, tmp_path / "student.onnx")
    assert not list(tmp_path.iterdir())


def test_only_students_are_exported(tmp_path, capsys):
    from judge.runs.folder import RunDir

    RunDir.create(tmp_path / "run", kind="vlm")
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "student.onnx")]) == 2
    assert "is a run of kind 'vlm', not 'student'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_in_int_8_judges_digits_alike(exported, tmp_path, monkeypatch, capsys):
    """Its graphs are those in float32, quantised; tracing them again would take most of the time."""
    from judge.data.images import open_image
    from judge.runs.folder import RunDir
    from judge.standins.digits import digits_examples
    from judge.student import graphs
    from judge.student.student import save_student

    student, traced = exported("tiny-clip")

    def quantise(side, inputs, outputs, file, then):
        shutil.copy(traced.with_name(file.name.replace("small", traced.stem)), file)
        if then is not None:
            then(file)

    monkeypatch.setattr(graphs, "_export", quantise)
    encoder, run = student.encoder, RunDir.create(tmp_path / "run", kind="student")
    run.write_taxonomy(load_taxonomy("digits"))
    save_student(run, student)
    out = tmp_path / "small.onnx"
    assert main(["export", str(run.path), str(out), "--int8"]) == 0
    assert "largest difference" in capsys.readouterr().out
    assert out.stat().st_size < 0.7 * 4 * sum(p.numel() for p in encoder.model.vision_model.parameters())
    texts = out.with_suffix(".text.onnx"), traced.with_suffix(".text.onnx")
    assert texts[0].stat().st_size < 0.45 * texts[1].stat().st_size  # its table of embeddings as well
    runtime = load_classifier(out)
    assert isinstance(runtime, OnnxStudent)
    assert runtime.manifest["precision"] == "int8"
    images = [open_image(example.image) for example in digits_examples("test", count=80)]
    taxonomy = load_taxonomy("digits")
    ours, theirs = (one.score(images, None, taxonomy) for one in (student, runtime))
    assert np.abs(ours.categories - theirs.categories).mean() < 0.02
    assert ((ours.categories > 0.5) == (theirs.categories > 0.5)).mean() > 0.98
    assert main(["export", str(run.path), str(out)]) == 2
    assert "nothing is overwritten" in capsys.readouterr().err


def environment_without_torch(folder):
    """A virtual environment in which only what an exported student needs can be imported."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    [packages] = folder.glob("lib/python*/site-packages")
    for name in NEEDED:
        home = distribution(name)
        for top in {file.parts[0] for file in home.files or () if file.parts[0] not in ("..", "__pycache__")}:
            (packages / top).symlink_to(Path(str(home.locate_file(top))))
    return folder / "bin" / "python"


def test_judging_without_torch(exported, noise_image, tmp_path):
    student, path = exported("tiny-clip")
    python = environment_without_torch(tmp_path / "environment")
    for missing in ("torch", "transformers", "huggingface_hub", "scipy"):
        assert subprocess.run([python, "-c", f"import {missing}"], capture_output=True).returncode == 1
    noise_image(5, (50, 40)).save(tmp_path / "image.png")
    command = [python, "-m", "judge.serve.cli", "judge", str(tmp_path / "image.png"), "--judge", str(path)]
    done = subprocess.run(
        [*command, "--taxonomy", "digits", "--prompt", "a photo of three", "--json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]},
    )
    assert done.returncode in (0, 1), done.stderr
    verdict = json.loads(done.stdout)
    scores = student.score(
        [Image.open(tmp_path / "image.png").convert("RGB")], ["a photo of three"], load_taxonomy("digits")
    )
    assert verdict["unsafe"] == pytest.approx(scores.unsafe[0], abs=1e-5)


def test_judging_imports_no_torch_where_it_is_installed(exported, noise_image, tmp_path):
    noise_image(5).save(tmp_path / "image.png")
    code = (
        "import sys\nfrom judge.serve.cli import main\n"
        f"main(['judge', {str(tmp_path / 'image.png')!r}, '--judge', {str(exported('tiny-clip')[1])!r}])\n"
        "print(*sorted({'torch', 'transformers', 'huggingface_hub', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "image.png" in done.stdout
    assert done.stdout.splitlines()[-1] == ""


def test_steps_without_any(noise_image):
    steps = ImagePreprocessing(resize=None, resample=3, crop=None, scale=None, mean=None, deviation=None)
    image = noise_image(0)
    np.testing.assert_array_equal(steps(image), np.asarray(image).transpose(2, 0, 1))
