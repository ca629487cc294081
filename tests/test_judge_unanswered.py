"""Rows to which a service gave no answer say so, whatever stands between the service and the caller."""

import numpy as np
import pytest
from fixtures_chat_server import completion, problem
from PIL import Image

from judge.cascade.row_verdicts import RowVerdicts
from judge.inputs import concatenate_scores, insert_failed_rows
from judge.protocol import Scores, rows_of
from judge.rivals.chats import Reply
from judge.rivals.response_classifier import ReadReply
from judge.rivals.served_chat import ServedChat
from judge.rivals.zero_shot import ZeroShot
from judge.vlm.remote import RemoteJudge
from prompts import load_taxonomy

DIGITS = load_taxonomy("digits")
BLANK = Image.new("RGB", (4, 4))


def scores(unanswered=None, rows=2):
    rows = len(unanswered or range(rows))
    return Scores(np.zeros(rows), np.zeros((rows, 2)), (None,) * rows, unanswered=unanswered)


@pytest.mark.parametrize(
    ("reply", "silent"),
    [
        (problem(429, "slow down"), True),
        (problem(408), True),
        (problem(503), True),
        (problem(400, "too large"), False),
        (problem(422), False),
        (completion("I would rather not say."), False),
        (completion("", finish="content_filter"), False),
    ],
)
def test_a_served_judge_tells_silence_from_refusals(stub, reply, silent):
    stub.answer = lambda request: reply
    with RemoteJudge(stub.url, "m", retries=0) as judge:
        found = judge.score([BLANK], None, DIGITS)
        assert np.isnan(found.unsafe[0])
        assert found.unanswered == ((True,) if silent else None)
        [told] = ServedChat(judge).ask([BLANK], ["safe?"])
        assert told.unanswered == silent


def test_a_served_judge_that_hangs_counts_as_silent(stub):
    def wait(request):
        stub.stop.wait(5)
        return completion("safe")

    stub.answer = lambda request: wait
    with RemoteJudge(stub.url, "m", retries=0, timeout=0.2) as judge:
        assert judge.score([BLANK], None, DIGITS).unanswered == (True,)
        stub.stop.set()
    gone = RemoteJudge("http://127.0.0.1:9/v1", "m", retries=0)
    gone._asked_before = True
    assert gone.score([BLANK], None, DIGITS).unanswered == (True,)


def test_of_several_readings_one_without_an_answer_is_enough(stub):
    stub.script = [completion("safe"), problem(500), completion("safe"), completion("safe")]
    with RemoteJudge(stub.url, "m", retries=0, concurrency=1) as judge:
        found = judge.score([BLANK] * 3, ["a prompt", None, None], DIGITS)
    assert found.unsafe.tolist() == [0.0, 0.0, 0.0]
    assert found.unanswered == (True, False, False)


def test_one_of_three_questions_without_an_answer_is_enough():
    class Chat:
        name = "chat"

        def ask(self, images, texts):
            replies = [Reply("safe")] * 2 + [Reply("HTTP 429", "failed", unanswered=True)]
            return replies + [Reply("safe")] * (len(texts) - 3)

    class Reader:
        def read(self, texts):
            return [ReadReply("safe", 1.0, "rule") for _ in texts]

    found = ZeroShot(Chat(), Reader()).score([BLANK] * 2, None, DIGITS)
    assert found.unanswered == (True, False)
    assert found.unsafe[0] == pytest.approx(1 / 3)


def test_rows_keep_it_when_they_are_cut_joined_and_filled_in():
    some = scores((True, False))
    assert rows_of(some, 1, 2).unanswered == (False,)
    assert rows_of(scores(), 1, 2).unanswered is None
    assert insert_failed_rows(some, [None, "no image", None]).unanswered == (True, False, False)
    assert concatenate_scores([scores(), some]).unanswered == (False, False, True, False)
    assert concatenate_scores([scores(), scores()]).unanswered is None


def test_a_cascade_hands_on_the_silence_of_its_judge():
    verdicts = RowVerdicts(3, 2)
    verdicts.settle("student", [0, 1, 2], scores(rows=3), 0.5, 0.5)
    assert verdicts.scores().unanswered is None
    verdicts.settle("judge", [1, 2], scores((False, True)), 0.5, 0.5)
    assert verdicts.scores().unanswered == (False, False, True)
