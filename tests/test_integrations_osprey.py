"""Osprey's functions: against a stub of its contract (`fixtures_osprey`) and a real server of ours."""

import base64
import re
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fixtures_osprey import LiteralError, at_least
from fixtures_server import ColourJudge, colour_service, data_url, listening, picture

from judge.errors import ConfigError, MissingExtraError
from judge.integrations.osprey import SharedVerdicts, make_udfs, score_of, seen_of
from judge.integrations.verdict_client import VerdictClient
from prompts.errors import TaxonomyError
from prompts.taxonomy import Taxonomy

POLICY = Taxonomy.from_dict(
    {
        "name": "mine",
        "version": "1",
        "categories": [
            {"name": "weapons", "definition": "a knife or a gun"},
            {"name": "gore", "definition": "blood"},
        ],
    }
)


def url_of(event: dict[str, str]) -> str:
    return event["image"]


def event(**colour: int) -> dict[str, str]:
    return {"image": data_url(picture(**colour))}


@pytest.fixture
def colours() -> ColourJudge:
    return ColourJudge()


@pytest.fixture
def server(colours: ColourJudge) -> Any:
    with listening(colour_service(colours)) as url:
        yield url


@pytest.fixture
def client(server: str) -> Any:
    with VerdictClient(server, POLICY, timeout=60, patience=0) as client:
        yield client


def test_what_rules_see(osprey: Any, client: VerdictClient) -> None:
    rules = osprey(make_udfs(client))
    status = rules.site("ArbiterStatus", image=url_of)
    weapons = rules.site(
        "ArbiterScore", image=url_of, category="Weapons"
    )  # case is ignored, as in taxonomies
    labels = rules.site("ArbiterLabels", image=url_of)
    reason = rules.site("ArbiterReason", image=url_of, prompt=lambda event: event["prompt"])
    red, black = event(red=204), event()
    assert (status(red), labels(red), reason(red)) == ("unsafe", ["weapons"], "")
    assert weapons(red) == pytest.approx(0.8)
    assert (status(black), labels(black), weapons(black), reason(black)) == ("safe", [], 0.0, "")
    plain = {"image": base64.b64encode(picture(red=255)).decode()}
    assert status(plain) == "unsafe"
    assert all(one.execute_async for one in rules.functions.values())


@pytest.mark.parametrize(
    ("unseen", "why"),
    [
        (event(blue=255), "too blue"),
        (event(green=255), "RuntimeError"),
        ({"image": data_url(b"no image")}, "not_an_image"),
        ({"image": "no base64!"}, "neither base64"),
        ({"image": "https://example.org/x.png"}, "fetches no addresses"),
        ({"image": ""}, "no image"),
        ({}, "no image"),
    ],
)
def test_unjudged_is_a_value_that_rules_see(
    osprey: Any, client: VerdictClient, unseen: dict[str, str], why: str
) -> None:
    rules = osprey(make_udfs(client))
    assert rules.site("ArbiterStatus", image=url_of)(unseen) == "unjudged"
    assert rules.site("ArbiterLabels", image=url_of)(unseen) == ["unjudged"]
    score = rules.site("ArbiterScore", image=url_of, category="gore")(unseen)
    assert score is None
    assert not at_least(score, 0.0), "a threshold alone lets it pass, so the status has to be asked"
    assert why in rules.site("ArbiterReason", image=url_of)(unseen)


def test_a_server_that_is_down_or_set_up_wrongly_is_seen(
    osprey: Any, server: str, caplog: pytest.LogCaptureFixture
) -> None:
    with VerdictClient("http://127.0.0.1:9", POLICY, patience=0) as nobody:
        rules = osprey(make_udfs(nobody))
        assert rules.site("ArbiterStatus", image=url_of)(event()) == "unjudged"
        assert rules.site("ArbiterScore", image=url_of, category="gore")(event()) is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    caplog.clear()
    with VerdictClient(server, "no such policy", patience=0) as wrong:
        rules = osprey(make_udfs(wrong))
        assert rules.site("ArbiterStatus", image=url_of)(event()) == "unjudged"
        assert "no such policy" in rules.site("ArbiterReason", image=url_of)(event())
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_all_call_sites_share_one_client_and_one_question(
    osprey: Any, client: VerdictClient, colours: ColourJudge
) -> None:
    """Eight call sites ask about one event at the same time, and the classifier is asked once."""
    rules = osprey(make_udfs(client))
    sites = [rules.site("ArbiterScore", image=url_of, category="weapons") for _ in range(4)]
    sites += [rules.site("ArbiterStatus", image=url_of) for _ in range(4)]
    assert len(rules.instances) == 8
    colours.gate = threading.Event()
    with ThreadPoolExecutor(8) as pool:
        found = [pool.submit(site, event(red=255)) for site in sites]
        assert colours.entered.wait(60)
        colours.gate.set()
        assert [one.result() for one in found] == [1.0] * 4 + ["unsafe"] * 4
    assert len(colours.calls) == 1
    sites[0](event(red=254))
    rules.site("ArbiterStatus", image=url_of, prompt="another prompt")(event(red=255))
    assert len(colours.calls) == 3
    assert colours.calls[-1][1] == ["another prompt"]


def test_a_verdict_is_forgotten(client: VerdictClient, colours: ColourJudge) -> None:
    verdicts = SharedVerdicts(client, seconds=0)
    image = data_url(picture(red=9))
    assert verdicts.ask(image).status == verdicts.ask(image).status == "safe"
    assert len(colours.calls) == 2


def test_nobody_waits_for_a_question_that_was_interrupted(client: VerdictClient) -> None:
    verdicts = SharedVerdicts(client)

    def interrupt(image: str, prompt: str | None = None) -> dict[str, Any]:
        raise KeyboardInterrupt  # as a greenlet that is killed

    client.ask = interrupt  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        verdicts.ask("x")
    assert verdicts.ask("x").status == "unjudged"


def test_a_mistyped_category_is_said_where_it_stands(osprey: Any, client: VerdictClient, server: str) -> None:
    with pytest.raises(LiteralError, match="did you mean 'weapons'"):
        osprey(make_udfs(client)).site("ArbiterScore", image=url_of, category="weapon")
    # Of a taxonomy that only the server knows it is said, as a failure, when it is asked.
    with VerdictClient(server, patience=0) as unknown:
        assert (
            osprey(make_udfs(unknown)).site("ArbiterScore", image=url_of, category="weapon")(event()) is None
        )
        seen = SharedVerdicts(unknown).ask(event()["image"])
        assert score_of(seen, "THREE") == 0.0
        with pytest.raises(TaxonomyError, match="did you mean 'three'"):
            score_of(seen, "thre")


def test_a_part_that_was_not_judged_is_seen() -> None:
    seen = seen_of(
        {
            "status": "unsafe",
            "scores": {"weapons": 0.9},
            "flags": {"weapons": True},
            "thresholds": {"weapons": 0.5, "gore": 0.5},
            "reason": "gore is not covered",
        }
    )
    assert seen.labels == ("weapons", "unjudged")
    assert (score_of(seen, "weapons"), score_of(seen, "gore")) == (0.9, None)
    assert seen.reason == "gore is not covered"


def test_two_taxonomies_are_two_names(osprey: Any, client: VerdictClient) -> None:
    rules = osprey([*make_udfs(client), *make_udfs(client, name="Minors")])
    assert set(rules.functions) == {
        f"{name}{what}" for name in ("Arbiter", "Minors") for what in ("Status", "Score", "Labels", "Reason")
    }
    for wrong in ("minors", "two words", ""):
        with pytest.raises(ConfigError, match="such as Arbiter"):
            make_udfs(client, name=wrong)


def test_no_category_may_be_called_unjudged(osprey: Any, server: str) -> None:
    policy = POLICY.rename({"gore": "Unjudged"})
    with VerdictClient(server, policy) as client, pytest.raises(ConfigError, match="rename"):
        make_udfs(client)


def test_without_osprey_it_says_so(client: VerdictClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "osprey", None)
    with pytest.raises(MissingExtraError, match="on no package index"):
        make_udfs(client)


def test_the_page_of_the_documentation(osprey: Any) -> None:
    """Its plugin registers what its rules call, with arguments that exist."""
    page = (Path(__file__).parents[1] / "docs" / "moderation-tools.md").read_text(encoding="utf-8")
    section = page[page.index("## Osprey") :]
    plugin, sml = re.findall(r"```(?:python|text)\n(.*?)```", section, re.DOTALL)[:2]
    names: dict[str, Any] = {}
    exec(compile(plugin, "moderation-tools.md", "exec"), names)
    rules = osprey(names["register_udfs"]())
    names["client"].close()
    calls = re.findall(r"(Arbiter\w+)\((.*?)\)", sml)
    assert {function for function, _ in calls} == set(rules.functions)
    for function, given in calls:
        arguments = dict(re.findall(r"(\w+)=('[^']*'|\w+)", given))
        rules.site(function, **{key: text.strip("'") for key, text in arguments.items()})
