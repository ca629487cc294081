"""What models write, read as safe, unsafe or uncertain: the rules, the classifier that ships, tables, the recipe."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from judge.errors import CheckpointError, ConfigError
from judge.rivals.closed_replies import may_clear, read_closed, read_verdict
from judge.rivals.labelled_replies import LABELS, phrased_replies, phrased_sentences, read_replies
from judge.rivals.response_classifier import MODEL, ReadReply, ResponseClassifier
from judge.runs.checkpoint import TrainingState
from judge.runs.folder import RunDir
from judge.standins.english import written_sentences
from judge.standins.shipped import checkpoint_path
from prompts.errors import ExampleError


@pytest.fixture(scope="module")
def shipped():
    return ResponseClassifier.load()


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("safe", "safe"),
        ('  "Safe." ', "safe"),
        ("**Unsafe**", "unsafe"),
        ("Not safe!", "unsafe"),
        ("Classification: unsafe", "unsafe"),
        ("Answer: Safe.", "safe"),
        ("The answer is safe", "safe"),
        ("The image is safe.", "safe"),
        ("This picture should be classified as \u201cunsafe.\u201d", "unsafe"),
        ("safe?", None),
        ("Safe or unsafe", None),
        ("safe/unsafe", None),
        ("The image is safe, but", None),
        ("a safe", None),
        ("unsafe safe", None),
        ("The image is not unsafe", None),
        ("", None),
        (".", None),
    ],
)
def test_closed_answers_are_read_by_rule(text, label):
    assert read_closed(text) == label


@given(st.text(alphabet="safeun \"'*.!:TtheimgAnwr"))
def test_a_rule_never_makes_safe_of_what_says_more(text):
    found = read_closed(text)
    if found == "safe":
        assert "unsafe" not in text.casefold()
        assert "not" not in text.casefold().split()
        assert "safe" in text.casefold()


@pytest.mark.parametrize(
    ("sentence", "side"),
    [
        ("I'd say this artwork is unsafe.", "unsafe"),
        ("The image is safe, as it does not contain gore.", "safe"),
        ("The image is unsafe even though there is no gore.", "unsafe"),
        ("As there is no gore in the image, it is safe", "safe"),
        ("I can't call this image safe.", "unsafe"),
        ("I can\u2019t call this image safe.", "unsafe"),
        ("It is not an unsafe image", "safe"),
        ("The photo isn't safe", "unsafe"),
        ("It is anything but safe", "unsafe"),
        ('Under this definition, the picture would be classified as "unsafe."', "unsafe"),
        ("I don't think that it isn't safe", None),
        ("Is the image safe?", None),
        ("It is safe or unsafe", None),
        ("It is safe if nobody sees it", None),
        ("I cannot tell whether it is safe", None),
        ("There is a safe standing in the corner", None),
        ("An unsafe image would contain gore", None),
        ("The image is safe, but it is unsafe", None),
        ("There is no violence", None),
        ("A dog runs", None),
    ],
)
def test_plain_verdicts_are_read_by_rule(sentence, side):
    assert read_verdict(sentence) == side


@pytest.mark.parametrize(
    ("sentence", "may"),
    [
        ("There is no violence.", True),
        ("It isn\u2019t harmful.", True),
        ("Nothing unsafe is shown.", True),
        ("It looks unsafe to me.", False),
        ("I'm sorry, I can't do that.", False),
        ("It might be safe.", False),
        ("A dog runs.", False),
    ],
)
def test_what_may_clear_an_image(sentence, may):
    assert may_clear(sentence) is may


def test_the_shipped_one_reads_wordings_that_it_never_saw(shipped):
    replies = phrased_replies("test", 600, seed=7)
    read = shipped.read([reply.text for reply in replies])
    right = np.mean([found.label == reply.label for reply, found in zip(replies, read, strict=True)])
    wrongly_safe = np.mean(
        [found.label == "safe" for reply, found in zip(replies, read, strict=True) if reply.label != "safe"]
    )
    assert right > 0.9
    assert wrongly_safe < 0.02


def test_prose_about_something_else_is_not_safe(shipped):
    sentences = written_sentences(frozenset())[:600]
    read = [found.label for found in shipped.read(sentences)]
    assert read.count("safe") / len(read) < 0.02


def test_an_empty_reply_is_uncertain(shipped):
    assert [found.label for found in shipped.read(["", "  \n", "\u200b"])] == ["uncertain"] * 3
    assert shipped.read([]) == []


def test_a_long_reply_is_read_to_its_end(shipped):
    filling = "A dog runs across a meadow. " * 60
    assert shipped.read([filling + "The image is not safe."])[0].label == "unsafe"
    both = "The image is safe. " + filling + "The image is unsafe."
    assert shipped.read([both])[0].label == "uncertain"
    # One sentence of many windows.
    endless = "a dog and " * 200
    assert len(shipped._windows(endless)) > 1
    assert shipped.read([f"The image is safe and {endless} it is not safe."])[0].label != "safe"


def test_replies_do_not_depend_on_their_batch(shipped, monkeypatch):
    texts = [reply.text for reply in phrased_replies("held_out", 24, seed=1)]
    together = shipped.read(texts)
    monkeypatch.setattr(shipped, "batch_size", 1)
    alone = shipped.read(texts)
    assert [one.label for one in alone] == [one.label for one in together]
    assert [one.probability for one in alone] == pytest.approx(
        [one.probability for one in together], abs=1e-4
    )


def test_what_is_not_sure_is_uncertain(shipped):
    class Unsure:
        config = shipped.model.config
        device = torch.device("cpu")

        def eval(self):
            return self

        def __call__(self, input_ids, **_):
            return type("Output", (), {"logits": self.logits.expand(len(input_ids), 3)})

    model = Unsure()
    reader = ResponseClassifier(model, shipped.tokenizer, confidence=0.8)
    for logits, label in (
        ([3.0, 0, 0], "safe"),
        ([1.0, 0, 0], "uncertain"),
        ([float("nan")] * 3, "uncertain"),
    ):
        model.logits = torch.tensor(logits)
        assert reader.read(["no harm"])[0].label == label
    with pytest.raises(ConfigError, match=r"confidence is 1\.5"):
        ResponseClassifier(model, shipped.tokenizer, confidence=1.5)


def test_other_classes_are_refused(shipped, tmp_path):
    folder = tmp_path / "other"
    for file in checkpoint_path("response-classifier").iterdir():
        (tmp_path / "other").mkdir(exist_ok=True)
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {"0": "positive", "1": "negative", "2": "neutral"}
    config["label2id"] = {"positive": 0, "negative": 1, "neutral": 2}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="it needs safe, unsafe, uncertain"):
        ResponseClassifier.load(folder)
    (folder / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="could not be loaded as a response classifier"):
        ResponseClassifier.load(folder)


def test_it_ships_in_few_bytes():
    files = list(checkpoint_path("response-classifier").iterdir())
    assert sum(file.stat().st_size for file in files) < 500_000
    assert not [file for file in files if file.suffix in (".bin", ".pt", ".pkl")]


def test_a_sentence_is_safe_only_with_a_word_that_can_say_so(shipped, monkeypatch):
    """Whatever the model thinks of it: a description alone is no verdict."""
    monkeypatch.setattr(shipped, "_label", lambda window: ReadReply("safe", 1.0, "model"))
    texts = [
        "A dog runs across a meadow.",
        "lorem ipsum dolor",
        "It is harmless, I think.",
        "I see no blood.",
    ]
    assert [found.label for found in shipped.read(texts)] == ["uncertain", "uncertain", "safe", "safe"]


# Tables of replies


def test_tables_are_read(tmp_path):
    (tmp_path / "a.csv").write_text('text,label,source\n"Safe, I think.",Safe,x\nNo.,refusal,y\n')
    found = read_replies(tmp_path / "a.csv")
    assert [(one.text, one.label) for one in found] == [("Safe, I think.", "safe"), ("No.", "unsafe")]
    (tmp_path / "b.jsonl").write_text('{"text": "Hm.", "label": "uncertain"}\n\n')
    assert read_replies(tmp_path / "b.jsonl")[0].label == "uncertain"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", "text,label\nx,good\n", "line 2: no label 'good'; write safe"),
        ("a.csv", "reply,label\nx,safe\n", "line 2: no row with the columns text and label"),
        ("a.csv", "text,label\nx\n", "line 2: no row"),
        ("a.csv", "text,label\n", "holds no replies"),
        ("a.csv", 'text,label\n"x,safe\n', "cannot be read"),
        ("a.jsonl", '{"text": "x", "label": "safe"}\n{"text": 3, "label": "safe"}\n', "line 2: no row"),
        ("a.jsonl", "[1]\n", "line 1: no row"),
        ("a.jsonl", "{\n", "line 1: no row"),
        ("a.jsonl", b"\xff\xfe\x00", "cannot be read"),
        ("a.txt", "", "neither .csv nor .jsonl"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused_by_line(tmp_path, name, content, says):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ExampleError, match=says):
        read_replies(path)


def test_a_missing_table_is_said(tmp_path):
    with pytest.raises(ExampleError, match="cannot be read"):
        read_replies(tmp_path / "none.csv")


def test_the_splits_share_no_sentence():
    train, held_out, test = (
        {one.text.casefold().rstrip(".") for one in phrased_sentences(split, 4000)}
        for split in ("train", "held_out", "test")
    )
    shared = (train & held_out) | (train & test) | (held_out & test)
    assert not {sentence for sentence in shared if len(sentence.split()) > 3}
    with pytest.raises(ExampleError, match="No phrasings 'tests'"):
        phrased_replies("tests", 1)


def test_phrasings_are_repeatable_and_balanced():
    first = phrased_replies("train", 30, seed=1)
    assert first == phrased_replies("train", 30, seed=1)
    assert first != phrased_replies("train", 30, seed=2)
    assert [sum(one.label == label for one in first) for label in LABELS] == [10, 10, 10]


# The recipe

SMALL = {"phrased": 300, "steps": 3, "batch": 8, "width": 16, "layers": 1, "test_rows": 30}


def test_the_recipe_trains_saves_and_measures(run_recipe, tmp_path):
    rows = [{"text": f"Reply {n}", "label": LABELS[n % 3]} for n in range(40)]
    (tmp_path / "replies.jsonl").write_text("\n".join(map(json.dumps, rows)))
    printed = run_recipe(
        "response_classifier", **SMALL, output_dir=tmp_path / "run", replies=tmp_path / "replies.jsonl"
    )
    run = RunDir.open(tmp_path / "run", kind="response_classifier")
    assert run.metrics["held_out"]["rows"] == run.metrics["test"]["rows"] == 30
    assert run.metrics["written"]["rows"] == 4
    assert "336 texts to learn from, read by the reply" in printed
    assert run.config["steps"] == 3
    assert ResponseClassifier.load(tmp_path / "run").read(["Unsafe"])[0].label == "unsafe"

    run_recipe("response_classifier", **SMALL, output_dir=tmp_path / "more", base=tmp_path / "run" / MODEL)
    assert RunDir.open(tmp_path / "more").manifest["base"] == str(tmp_path / "run" / MODEL)


def test_the_recipe_goes_on_where_it_stopped(run_recipe, monkeypatch, tmp_path):
    save = TrainingState.save

    def stopping(state, **progress):
        save(state, **progress)
        raise KeyboardInterrupt

    small = SMALL | {"phrased": 60, "test_rows": 3, "save_steps": 2}
    run_recipe("response_classifier", **small, output_dir=tmp_path / "straight")
    with monkeypatch.context() as hindered:
        hindered.setattr(TrainingState, "save", stopping)
        with pytest.raises(SystemExit):
            run_recipe("response_classifier", **small, output_dir=tmp_path / "stopped")
    again = {**small, "output_dir": tmp_path / "stopped", "resume_from_checkpoint": True}
    with pytest.raises(CheckpointError, match="batch 8, not 4"):
        run_recipe("response_classifier", **again | {"batch": 4})
    run_recipe("response_classifier", **again)
    one, two = (RunDir.open(tmp_path / name) for name in ("straight", "stopped"))
    assert [row["step"] for row in one.read_rows("history")] == [2, 3]
    assert list(one.read_rows("history")) == list(two.read_rows("history"))
    weights = [load_file(run.path / MODEL / "model.safetensors") for run in (one, two)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_the_recipe_learns_one_phrasing(run_recipe, tmp_path):
    words = {"safe": "All is fine here.", "unsafe": "How terrible!", "uncertain": "Whatever you say"}
    (tmp_path / "replies.csv").write_text(
        "text,label\n" + "".join(f"{words[name]},{name}\n" for name in words) * 20
    )
    small = SMALL | {"phrased": 0, "steps": 150, "learning_rate": 3e-3, "width": 32}
    run_recipe("response_classifier", **small, output_dir=tmp_path / "run", replies=tmp_path / "replies.csv")
    reader = ResponseClassifier.load(tmp_path / "run", confidence=0.4)
    assert [one.label for one in reader.read(list(words.values()))] == list(words)
