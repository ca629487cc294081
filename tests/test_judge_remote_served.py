"""A remote judge on `transformers serve`, beside the local judge with the same weights."""

import os
import re
import sys
import time

import numpy as np
import pytest

from judge.vlm.log_probabilities import Step, read_log_probabilities
from judge.vlm.remote import parse_remote
from judge.vlm.replies import chat_messages, data_url
from prompts import load_taxonomy, render
from prompts.verdict import parse_answer, verdict_from_scores

DIGITS = load_taxonomy("digits")


def assert_unjudged(scores, *words, row=0):
    assert np.isnan(scores.unsafe[row])
    assert np.isnan(scores.categories[row]).all()
    assert all(word in scores.reasons[row] for word in words), scores.reasons[row]
    assert "\n" not in scores.reasons[row]
    taxonomy = DIGITS
    verdict = verdict_from_scores(
        scores.unsafe[row], scores.categories[row], taxonomy, reason=scores.reasons[row]
    )
    assert verdict.status == "unjudged"


TAUGHT = ("safe", "unsafe: three", "unsafe: nine", "nothing here")
"""What the served model was taught to say to four pictures; the last cannot be read."""


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """tiny-llava after a minute's schooling on four pictures: its folder, model, processor and pictures."""
    import torch

    from judge.standins.digits import digits_examples
    from judge.vlm.load import BaseOptions, load_base

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, processor = load_base(BaseOptions(model_name_or_path="tiny-llava"))
    pictures = [example.image for example in digits_examples("train", count=len(TAUGHT))]
    batch = [
        processor(text=[chat_text(processor) + f" {answer}</s>"], images=[picture], return_tensors="pt")
        for picture, answer in zip(pictures, TAUGHT, strict=True)
    ]
    start = len(processor.tokenizer(chat_text(processor))["input_ids"]) - 1 + model.config.image_seq_length
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(60):
        losses = []
        for row in batch:
            labels = row["input_ids"].clone()
            labels[:, :start] = -100
            losses.append(model(**row, labels=labels).loss)
        loss = torch.stack(losses).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if loss < 0.02:
            break
    folder = tmp_path_factory.mktemp("taught")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder, model, processor, pictures


def chat_text(processor, template="policy_first"):
    messages = list(render(DIGITS, template=template).messages)
    return processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def said_locally(model, processor, picture, template="policy_first"):
    inputs = processor(text=[chat_text(processor, template)], images=[picture], return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=40, do_sample=False)
    return processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.fixture(scope="module")
def served(taught, start_script):
    """`transformers serve` on the taught model's folder, ready to answer: its address."""
    pytest.importorskip("uvicorn")
    program = os.path.join(os.path.dirname(sys.executable), "transformers")
    options = ["--port", "0", "--host", "127.0.0.1", "--device", "cpu"]
    server = start_script(program, "serve", taught[0], *options, HF_HUB_OFFLINE="1")
    while not (listens := re.search(r"Uvicorn running on (\S+) ", server.stderr)):
        # until the test's own timeout
        assert server.process.is_alive(), server.stdout + server.stderr
        time.sleep(0.1)
    yield listens[1] + "/v1"
    server.kill()


@pytest.mark.slow
@pytest.mark.parametrize("template", ["policy_first", "perspective"])
def test_transformers_serve_says_what_the_local_model_says(taught, served, template):
    import openai

    folder, model, processor, pictures = taught
    with openai.OpenAI(base_url=served, api_key="none") as client:
        for picture in pictures:
            reply = client.chat.completions.create(
                model=str(folder),
                messages=chat_messages(render(DIGITS, template=template), data_url(picture)),
                temperature=0,
                max_tokens=40,
            )
            assert reply.choices[0].message.content == said_locally(model, processor, picture, template)


@pytest.mark.slow
def test_transformers_serve_as_a_judge(taught, served):
    from judge.vlm.score import VisionLanguageJudge

    folder, model, processor, pictures = taught
    with parse_remote(f"{served}#{folder}") as judge:
        scores = judge.score(pictures, None, DIGITS)
    local = VisionLanguageJudge(model, processor).score(pictures, None, DIGITS)
    for row, picture in enumerate(pictures):
        verdict = parse_answer(said_locally(model, processor, picture), DIGITS)
        if verdict.status == "unjudged":
            assert_unjudged(scores, "not one of the allowed answers", row=row)
            continue
        assert scores.reasons[row] is None
        assert scores.unsafe[row] == verdict.unsafe == round(local.unsafe[row])
        assert ((scores.categories[row] >= 0) & (scores.categories[row] <= 1)).all()
        assert np.abs(scores.category_probabilities[row] - local.category_probabilities[row]).max() < 0.5
        assert scores.categories[row].max() == scores.unsafe[row]
    assert [reason is None for reason in scores.reasons] == [True, True, True, False]
    assert scores.unsafe[:3].tolist() == [0.0, 1.0, 1.0]


@pytest.mark.slow
def test_transformers_serve_pins_its_model(taught, served):
    with parse_remote(f"{served}#other") as judge:
        assert_unjudged(judge.score(taught[3][:1], None, DIGITS), "HTTP 400", "pinned")


def listed_locally(model, processor, picture, count, allowed=None):
    """What a server with log-probabilities would list for the local model's greedy answer."""
    import torch

    inputs = processor(text=[chat_text(processor)], images=[picture], return_tensors="pt")
    output = model.generate(
        **inputs, max_new_tokens=40, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    made = []
    generated = output.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    for chosen, logits in zip(generated, output.logits, strict=True):
        best = torch.log_softmax(logits[0].double(), dim=-1).topk(count)
        listed = dict(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        first = listed.pop(chosen)
        kept = {index: chance for index, chance in listed.items() if allowed is None or index in allowed}
        others = tuple((processor.tokenizer.decode([index]), chance) for index, chance in kept.items())
        made.append(Step(processor.tokenizer.decode([chosen]), first, others))
    return made


@pytest.mark.slow
@pytest.mark.parametrize("everything", [True, False])
def test_listed_log_probabilities_give_what_the_local_judge_scores(taught, everything):
    # The local judge spells each answer in one way. With that spelling's tokens alone, all listed, both must agree;
    # with the 20 likeliest tokens, other spellings count too and rare answers are missing.
    import copy

    import torch

    from judge.standins.digits import digits_examples
    from judge.vlm.score import VisionLanguageJudge

    _, model, processor, _ = taught
    model = copy.deepcopy(model)
    # The same answers, but less sure: probabilities near 0 and 1 alone would agree too easily. Halved, other spellings
    # would take too much of them, of which 3,500 tokens have many.
    model.lm_head.weight = torch.nn.Parameter(0.6 * model.lm_head.weight.detach())
    pictures = [example.image for example in digits_examples("test", count=24)]
    judge = VisionLanguageJudge(model, processor)
    local = judge.score(pictures, None, DIGITS)
    answers, text = render(DIGITS).answers, chat_text(processor)
    spelling = {token for answer in answers for token in judge.encoder.answer_ids(text, answer)}
    listed = (model.lm_head.out_features, spelling) if everything else (20, None)
    limit = 1e-5 if everything else 0.02
    doubtful = known = 0
    for row, picture in enumerate(pictures):
        steps_ = listed_locally(model, processor, picture, *listed)
        found = read_log_probabilities(steps_, answers, len(DIGITS))
        if found is None:
            continue
        doubtful += 0.002 < local.unsafe[row] < 0.998
        assert found.unsafe == pytest.approx(local.unsafe[row], abs=limit)
        if found.answer.unsafe:
            given = ~np.isnan(found.categories)
            known += given.sum()
            assert np.abs(found.categories - local.category_probabilities[row])[given].max(initial=0) <= limit
    assert doubtful >= 4
    assert known >= 30
