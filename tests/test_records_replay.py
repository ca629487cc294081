"""Past decisions held against a new wording, and `arbiter decisions`."""

import csv
import io
import json
import math

import pytest
from fixtures_server import ColourJudge
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from judge.errors import ConfigError
from judge.records.entries import NewItem
from judge.records.records import Records
from judge.records.replay import Replayed, other_judges, past_decisions, summary
from judge.serve import cli
from judge.serve.past_decisions import _new_names, decisions_about
from prompts.taxonomy import Category, Taxonomy

NAN = math.nan
SAFE, SOME = (), None


@pytest.fixture
def state(tmp_path):
    """Records in a state folder, as `arbiter serve` leaves them."""
    records = Records.in_folder(tmp_path / "state")
    yield records
    records.close()


@pytest.fixture
def decide(state, own_taxonomy, make_row):
    """`decide("name", scores, decided)` stores a verdict with these scores, and what a moderator said of it."""

    def add(name, scores, decided, prompt=None, **row):
        [item] = state.add_items([NewItem(name.encode(), name, prompt)])
        stored = state.add_verdict(
            item.id, make_row(scores, name=name, sha256=item.sha256, **row), own_taxonomy
        )
        if decided == "skip":
            return state.decide(item.id, stored.id, "skip", moderator="m")
        flagged = tuple(name for name, flag in stored.row["flags"].items() if flag)
        status = "safe" if decided == () else "unsafe"
        if stored.row["status"] == status and flagged == decided:
            return state.decide(item.id, stored.id, "agree", moderator="m")
        return state.decide(
            item.id, stored.id, "overrule", status=status, categories=list(decided or ()), moderator="m"
        )

    return add


@pytest.fixture
def again(state, make_row):
    """`again(new, {"name": scores})` -> the past decisions under a taxonomy with new scores, by name."""

    def judge(new, scores):
        from judge.verdicts.rows import Judging, verdict_row
        from prompts.verdict import verdict_from_scores

        found = {}
        for past in past_decisions(state, new, _new_names):
            name = past.decision.item.name
            known = [score for score in scores[name] if not math.isnan(score)]
            verdict = verdict_from_scores(max(known, default=NAN), scores[name], new)
            found[name] = Replayed(past, verdict_row(verdict, Judging(new), time=""))
        return found

    return judge


def test_a_better_wording_fixes_what_was_overruled(own_taxonomy, decide, again):
    new = own_taxonomy.reword({"Gore": "wounds and blood, not ketchup"})
    decide("ketchup", [0.1, 0.1, 0.9], SAFE)
    decide("wound", [0.1, 0.1, 0.9], ("Gore",))
    decide("knife", [0.9, 0.1, 0.1], ("Knives",))
    found = again(new, {"ketchup": [0.1, 0.1, 0.2], "wound": [0.1, 0.1, 0.3], "knife": [0.7, 0.1, 0.2]})
    assert [found[name].changed for name in ("ketchup", "wound", "knife")] == [True, True, False]
    assert (found["ketchup"].change, found["wound"].change) == ("fixed", "broken")
    assert summary(list(found.values())) == {
        "decisions": 3,
        "agreed_before": 2,
        "agree_now": 2,
        "unjudged_now": 0,
        "fixed": 1,
        "broken": 1,
        "changed": 0,
    }


@pytest.mark.parametrize(
    ("before", "decided", "now", "agreed", "agrees", "changed"),
    [
        ([0.9, 0.1, 0.1], SOME, [0.1, 0.1, 0.9], "agrees", "agrees", True),
        ([0.9, 0.1, 0.1], SOME, [0.1, 0.1, 0.1], "agrees", "disagrees", True),
        ([0.9, 0.1, 0.1], ("Gore",), [0.9, 0.1, 0.9], "disagrees", "disagrees", True),
        ([0.9, 0.1, 0.1], ("Gore",), [0.1, 0.1, 0.9], "disagrees", "agrees", True),
        ([NAN, NAN, NAN], SAFE, [0.1, 0.1, 0.1], "unjudged", "agrees", True),
        ([0.1, 0.1, 0.1], SAFE, [NAN, NAN, NAN], "agrees", "unjudged", True),
        ([0.1, 0.1, 0.1], SAFE, [0.2, 0.2, 0.2], "agrees", "agrees", False),
    ],
)
def test_agreement(own_taxonomy, decide, again, before, decided, now, agreed, agrees, changed):
    decide("a", before, decided)
    one = again(own_taxonomy, {"a": now})["a"]
    assert (one.past.agreed_before, one.agrees_now, one.changed) == (agreed, agrees, changed)


def test_categories_come_and_go(own_taxonomy, decide, again):
    """A renamed category is the same one; of a new one nobody decided anything; a removed one is no reason any more."""
    new = own_taxonomy.drop(["Gore"]).rename({"Knives": "Blades"}).extend([Category("Guns", "a gun")])
    decide("knife", [0.9, 0.1, 0.1], ("Knives",))
    decide("gore", [0.1, 0.1, 0.9], ("Gore",))
    decide("gun", [0.1, 0.1, 0.1], SAFE)
    found = again(new, {"knife": [0.9, 0.1, 0.1], "gore": [0.1, 0.1, 0.1], "gun": [0.1, 0.1, 0.9]})
    assert found["knife"].past.decided_about == {"Blades", "Cannabis; leaves"}
    assert found["knife"].past.expected == {"Blades"}
    assert found["gore"].past.expected == set()
    assert [one.agrees_now for one in found.values()] == ["agrees"] * 3
    assert [one.past.agreed_before for one in found.values()] == ["agrees"] * 3
    assert not any(one.changed for one in found.values())


def test_a_judge_without_scores_of_categories(own_taxonomy, decide, again):
    from dataclasses import replace

    decide("a", [0.9, 0.1, 0.1], ("Knives",))
    one = again(own_taxonomy, {"a": [0.9, 0.1, 0.1]})["a"]
    told = replace(one, row={**one.row, "flags": {}})
    assert (told.agrees_now, told.changed) == ("agrees", True)
    assert replace(told, row={**told.row, "status": "safe"}).agrees_now == "disagrees"


def test_which_decisions_count(state, own_taxonomy, decide):
    decide("a", [0.9, 0.1, 0.1], SAFE)
    decide("a", [0.9, 0.1, 0.1], ("Knives",))
    decide("a", [0.9, 0.1, 0.1], SAFE, prompt="another question")
    decide("skipped", [0.9, 0.1, 0.1], SAFE)
    decide("skipped", [0.9, 0.1, 0.1], "skip")
    state.delete_item(decide("deleted", [0.9, 0.1, 0.1], SAFE).item.id)
    found = past_decisions(state, own_taxonomy, _new_names)
    assert [(one.decision.item.prompt, one.expected) for one in found] == [
        (None, {"Knives"}),
        ("another question", set()),
    ]
    with pytest.raises(ConfigError, match="Nothing was decided"):
        decisions_about(state, Taxonomy("other", "1", (Category("Guns", "a gun"),)))


def test_who_judged_then(state, own_taxonomy, decide):
    decide("a", [0.9, 0.1, 0.1], SAFE, model_hash="ab" * 32)
    decide("b", [0.9, 0.1, 0.1], SAFE, model_hash="cd" * 32)
    past = past_decisions(state, own_taxonomy, _new_names)
    assert list(other_judges(past, "ab" * 32)) == ["fake"]
    assert list(other_judges(past[:1], "ab" * 32)) == []
    assert list(other_judges(past, None)) == ["fake"], "a judge without a hash may be any"


SCORES = st.tuples(*[st.floats(0, 1)] * 3)


@given(scores=SCORES)
def test_nothing_changes_where_nothing_changed(own_taxonomy, make_row, scores):
    """The same verdict agrees as it did, whatever was decided."""
    from judge.records.entries import Decision, Item, Ruling
    from judge.records.replay import _in_new_words

    row = make_row(list(scores))
    flagged = tuple(name for name, flag in row["flags"].items() if flag)
    item = Item(1, "a", "0" * 64, None, "decided", "")
    for ruling in (
        Ruling("agree", row["status"], flagged),
        Ruling("overrule", "unsafe", ()),
        Ruling("overrule", "safe", ()),
    ):
        decision = Decision(1, item, 1, row, ruling, None, "m", "")
        one = Replayed(_in_new_words(decision, {name: name for name in own_taxonomy.names}), row)
        assert not one.changed
        assert one.agrees_now == one.past.agreed_before
        assert (one.agrees_now == "agrees") or ruling.action == "overrule"


def run(*words):
    return cli.main(["decisions", *map(str, words)])


def test_decisions_are_listed(state, decide, tmp_path, capsys):
    decide("=a\x1b[31m", [0.9, 0.1, 0.1], ("Knives",))
    decide("b", [0.9, 0.1, 0.1], SAFE)
    decide("c", [0.9, 0.1, 0.1], "skip")
    where = ("--state", tmp_path / "state")
    assert run("list", *where) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [
        "id",
        "time",
        "moderator",
        "image",
        "action",
        "decided",
        "verdict",
        "taxonomy",
    ]
    assert [line.split()[4] for line in lines[1:]] == ["agree", "overrule", "skip"]
    assert r"=a\x1b[31m" in lines[1]
    assert run("list", *where, "--json", "--limit", 2) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["name"] for row in rows] == ["b", "c"]
    assert rows[0] == state.decisions()[1].to_dict()


def test_the_log_is_written_as_a_table(state, decide, tmp_path, capsys):
    decide("=a", [0.9, 0.1, 0.1], ("Knives",))
    where = ("--state", tmp_path / "state")
    assert run("export", "-", "--csv", *where) == 0
    printed = capsys.readouterr().out
    assert next(csv.DictReader(io.StringIO(printed)))["name"] == "'=a"
    assert run("export", tmp_path / "log.csv", "--csv", *where) == 0
    assert (tmp_path / "log.csv").read_text() == printed
    assert run("export", tmp_path / "log.csv", "--csv", *where) == 2, "nothing is overwritten"
    assert "log.csv" in capsys.readouterr().err


def test_rows_are_exported(state, decide, noise_image, tmp_path, capsys, make_row, own_taxonomy):
    written = io.BytesIO()
    noise_image(1).save(written, "PNG")
    [item] = state.add_items([NewItem(written.getvalue(), "a.png")])
    stored = state.add_verdict(item.id, make_row([0.9, 0.1, 0.1], sha256=item.sha256), own_taxonomy)
    state.decide(item.id, stored.id, "agree", moderator="m")
    decide("no image", [0.9, 0.1, 0.1], SAFE)
    words = ("export", tmp_path / "rows", "--state", tmp_path / "state")
    assert run(*words) == 0
    captured = capsys.readouterr()
    assert "labels.csv" in captured.out
    assert "left out: 1" in captured.err
    assert {path.name for path in (tmp_path / "rows").iterdir()} == {
        "images",
        "labels.csv",
        "taxonomy.yaml",
        "export.json",
    }
    assert run(*words) == 2
    assert "no empty folder" in capsys.readouterr().err


def test_a_folder_without_records(tmp_path, capsys):
    for words in (("list",), ("export", tmp_path / "rows")):
        assert run(*words, "--state", tmp_path / "nowhere") == 2
        assert "holds no records" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [], "and none is made"


@pytest.fixture
def decided_shades(state, make_row, own_taxonomy):
    """Three dark and bright pictures, and what a moderator decided: the bright ones show knives, and one is gone."""
    for name, shade, status in (("bright", 250, "unsafe"), ("dim", 120, "unsafe"), ("gone", 0, "safe")):
        written = io.BytesIO()
        Image.new("RGB", (8, 8), (shade, 0, 0)).save(written, "PNG")
        [item] = state.add_items([NewItem(written.getvalue(), name)])
        stored = state.add_verdict(item.id, make_row([shade / 255, 0, 0], sha256=item.sha256), own_taxonomy)
        action = "agree" if stored.row["status"] == status else "overrule"
        names = ["Knives"] if status == "unsafe" else []
        state.decide(item.id, stored.id, action, status=status, categories=names, moderator="m")
    return state


def test_a_new_wording_is_tested_on_decisions(decided_shades, own_taxonomy, monkeypatch, tmp_path, capsys):
    import judge

    new = tmp_path / "new.yaml"
    new.write_text(own_taxonomy.reword({"Knives": "any knife"}).to_yaml())
    monkeypatch.setattr(judge, "load_classifier", lambda *_, **__: ColourJudge(own_taxonomy), raising=False)
    words = ["taxonomy", "test", str(new), "--judge", "runs/any", "--decisions", str(tmp_path / "state")]
    assert cli.main([*words, "--threshold", "0.4"]) == 0
    captured = capsys.readouterr()
    changed = next(line for line in captured.out.splitlines() if "dim" in line)
    assert changed.split() == ["2", "dim", "Knives", "safe", "Knives", "0.471", "fixed"]
    assert captured.out.splitlines()[-1].split() == ["3", "2", "3", "0", "1", "0", "0"]
    assert "verdicts of the time are by fake" in captured.err
    assert cli.main([*words, "--threshold", "0.99", "--json", "--quiet"]) == 1
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert (told["broken"], told["fixed"], told["agree_now"]) == (1, 0, 1)
    assert [one["change"] for one in told["results"]] == ["broken", None, None]
    assert captured.err == ""
    for path in (tmp_path / "state" / "images").iterdir():
        path.unlink()
    assert cli.main([*words, "--threshold", "0.4"]) == 3, "nobody can judge what is gone"
    assert capsys.readouterr().out.splitlines()[-1].split()[3] == "3"


def test_cases_and_decisions_are_two_tests(decided_shades, own_taxonomy, tmp_path, capsys):
    new = tmp_path / "new.yaml"
    new.write_text(own_taxonomy.to_yaml())
    words = ["taxonomy", "test", str(new), "--judge", "runs/any"]
    where = ["--decisions", str(tmp_path / "state")]
    for more in ([], [*where, "cases.csv"], [*where, "--against", str(new)]):
        assert cli.main([*words, *more]) == 2
        assert "or else --decisions" in capsys.readouterr().err
