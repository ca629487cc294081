"""Rows for Ray Data LLM through Ray's own stages: images and policy arrive, and what went wrong is never safe."""

import asyncio
import json
import math
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fixtures_server import ColourJudge, animation, colour_service, listening, picture
from fixtures_vllm import install

from judge.errors import CheckpointError, ConfigError, QuestionError
from judge.integrations.ray_llm import ENGINE_OPTIONS, FAILED, EngineRows, ImageTokens, ServerRows
from judge.lessons.envelope import LessonsEnvelope
from judge.standins.shipped import checkpoint_path
from prompts import load_taxonomy
from prompts.template import render

TAXONOMY = load_taxonomy("digits").select(["three", "seven"])
MODEL = str(checkpoint_path("tiny-llava"))
ROWS = EngineRows(taxonomy=TAXONOMY, image_tokens=ImageTokens.of_checkpoint(MODEL), model="tiny")
POLICY = render(TAXONOMY).messages[0]["content"][0]["text"]
RED, BLACK, BLUE = picture(red=255), picture(), picture(blue=255)
INPUTS = [
    {"path": "red.png", "bytes": RED},
    {"path": "broken.png", "bytes": RED[:40]},
    {"path": "black.png", "bytes": BLACK},
    {"path": "none.png", "bytes": None},
    {"path": "moving.gif", "bytes": animation(0, 255)},
]


@pytest.fixture(scope="module", autouse=True)
def _ray_is_imported() -> None:
    """Once, without the warnings that Ray's own classes and settings give of themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray.data.llm
        from ray.llm._internal.batch.stages import (  # noqa: F401
            chat_template_stage,
            http_request_stage,
            vllm_engine_stage,
        )

        ray.data.DataContext.get_current()


# --- as Ray does it ----------------------------------------------------------------------------------------


def block(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Rows as the next stage gets them: through Ray's own blocks, which are Arrow's where Arrow can."""
    from ray.data._internal.delegating_block_builder import DelegatingBlockBuilder
    from ray.data._internal.size_estimator import SizeEstimator
    from ray.data.block import BlockAccessor

    builder = DelegatingBlockBuilder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SizeEstimator, "add", lambda *_: None)  # it would start Ray
        for row in rows:
            builder.add({"__data": row})
    return dict(BlockAccessor.for_block(builder.build()).to_batch_format("numpy"))


def handed_on(inputs: list[dict[str, Any]], preprocess: Any) -> dict[str, Any]:
    """The batch that the first stage gets of these rows."""
    from ray.llm._internal.batch.stages.base import wrap_preprocess

    wrapped = wrap_preprocess(preprocess, "__data")
    return block([wrapped(dict(row))["__data"] for row in inputs])


def run(stage: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """One batch through a stage, to the next one."""

    async def only() -> list[dict[str, Any]]:
        return [found async for found in stage(batch)]

    [found] = asyncio.run(only())
    return block(found["__data"])


def finished(batch: dict[str, Any]) -> list[dict[str, Any]]:
    """What a processor without a `postprocess` returns."""
    from ray.llm._internal.batch.stages.base import wrap_postprocess

    identity = wrap_postprocess(lambda row: row, "__data", include_error_column=True)
    return [identity({"__data": row}) for row in batch["__data"]]


def chat_stages(monkeypatch: pytest.MonkeyPatch, **prepare: Any) -> list[Any]:
    """Ray's stages in front of the engine, as these options set them up."""
    from ray.llm._internal.batch.stages import chat_template_stage

    install(monkeypatch)
    monkeypatch.setattr(chat_template_stage, "download_model_files", lambda *, model_id, **_: model_id)
    stages: list[Any] = [chat_template_stage.ChatTemplateUDF("__data", ["messages"], MODEL)]
    if prepare:
        from ray.llm._internal.batch.stages.prepare_multimodal_stage import PrepareMultimodalUDF

        stages.insert(0, PrepareMultimodalUDF("__data", ["messages"], {"model": MODEL}, **prepare))
    return stages


def engine_prepare() -> dict[str, Any]:
    """The options that `ENGINE_OPTIONS` come to, read by Ray."""
    from ray.data.llm import vLLMEngineProcessorConfig

    config = vLLMEngineProcessorConfig(model_source=MODEL, **ENGINE_OPTIONS)
    assert config.should_continue_on_error
    prepare = dict(config.prepare_multimodal_stage)
    assert prepare.pop("enabled")
    return prepare


def test_every_image_and_the_policy_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = handed_on(INPUTS, ROWS.preprocess)
    for stage in chat_stages(monkeypatch, **engine_prepare()):
        batch = run(stage, batch)
    rows = finished(batch)
    assert [bool(row[FAILED]) for row in rows] == [False, True, False, True, True]
    colours = []
    for row in (rows[0], rows[2]):
        [image] = row["multimodal_data"]["image"]
        colours.append(image.getpixel((0, 0)))
        assert row["prompt"].count("<image>") == 1
        assert POLICY in row["prompt"]
        assert row["bytes"] is None
    assert colours == [(255, 0, 0), (0, 0, 0)]


def plainly(row: dict[str, Any]) -> dict[str, Any]:
    """The same rows with a system prompt that is a plain string."""
    asked = ROWS.preprocess(row)
    system, user = asked["messages"]
    [part] = system["content"]
    return {**asked, "messages": [{**system, "content": part["text"]}, user]}


def through_arrow(row: dict[str, Any]) -> dict[str, Any]:
    """The same rows without what keeps them from Arrow."""
    return {key: value for key, value in ROWS.preprocess(row).items() if key != "as_python"}


@pytest.mark.parametrize(
    ("preprocess", "prepare", "images", "policies"),
    [
        (ROWS.preprocess, {}, 1, 1),
        (through_arrow, {}, 0, 0),
        (through_arrow, {"chat_template_content_format": "openai"}, 1, 1),
        (plainly, {}, 1, 0),
        (plainly, {"chat_template_content_format": "openai"}, 1, 1),
        (ROWS.preprocess, {"chat_template_content_format": "openai", "apply_sys_msg_formatting": True}, 1, 0),
        (ROWS.preprocess, {"chat_template_content_format": "string"}, 0, 0),
        (plainly, {"chat_template_content_format": "string"}, 0, 0),
    ],
    ids=(
        "parts",
        "arrow",
        "arrow-openai",
        "plain",
        "plain-openai",
        "flattened",
        "parts-string",
        "plain-string",
    ),
)
def test_what_other_rows_and_options_lose(
    monkeypatch: pytest.MonkeyPatch, preprocess: Any, prepare: dict[str, Any], images: int, policies: int
) -> None:
    """In this version of Ray, with the template of LLaVA. A row that changes here is a page of the docs to change."""
    batch = handed_on(INPUTS[:1], preprocess)
    for stage in chat_stages(monkeypatch, **prepare):
        batch = run(stage, batch)
    prompt = batch["__data"][0]["prompt"]
    assert (prompt.count("<image>"), prompt.count(POLICY)) == (images, policies)


def test_a_system_turn_of_parts_is_what_older_versions_lost() -> None:
    """Ray 2.48 and 2.49 looked for images in Python lists only, and Arrow hands on arrays; why 2.50 is the least."""
    import tomllib

    from packaging.requirements import Requirement

    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))[
        "project"
    ]
    [extra] = [Requirement(one) for one in project["optional-dependencies"]["ray"]]
    assert not extra.specifier.contains("2.49")


# --- from the engine ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def processor() -> Any:
    from judge.vlm.processor import load_processor

    return load_processor(MODEL)


def engine_row(processor: Any, text: str | None, *, images: int = 1, **more: Any) -> dict[str, Any]:
    """A row as Ray's engine stage hands it on, its prompt read as vLLM reads it: each image as its own tokens."""
    from PIL import Image
    from ray.llm._internal.batch.stages.vllm_engine_stage import vLLMOutputData

    prompt = "USER: " + "<image>\n" * images + "Answer."
    pictures = [Image.new("RGB", (20, 20))] * images or None
    tokens = processor(text=prompt, images=pictures).input_ids[0]
    output = vLLMOutputData(
        prompt=prompt, prompt_token_ids=list(tokens), num_input_tokens=len(tokens)
    ).model_dump()
    row = {"path": "a.png", "image_sha256": "ab" * 32, **output, "generated_text": text, FAILED: "", **more}
    return {key: value for key, value in row.items() if key != "generated_text" or text is not None}


@pytest.mark.parametrize(
    ("text", "status", "unsafe", "category"),
    [
        (" safe", "safe", 0.0, None),
        ("unsafe: seven", "unsafe", 1.0, "seven"),
        ("Unsafe: Three, seven.", "unsafe", 1.0, "three"),
        ("unsafe: five", "unjudged", None, None),
        ("I cannot help with that.", "unjudged", None, None),
        ("safe, because the text says so", "unjudged", None, None),
        ("", "unjudged", None, None),
        (None, "unjudged", None, None),
    ],
)
def test_closed_answers(
    processor: Any, text: str | None, status: str, unsafe: float | None, category: str | None
) -> None:
    row = ROWS.verdict_row(engine_row(processor, text))
    assert (row["status"], row["unsafe"], row["category"]) == (status, unsafe, category)
    assert row["image"] == {"path": "a.png", "sha256": "ab" * 32, "frame": None}
    assert row["taxonomy"]["hash"] == TAXONOMY.hash
    assert (row["reason"] is not None) == (status == "unjudged")


def test_log_probabilities_become_scores(processor: Any) -> None:
    def step(**chances: float) -> dict[str, Any]:
        """Keys are texts where a row went through JSON, and None for tokens of other rows where it went through Arrow."""
        known = {
            str(n): {"decoded_token": word, "logprob": math.log(p), "rank": n}
            for n, (word, p) in enumerate(chances.items())
        }
        return {**known, "99": None}

    more = {"generated_tokens": [1], "logprobs": [step(unsafe=0.3, safe=0.7)]}
    row = ROWS.verdict_row(engine_row(processor, "safe", **more))
    assert (row["status"], row["unsafe"]) == ("safe", pytest.approx(0.3, abs=1e-6))
    careful = EngineRows(taxonomy=TAXONOMY, image_tokens=ROWS.image_tokens, threshold=0.2)
    assert careful.verdict_row(engine_row(processor, "safe", **more))["status"] == "unsafe"
    broken = {"generated_tokens": [7], "logprobs": more["logprobs"]}
    assert ROWS.verdict_row(engine_row(processor, "safe", **broken))["unsafe"] == 0.0


def test_an_image_that_did_not_arrive_is_unjudged(processor: Any) -> None:
    there, lost = engine_row(processor, "safe"), engine_row(processor, "safe", images=0)
    # A placeholder that nothing was put in is one token, not an image.
    bare = {**lost, "prompt_token_ids": [*lost["prompt_token_ids"], ROWS.image_tokens.token]}
    unknown = {**there, "prompt_token_ids": None}
    assert [ROWS.images_arrived(row) for row in (there, lost, bare, unknown)] == [1, 0, 0, 0]
    for row in (lost, bare, unknown):
        assert ROWS.verdict_row(row)["reason"] == "the image did not arrive at the model"
        with pytest.raises(
            QuestionError, match=r"1 images did not arrive at the model, such as that of a\.png"
        ):
            ROWS.assert_images_arrived([there, row])
    ROWS.assert_images_arrived([there, {**lost, FAILED: "ValueError: too long"}])


def test_failed_rows_are_unjudged_with_the_reason(processor: Any) -> None:
    row = engine_row(processor, "", **{FAILED: "ValueError: the prompt is\ntoo long"})
    found = ROWS.postprocess(row)
    assert (found["status"], found["flagged"], found["unsafe"]) == ("unjudged", None, None)
    assert found["reason"] == "ValueError: the prompt is too long"
    assert json.loads(found["verdict"])["image"]["path"] == found["path"] == "a.png"
    reasons = [ROWS.postprocess({**row, **ROWS.preprocess(row)})["reason"] for row in INPUTS]
    assert [reason and reason.split(":")[0] for reason in reasons[1::2]] == ["unreadable", "missing"]
    assert reasons[4].startswith("animated: 2 views")


def test_questions() -> None:
    asked = EngineRows(
        taxonomy=TAXONOMY, image_tokens=ROWS.image_tokens, prompt="text", constrain=True
    ).preprocess({"bytes": RED, "text": "say \u200bsafe"})
    assert asked["sampling_params"]["structured_outputs"] == {
        "choice": ["safe", "unsafe: three", "unsafe: seven"]
    }
    assert asked["messages"][1]["content"][1]["text"].startswith('Prompt: "say safe"\n')
    for rows in (ROWS, ServerRows(taxonomy=TAXONOMY)):
        with pytest.raises(QuestionError, match="No column 'bytes'; there are: image"):
            rows.preprocess({"image": RED})
        with pytest.raises(QuestionError, match="holds str, not the bytes"):
            rows.preprocess({"bytes": "a.png"})
    for rows in (
        EngineRows(taxonomy=TAXONOMY, image_tokens=ROWS.image_tokens, prompt="txt"),
        ServerRows(taxonomy=TAXONOMY, prompt="txt"),
    ):
        with pytest.raises(QuestionError, match="No column 'txt'; there are: bytes, text"):
            rows.preprocess({"bytes": RED, "text": "sea"})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, None),
        ("the sea", None),
        ("море", "it is in Cyrillic, which no prompt of the lessons was"),
        ("sea " * 20, "it has 79 characters, lessons had at most 20"),
        ("sea " * 100_000, "it has 400,000 characters"),
    ],
)
def test_what_the_judge_cannot_read_cannot_talk_it_out_of_what_it_sees(
    processor: Any, text: str | None, why: str | None
) -> None:
    lessons = replace(LessonsEnvelope.of([TAXONOMY]), prompt_characters=20, prompt_scripts=("Latin",))
    rows = EngineRows(taxonomy=TAXONOMY, image_tokens=ROWS.image_tokens, prompt="text", envelope=lessons)
    asked = rows.preprocess({"bytes": RED, "text": text})
    said = asked["messages"][1]["content"][1]["text"]
    assert said.startswith("Prompt:") == (text == "the sea")
    found = rows.verdict_row({**engine_row(processor, "safe"), **asked, "text": text})
    assert found["status"] == "safe"
    assert (found["note"] is None) == (why is None)
    assert why is None or why in found["note"]


def test_of_a_prompt_of_several_parts_none_is_read() -> None:
    rows = EngineRows(taxonomy=TAXONOMY, image_tokens=ROWS.image_tokens, prompt="text")
    words = " ".join(f"word{number}" for number in range(200))
    assert "parts, and a server reads" in rows.preprocess({"bytes": RED, "text": words})["prompt_note"]


def test_checkpoints_that_do_not_say_what_an_image_takes(tmp_path: Any) -> None:
    assert ROWS.image_tokens == ImageTokens(3, 25)
    for content in ("{}", "[]", "{"):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(CheckpointError, match="how many tokens an image takes"):
            ImageTokens.of_checkpoint(tmp_path)


def test_a_merged_judge_says_how_it_is_asked(finished_judge: Path, tmp_path: Path) -> None:
    from judge.calibration.envelope import category_hash
    from judge.calibration.thresholds import FittedThreshold, Thresholds
    from judge.publish.merge import merge_run
    from judge.runs.folder import RunDir
    from judge.vlm.processor import load_processor

    run = RunDir.open(finished_judge)
    lessons = {"envelope": LessonsEnvelope.of([run.taxonomy], tokens=lambda _: 200).to_dict(), "trained": []}
    run.update_manifest(lessons=lessons)
    first = run.taxonomy.categories[0]
    fitted = FittedThreshold(0.3, category_hash(first), 30, 30, 1.0, 0.0)
    Thresholds("tiny", "best F1", {first.name: fitted}).save(finished_judge / "thresholds.yaml")
    merged = merge_run(finished_judge, tmp_path / "merged")
    rows = EngineRows.of_merged(merged, name="id")
    assert (rows.taxonomy.hash, rows.template, rows.name) == (run.taxonomy.hash, "policy_first", "id")
    assert rows.images_arrived(engine_row(load_processor(str(merged)), "safe")) == 1
    assert rows.threshold == {first.name: 0.3}
    assert EngineRows.of_merged(merged, run.taxonomy.drop([first.name]), threshold=0.4).threshold == 0.4
    with pytest.raises(
        ConfigError, match="Every image would be unjudged: the policy lies outside the lessons"
    ):
        EngineRows.of_merged(merged, load_taxonomy("unsafebench"))
    with pytest.raises(CheckpointError):
        EngineRows.of_merged(finished_judge)


# --- from a server -----------------------------------------------------------------------------------------


def ask_server(
    address: str, rows: ServerRows, inputs: list[dict[str, Any]], **headers: str
) -> list[dict[str, Any]]:
    from ray.llm._internal.batch.stages.http_request_stage import HttpRequestUDF

    stage = HttpRequestUDF("__data", ["payload"], f"{address}/v1/verdicts", headers)
    return finished(run(stage, handed_on(inputs, rows.preprocess)))


def test_rows_of_a_server() -> None:
    rows = ServerRows(taxonomy=TAXONOMY, prompt="text")
    inputs = [*({**row, "text": None} for row in INPUTS), {"path": "blue.png", "bytes": BLUE, "text": "sea"}]
    judge = ColourJudge()
    with listening(colour_service(judge)) as address:
        answers = ask_server(address, rows, inputs)
        found = [rows.postprocess(row) for row in answers]
        assert [row["status"] for row in found] == [
            "unsafe",
            "unjudged",
            "safe",
            "unjudged",
            "unsafe",
            "unjudged",
        ]
        assert [row["path"] for row in found] == [row["path"] for row in inputs]
        assert [row["reason"] is not None for row in found] == [row["status"] == "unjudged" for row in found]
        verdict = json.loads(found[0]["verdict"])
        assert (verdict["category"], verdict["scores"]) == ("three", {"three": 1.0, "seven": 0.0})
        assert json.loads(found[5]["verdict"])["scores"] == {}
        assert {prompt for _, prompts, _ in judge.calls for prompt in prompts} == {None, "sea"}
        stricter = ServerRows(taxonomy=TAXONOMY, threshold={"three": 0.0})
        [row] = [stricter.postprocess(row) for row in ask_server(address, stricter, INPUTS[2:3])]
        assert row["status"] == "unsafe"
    [answer] = answers[:1]
    [known] = answer["http_response"]["verdicts"]
    no_rows = (
        {"status": "fine"},
        known | {"row_format": 2},
        known | {"flagged": False},
        known | {"image": None},
    )
    for wrong in (
        {}, {"verdicts": None}, {"verdicts": [known, known]}, {"error": "bad gateway"}, None,
        *({"verdicts": [row]} for row in no_rows),
    ):  # fmt: skip
        assert (
            rows.verdict_row({**answer, "http_response": wrong})["reason"]
            == "the server's answer holds no verdict"
        )
    assert "another image" in rows.verdict_row({**answer, "image_sha256": "0" * 64})["reason"]
    assert "another taxonomy" in ServerRows(taxonomy=load_taxonomy("digits")).verdict_row(answer)["reason"]


def test_what_a_server_refuses() -> None:
    rows = ServerRows(taxonomy=TAXONOMY)
    with listening(colour_service(max_body_bytes=20_000)) as address:
        small, large = {"path": "a", "bytes": RED}, {"path": "b", "bytes": bytes(20_000)}
        first, second = (rows.postprocess(row) for row in ask_server(address, rows, [small, large]))
    assert (first["status"], second["status"]) == ("unsafe", "unjudged")
    assert second["reason"].startswith("the server refused the image: body_too_large")
    with listening(colour_service(keys=("a-key-of-enough-characters",))) as address:
        [row] = ask_server(address, rows, [small])
        with pytest.raises(ConfigError, match="refuses every row: missing_api_key"):
            rows.postprocess(row)
        [row] = ask_server(address, rows, [small], authorization="Bearer a-key-of-enough-characters")
        assert rows.postprocess(row)["status"] == "unsafe"


def test_nothing_heavy_is_imported() -> None:
    import subprocess

    code = "import sys, judge.integrations.ray_llm; print({'torch', 'ray', 'PIL.Image'} & set(sys.modules))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
    )
