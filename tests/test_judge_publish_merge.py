"""A merged judge is a plain checkpoint with the same answers, and a judge again with all that it knew."""

import json
import re
import shlex
import stat

import numpy as np
import pytest
import torch
import yaml
from fixtures_publish import policy

from judge import load_classifier
from judge.calibration.thresholds import load_thresholds
from judge.errors import CheckpointError
from judge.publish.details import Details
from judge.publish.merge import merge_run
from judge.publish.push import push
from judge.publish.serve_guide import START_TEMPLATE, start_text
from judge.serve import cli
from prompts import render

POLICY = policy()


def answers_of_the_plain_model(folder, images):
    """(B, 1 + K) P(safe) and P(each category) by ordinary calls, token by token over the allowed answers."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32").eval()
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    chat = render(POLICY)
    text = processor.apply_chat_template(list(chat.messages), tokenize=False, add_generation_prompt=True)
    found = []
    for image in images:
        asked = processor(text=[text], images=[image], return_tensors="pt")["input_ids"].shape[1]
        sequences, logits = [], []
        for answer in chat.answers:
            inputs = processor(text=[f"{text} {answer.text}</s>"], images=[image], return_tensors="pt")
            with torch.no_grad():
                logits.append(model(**inputs).logits[0, asked - 1 : -1].double())
            sequences.append(inputs["input_ids"][0, asked:].tolist())
        found.append([probability(one, row, sequences) for one, row in zip(sequences, logits, strict=True)])
    return np.array(found)


def probability(sequence, logits, allowed):
    """Of one answer's tokens, each among those that any allowed answer has there."""
    total = 0.0
    for place, token in enumerate(sequence):
        choices = sorted({other[place] for other in allowed if other[:place] == sequence[:place]})
        total += torch.log_softmax(logits[place][choices], -1)[choices.index(token)].item()
    return np.exp(total)


def test_a_merge_that_fails_leaves_nothing_in_the_way(finished_judge, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr("judge.publish.merge.serve_guide", full)
    with pytest.raises(OSError, match="No space"):
        merge_run(finished_judge, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_the_plain_model_gives_the_answers_of_the_run(finished_judge, tmp_path, noise_image):
    images = [noise_image(seed) for seed in range(2)]
    folder = merge_run(finished_judge, tmp_path / "merged")
    local = load_classifier(finished_judge).score(images, None, POLICY)
    plain = answers_of_the_plain_model(folder, images)
    assert plain.sum(axis=1) == pytest.approx(1.0)
    assert local.category_probabilities == pytest.approx(plain[:, 1:], abs=1e-5)
    assert np.ptp(plain[:, 1:]) > 1e-3
    found = load_classifier(folder)
    again = found.score(images, None, POLICY)
    assert again.unsafe == pytest.approx(local.unsafe, abs=1e-5)
    assert again.categories == pytest.approx(local.categories, abs=1e-5)
    assert (found.default_taxonomy, found.template, found.name) == (POLICY, "policy_first", "merged")


def test_a_merged_judge_has_all_that_the_run_knew(finished_judge, tmp_path, capsys):
    threshold = {
        "threshold": 0.3,
        "definition": "x",
        "unsafe": 1,
        "safe": 1,
        "recall": 1.0,
        "false_alarm_rate": 0.0,
    }
    kept = {"judge": "my_judge", "target": "best F1", "thresholds": {"blood": threshold}}
    (finished_judge / "thresholds.yaml").write_text(yaml.safe_dump(kept))
    target = tmp_path / "merged"
    options = ["--base", "org/tiny", "--license", "mit"]
    assert cli.main(["merge", str(finished_judge), str(target), *options]) == 0
    assert "serve.md says how to serve it" in capsys.readouterr().out
    assert load_thresholds(target / "thresholds.yaml").thresholds["blood"].threshold == 0.3
    names = {path.name for path in target.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "serve.md"} <= names
    assert {stat.S_IMODE(path.stat().st_mode) for path in target.iterdir()} == {0o644}
    for path in target.iterdir():
        if path.suffix in (".json", ".md", ".yaml"):
            assert str(tmp_path) not in path.read_text(errors="replace"), path.name
    _, front, text = (target / "README.md").read_text().split("---\n", 2)
    about = yaml.safe_load(front)
    assert (about["library_name"], about["base_model"]) == ("transformers", "org/tiny")
    assert "| F1 | 0.500 | 0.900 |" in text
    pushed = push(target, f"folder:{tmp_path / 'repository'}")
    assert {"config.json", "model.safetensors", "serve.md", START_TEMPLATE} <= {
        name for name, _ in pushed.files
    }
    assert "| F1 | 0.500 | 0.900 |" in (tmp_path / "repository" / "README.md").read_text()
    with pytest.raises(CheckpointError, match="kind 'merged', not 'vlm'"):
        merge_run(target, tmp_path / "twice")


def test_the_commands_of_the_guide_are_ones_that_exist(finished_judge, tmp_path):
    from transformers.cli.serve import Serve

    folder = merge_run(finished_judge, tmp_path / "merged", details=Details(base="org/tiny"))
    guide = (folder / "serve.md").read_text()
    blocks = [
        shlex.split(block.replace("\\\n", " "))
        for block in re.findall(r"```bash\n(.*?)```", guide, re.DOTALL)
    ]
    assert [" ".join(block[:2]) for block in blocks[::2]] == ["transformers serve", "vllm serve", "python -m"]
    import inspect

    known = inspect.signature(Serve.__init__).parameters
    assert {word[2:].replace("-", "_") for word in blocks[0] if word.startswith("--")} <= known.keys()
    for block in blocks[1::2]:
        assert block[:2] == ["arbiter", "judge"]
        assert {"--judge", "--taxonomy"} <= set(block)
    assert json.loads(blocks[2][blocks[2].index("--limit-mm-per-prompt") + 1]) == {"image": 1}
    assert (folder / START_TEMPLATE).read_text() == "<s>" + (folder / "chat_template.jinja").read_text()


def test_a_template_that_writes_its_start_needs_none(tiny_vlm):
    _, processor = tiny_vlm()
    assert start_text(processor, POLICY, "policy_first") == "<s>"
    processor.chat_template = "<s>" + processor.chat_template
    assert start_text(processor, POLICY, "policy_first") == ""
