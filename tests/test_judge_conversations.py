"""The base's lessons: answers are right, and nothing of the judge's task or templates is in them."""

import re

import pytest

from judge.standins.conversations import CHOICES, Conversations
from prompts import load_taxonomy, render

SHOWN = [frozenset(s) for s in ((), (3,), (8,), (2, 7), (0, 9))]


@pytest.fixture(scope="module")
def rows():
    conversations = Conversations(0)
    return [(shown, conversations.row(0, shown, "a photo of six")) for _ in range(120) for shown in SHOWN]


def turns(row):
    texts = "".join(text for text, _ in row.pieces)
    return re.findall(r"(?:USER: |\n)([^\n]*?) ASSISTANT: (.*?)</s>", texts)


def test_only_answers_are_supervised(rows):
    for _, row in rows:
        assert [supervised for _, supervised in row.pieces] == [False, True] * 4
        assert all(text.endswith("</s>") for text, supervised in row.pieces if supervised)
        assert sum(text.count("<image>") for text, _ in row.pieces) == 1


def test_naming_and_yes_no_answers_are_right(rows):
    digits = load_taxonomy("digits")
    known = {
        text: number
        for number, category in enumerate(digits)
        for text in (category.name, *category.aliases, str(number), category.definition, *category.rewordings)
    }
    checked = 0
    for shown, row in rows:
        for question, answer in turns(row):
            if question == "What digits are there?":
                expected = " and ".join(digits.names[d] for d in sorted(shown)) or "none"
                assert answer == expected
                checked += 1
            asked = re.fullmatch(r"Is there (.*)\?", question)
            if asked and asked[1] in known:
                assert answer == ("yes" if known[asked[1]] in shown else "no")
                checked += 1
    assert checked > 300


def test_lists_are_balanced_between_a_hit_and_none(rows):
    answers = [
        answer for shown, row in rows for question, answer in turns(row) if shown and question in CHOICES
    ]
    share = sum(answer == "none" for answer in answers) / len(answers)
    assert 0.25 < share < 0.55


def test_words_are_looked_up_where_the_list_has_them():
    conversations = Conversations(0)
    for _ in range(30):
        text, rows = conversations.recited()
        known = dict(line[2:].split(": ", 1) for line in text.split("\n")[1:])
        for pieces in rows:
            for (asked, _), (answer, _) in zip(pieces[::2], pieces[1::2], strict=True):
                question = asked.removeprefix("USER: ").removesuffix(" ASSISTANT:")
                said = answer.strip().removesuffix("</s>")
                if question.startswith("What does"):
                    assert known[question[len("What does ") : -len(" mean?")]] == said
                elif question.startswith("Which word means"):
                    assert known[said] == question[len("Which word means ") : -1]
                else:
                    assert question == f"Repeat: {said}"


def test_long_captions_are_one_line_in_quotes():
    conversations = Conversations(0, ('He said "yes".\nThen he left.',))
    for length in (0, 100, 600):
        for _ in range(50):
            remark = conversations.remark("a photo of six", length)
            assert remark.count("\n") == bool(remark)
            assert remark.count('"') == 2 * bool(remark)
            assert len(remark) <= length * 1.1 + 400


def test_nothing_of_the_judge_is_taught(rows):
    chat = render(load_taxonomy("digits"), "x")
    sentences = ["An image is unsafe", "Answer safe", *(a.text for a in chat.answers[1:])]
    for _, row in rows:
        for text, _ in row.pieces:
            assert not any(sentence in text for sentence in sentences)
        for question, answer in turns(row):
            if not question.startswith("Repeat:"):
                assert "safe" not in answer


def test_statements_are_as_often_true_as_false():
    conversations = Conversations(0)
    for shown in SHOWN:
        answers = [conversations._stated(shown)[1] for _ in range(300)]
        assert 0.4 < answers.count("yes") / 300 < 0.6
