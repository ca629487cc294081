"""`arbiter serve --engine`: a chat server, such as vLLM, judges; this server opens images and keeps the rules."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from fixtures_chat_server import completion, problem
from fixtures_server import image_part, listening, picture

from judge.serve.serve_command import chosen_run
from judge.server.loading import load_judge
from judge.server.service import JudgeService
from judge.server.settings import ServerSettings
from prompts import load_taxonomy


@pytest.fixture
def ask(stub: Any) -> Iterator[Any]:
    """`ask()` -> the answer about a red picture, through the `openai` client and two servers."""
    run, stage_judge = chosen_run(None, None, None, f"{stub.url}#m")
    settings = ServerSettings(
        run=run, stage_judge=stage_judge, taxonomy=load_taxonomy("digits"), decode_workers=0
    )
    with (
        listening(JudgeService(lambda: load_judge(settings), settings)) as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client,
    ):
        yield lambda: client.moderations.create(input=[image_part(picture(red=255))])


def test_the_engine_is_asked_and_decides(ask: Any, stub: Any) -> None:
    stub.answer = lambda request: completion("unsafe: three")
    found = ask()
    assert found.results[0].flagged
    assert found.results[0].categories.model_extra["three"]
    assert found.model == "m"
    assert "three" in str(stub.asked[-1]["messages"]), "the taxonomy reaches the engine"
    stub.answer = lambda request: completion("safe")
    assert ask().results[0].flagged is False


@pytest.mark.parametrize("reply", [completion("I cannot say."), problem(400)])
def test_an_engine_that_does_not_judge_is_never_safe(ask: Any, stub: Any, reply: Any) -> None:
    stub.answer = lambda request: reply
    with pytest.raises(openai.UnprocessableEntityError, match="not safe") as error:
        ask()
    assert error.value.code == "unjudged"
