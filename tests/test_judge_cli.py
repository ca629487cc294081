"""`arbiter`: every option, exit code and error, with a classifier that scores colours."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import judge
from judge.lessons.evidence import Evidence, read_text
from judge.protocol import Scores
from judge.runs.folder import RunDir
from judge.serve import recipe_files as recipes
from judge.serve.cli import main
from judge.serve.options import parse_threshold, read_threshold
from prompts import ArbiterError, Taxonomy, load_taxonomy

DIGITS = load_taxonomy("digits")


class RedJudge:
    """The redder, the less safe; blames the first category. A blue image cannot be judged."""

    name = "red-judge"
    supports_multilabel = True
    default_taxonomy: Taxonomy | None = DIGITS
    evidence: Evidence | None = Evidence(frozenset(map(read_text, DIGITS)))

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def score(
        self,
        images: Sequence[Image.Image],
        prompts: Sequence[str | None] | None,
        taxonomy: Taxonomy,
        multilabel: bool = False,
    ) -> Scores:
        self.calls.append(
            {"n": len(images), "prompts": prompts, "taxonomy": taxonomy, "multilabel": multilabel}
        )
        colours = np.array([image.getpixel((0, 0)) for image in images], dtype=float).reshape(-1, 3)
        unsafe = np.where(colours[:, 2] > 0, np.nan, colours[:, 0] / 255)
        categories = np.zeros((len(images), len(taxonomy)))
        categories[:, 0] = unsafe
        reasons = tuple("too blue" if np.isnan(value) else None for value in unsafe)
        return Scores(unsafe, categories, reasons)


@pytest.fixture
def red(monkeypatch: pytest.MonkeyPatch) -> RedJudge:
    """Stands in for `load_classifier`; `loaded` on it keeps what was asked for."""
    classifier = RedJudge()

    def load(name: str, **options: Any) -> RedJudge:
        classifier.loaded = (name, options)  # type: ignore[attr-defined]
        return classifier

    monkeypatch.setattr(judge, "load_classifier", load, raising=False)
    return classifier


@pytest.fixture
def picture(tmp_path: Path) -> Callable[..., str]:
    def make(name: str, red: int = 0, blue: int = 0) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (red, 0, blue)).save(path, "PNG")
        return str(path)

    return make


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str], str]:
    """(exit code, lines on standard output, standard error)."""
    code = main(arguments)
    captured = capsys.readouterr()
    return code, captured.out.splitlines(), captured.err


# --- exit codes --------------------------------------------------------------------------------------------


def test_all_safe_is_zero(
    red: RedJudge, picture: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines, errors = run(capsys, "judge", picture("a.png"), picture("b.png", red=100), "--judge", "run")
    assert (code, len(lines)) == (0, 2)
    assert errors == "2 images: 0 flagged, 2 safe, 0 not judged\n"


def test_something_flagged_is_one_even_beside_something_unjudged(
    red: RedJudge, picture: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines, errors = run(capsys, "judge", picture("a.png", red=255), "missing.png", "--judge", "run")
    assert code == 1
    assert lines[0].startswith("unsafe ")
    assert lines[1].startswith("unjudged ")
    assert "1 flagged, 0 safe, 1 not judged" in errors


def test_unjudged_is_three_and_never_safe(
    red: RedJudge, picture: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines, _ = run(capsys, "judge", picture("blue.png", blue=9), picture("a.png"), "--judge", "run")
    assert code == 3
    assert "too blue" in lines[0]
    assert lines[1].startswith("safe ")


def test_unreadable_images_do_not_stop_the_rest(
    red: RedJudge, picture: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.png").write_bytes(Path(picture("x.png")).read_bytes()[:40])
    code, lines, _ = run(
        capsys,
        "judge",
        str(tmp_path / "broken.png"),
        str(tmp_path / "x.png"),
        str(tmp_path / "none"),
        "--judge",
        "r",
    )
    assert code == 3
    assert [line.split()[0] for line in lines] == ["unjudged", "safe", "unjudged"]
    assert "(unreadable: starts like PNG" in lines[0]
    assert "missing: no such file" in lines[2]
    assert red.calls[0]["n"] == 1


def test_nothing_readable_never_reaches_the_classifier(
    red: RedJudge, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.png").touch()
    code, _, _ = run(capsys, "judge", str(tmp_path / "empty.png"), "--judge", "run")
    assert code == 3
    assert red.calls == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing command. (see arbiter --help)"),
        (["judge"], "Missing argument 'PATH'. (see arbiter judge --help)"),
        (["judge", "--judge", "r"], "Missing argument 'PATH'"),
        (["judge", "a.png"], "Missing option '--judge'"),
        (["judge", "a.png", "--judge"], "Option '--judge' requires an argument"),
        (["judge", "a.png", "--judge", "r", "--unknown"], "No such option: --unknown"),
        (["judge", "a.png", "--judge", "r", "--treshold", "1"], "--treshold (Possible options: --threshold)"),
        (["judge", "a.png", "--judge", "r", "--jso"], "No such option: --jso"),  # never abbreviated
        (["judge", "a.png", "--judge", "r", "--batch-size", "0"], "'--batch-size': Input should be greater"),
        (
            ["judge", "a.png", "--judge", "r", "--batch-size", "x"],
            "'--batch-size': Input should be a valid int",
        ),
        (["judge", "a.png", "--judge", "r", "--threshold", "2"], "from 0 to 1"),
        (["judge", "a.png", "--judge", "r", "--threshold", "three=x"], "from 0 to 1"),
        (["judge", "a.png", "--judge", "r", "--threshold", "nan"], "from 0 to 1"),
        (["judge", "a.png", "--judge", "r", "--threshold", ".5", "--threshold", "three=.2"], "not both"),
        (["judge", "a.png", "--judge", "r", "--threshold", "thre=.2"], "did you mean 'three'"),
        (["judge", "a.png", "--judge", "r", "--taxonomy", "digitz"], "digits"),
        (["judge", "a.png", "--judge", "r", "--categories", "thre"], "did you mean 'three'"),
        (["judge", "a.png", "--judge", "r", "--categories", ","], "Nothing selected"),
        (["judge", "a.png", "--judge", "r", "--custom", "no definition"], 'write "NAME: DEFINITION"'),
        (["judge", "a.png", "--judge", "r", "--custom", "three: again"], "three"),
        (["judge", "--judge", "r", "empty"], "No images found"),
        (["judge", "aa.png", "--judge", "r"], "aa.png: no such file (did you mean 'a.png'?)"),
        (
            ["judge", "a.png", "--judge", "r", "--threshold", "three=0.1,seven=x"],
            "'seven=x': expected a number",
        ),
        (["judge", "a.png", "--judge", "r", "--threshold", "three=0.1,Three=0.2"], "give each once"),
        (["judge", "a.png", "--judge", "r", "--sort", "scroe"], "--sort scroe: choose one of"),
        (
            ["judge", "a.png", "--judge", "r", "--csv", "a.png"],
            "--csv a.png: give a file whose name ends in .csv",
        ),
        (["judge", "a.png", "--judge", "r", "--html", "no/x.html"], "there is no folder no"),
        (
            ["judge", "a.png", "--judge", "r", "--prompts", "x.csv"],
            "x.csv: no such file",
        ),
        (["judge", "a.png", "--judge", "r", "--prompts", "x.csv", "--prompt", "x"], "not both"),
        (["nonsense"], "No such command 'nonsense'"),
        (["taxonomy"], "Missing command. (see arbiter taxonomy --help)"),
        (["recipes", "cppy"], "Did you mean 'copy'?"),
        (["merge", "runs/demo"], "Missing argument 'OUT'"),
        (["taxonomy", "show", "digitz"], "digits"),
        (["taxonomy", "check", "nowhere.yaml"], "no file"),
        (["recipes", "copy", "lora_lava"], "No recipe 'lora_lava'"),
    ],
)
def test_usage_errors_are_two(
    red: RedJudge,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (4, 4)).save("a.png")
    (tmp_path / "empty").mkdir()
    code, lines, errors = run(capsys, *arguments)
    assert (code, lines) == (2, [])
    assert message in errors
    assert errors.startswith("arbiter: ")
    assert errors.count("\n") == 1


def test_a_judge_without_a_taxonomy_asks_for_one(
    red: RedJudge, picture: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    red.default_taxonomy = None
    code, _, errors = run(capsys, "judge", picture("a.png"), "--judge", "run")
    assert code == 2
    assert "give --taxonomy" in errors
    assert run(capsys, "judge", picture("a.png"), "--judge", "run", "--taxonomy", "digits")[0] == 0


# --- options -----------------------------------------------------------------------------------------------


def test_options_reach_the_judge(
    red: RedJudge, picture: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [picture(f"{index}.png") for index in range(5)]
    options = ["--batch-size", "2", "--device", "cpu", "--prompt", "a red house", "--multilabel"]
    assert run(capsys, "judge", *paths, "--judge", "runs/x", *options)[0] == 0
    assert red.loaded == ("runs/x", {"device": "cpu", "batch_size": 2, "prompt_mode": "max"})  # type: ignore[attr-defined]
    assert [call["n"] for call in red.calls] == [2, 2, 1]
    assert red.calls[0]["prompts"] == ["a red house"] * 2
    assert red.calls[2]["multilabel"] is True
    server = "http://localhost:8000/v1#m"
    assert run(capsys, "judge", paths[0], "--judge", "runs/x", "--stage-judge", server)[0] == 0
    assert red.loaded[1]["stage_judge"] == server  # type: ignore[attr-defined]
    assert run(capsys, "judge", paths[0], "--judge", "runs/x", "--prompt-mode", "ignore")[0] == 0
    assert red.loaded[1]["prompt_mode"] == "ignore"  # type: ignore[attr-defined]
    code, _, errors = run(capsys, "judge", paths[0], "--judge", "runs/x", "--prompt-mode", "maybe")
    assert code == 2
    assert "No prompt mode 'maybe'; choose one of max, use, ignore" in errors


def test_plain_calls_pass_no_multilabel(
    red: RedJudge,
    picture: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = RedJudge.score
    monkeypatch.delattr(RedJudge, "supports_multilabel")
    monkeypatch.setattr(
        RedJudge, "score", lambda self, images, prompts, taxonomy: whole(self, images, prompts, taxonomy)
    )
    assert run(capsys, "judge", picture("a.png"), "--judge", "r")[0] == 0
    code, _, errors = run(capsys, "judge", picture("a.png"), "--judge", "r", "--multilabel")
    assert code == 2
    assert "--multilabel: red-judge" in errors


def test_categories_and_custom_ones(
    red: RedJudge, picture: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(DIGITS.to_yaml())
    options = [
        "--categories",
        "THREE, seven",
        "--categories",
        "one",
        "--custom",
        "Balloons: toy balloons: any colour",
    ]
    assert run(capsys, "judge", picture("a.png"), "--judge", "r", "--taxonomy", str(file), *options)[0] == 0
    taxonomy = red.calls[0]["taxonomy"]
    assert taxonomy.names == ("three", "seven", "one", "Balloons")
    assert taxonomy.categories[3].definition == "toy balloons: any colour"


def test_thresholds(red: RedJudge, picture: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    path = picture("a.png", red=102)  # 0.4
    assert run(capsys, "judge", path, "--judge", "r")[0] == 0
    assert run(capsys, "judge", path, "--judge", "r", "--threshold", "0.4")[0] == 1
    named = f"{DIGITS.names[0]}=0.3"
    assert run(capsys, "judge", path, "--judge", "r", "--threshold", named)[0] == 1
    assert read_threshold(None) == read_threshold([]) == 0.5
    assert parse_threshold(["a=b=0.25"]) == {"a=b": 0.25}
    assert parse_threshold(["three=0.9, seven=0.3", "one=1"]) == {"three": 0.9, "seven": 0.3, "one": 1}
    assert parse_threshold(["Alcohol, tobacco=0.3", "x=0"]) == {"Alcohol, tobacco": 0.3, "x": 0}
    for twice in (["a=0.1", "b=0.5", "A=0.9"], ["0.3", "0.4"]):
        with pytest.raises(ArbiterError, match=f"{twice[-1]}.*give each once"):
            parse_threshold(twice)


def test_options_and_paths_may_stand_in_any_order(
    red: RedJudge, picture: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = picture("a.png"), picture("b.png", red=255)
    code, lines, _ = run(capsys, "judge", "--judge=r", first, "--threshold=0.9", second)
    assert (code, [line.split()[0] for line in lines]) == (1, ["safe", "unsafe"])


def test_a_file_called_like_an_option_is_judged(
    red: RedJudge,
    picture: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Otherwise a file named `--debug` would be hidden from `arbiter judge --judge r -- *`."""
    monkeypatch.chdir(Path(picture("a.png")).parent)
    for name in ("--debug", "--help", "-0"):
        picture(name, red=255)
        code, lines, _ = run(capsys, "judge", "--judge", "r", "--", "a.png", name)
        assert (code, [line.split()[0] for line in lines]) == (1, ["safe", "unsafe"])


def test_a_file_name_need_not_be_unicode(
    red: RedJudge, picture: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        path = picture("\udcff.png", red=255)
    except OSError:
        pytest.skip("this file system has Unicode names only")
    code, lines, _ = run(capsys, "judge", path, "--judge", "r")
    assert code == 1
    assert lines[0].endswith("\\udcff.png")


def test_json_lines(red: RedJudge, picture: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    paths = [picture("a.png", red=255), picture("b.png", blue=1), "gone.png"]
    code, lines, _ = run(capsys, "judge", *paths, "--judge", "r", "--json")
    first, second, third = map(json.loads, lines)
    assert code == 1
    assert [row["image"]["path"] for row in (first, second, third)] == paths
    assert (first["status"], first["flagged"], first["unsafe"]) == ("unsafe", True, 1.0)
    assert (first["category"], first["model"]["name"], first["taxonomy"]["hash"]) == (
        DIGITS.names[0],
        "red-judge",
        DIGITS.hash,
    )
    assert (second["status"], second["flagged"], second["unsafe"]) == ("unjudged", None, None)
    assert second["reason"] == "too blue"
    assert third["reason"] == "missing: no such file"


def test_a_prompt_that_was_not_read_is_noted(
    red: RedJudge,
    picture: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = RedJudge.score
    monkeypatch.setattr(
        RedJudge,
        "score",
        lambda *given, **options: replace(whole(*given, **options), notes=("the prompt was not read",)),
    )
    _, [line], _ = run(capsys, "judge", picture("a.png"), "--judge", "r")
    assert line.endswith("a.png  (the prompt was not read)")
    _, [line], _ = run(capsys, "judge", picture("a.png"), "--judge", "r", "--json")
    assert json.loads(line)["note"] == "the prompt was not read"


def test_text_lines_are_aligned_and_harmless(
    red: RedJudge, picture: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [picture("a.png", red=255), picture("b\x1b[2J\n.png"), picture("ü.png", blue=3)]
    _, lines, _ = run(capsys, "judge", *paths, "--judge", "r")
    assert len(lines) == 3
    assert {line.index("/") for line in lines} == {lines[0].index("/")}
    assert "\x1b" not in lines[1]
    assert "b\\x1b[2J\\n.png" in lines[1]
    assert lines[2].endswith("ü.png  (too blue)")


# --- the other commands ------------------------------------------------------------------------------------


def test_taxonomy_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines, _ = run(capsys, "taxonomy", "list")
    assert code == 0
    assert {line.split()[0] for line in lines} >= {"digits", "unsafebench", "openai-moderation"}
    code, lines, _ = run(capsys, "taxonomy", "show", "digits")
    (tmp_path / "mine.yaml").write_text("\n".join(lines))
    assert load_taxonomy(tmp_path / "mine.yaml") == DIGITS
    code, lines, _ = run(capsys, "taxonomy", "check", str(tmp_path / "mine.yaml"))
    assert code == 0
    assert "10 categories" in lines[0]
    assert DIGITS.short_hash in lines[0]
    (tmp_path / "mine.yaml").write_text("name: x\n")
    code, _, errors = run(capsys, "taxonomy", "check", str(tmp_path / "mine.yaml"))
    assert code == 2
    assert "mine.yaml" in errors


def test_merge(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    import types

    monkeypatch.chdir(tmp_path)  # whatever happens, no model is written into the sources
    calls: list[tuple[Path, Path]] = []
    fake = types.ModuleType("judge.publish.merge")
    fake.merge_run = lambda run, out, details: calls.append((run, out))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "judge.publish.merge", fake)
    assert run(capsys, "merge", "runs/demo", "merged") == (
        0,
        ["Wrote merged; merged/serve.md says how to serve it"],
        "",
    )
    assert calls == [(Path("runs/demo"), Path("merged"))]


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "shelf"
    (folder / "configs" / "accelerate").mkdir(parents=True)
    (folder / "lora_llava.py").write_text('"""Train a judge.\n\nMore.\n"""\nraise SystemExit("never run")\n')
    (folder / "other.py").write_text("x = 1\n")
    (folder / "configs" / "lora_llava.yaml").write_text("a: 1\n")
    (folder / "configs" / "accelerate" / "cpu.yaml").write_text("b: 2\n")
    (folder / "configs" / "junk.pyc").write_text("")
    monkeypatch.setattr(recipes, "recipes_folder", lambda: folder)
    return folder


def test_recipes_are_listed_without_running(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines, _ = run(capsys, "recipes", "list")
    assert code == 0
    assert [line.split(maxsplit=1) for line in lines] == [["lora_llava", "Train a judge."], ["other"]]


def test_recipes_are_copied_and_nothing_is_overwritten(
    shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    code, lines, _ = run(capsys, "recipes", "copy", "lora_llava", str(out))
    assert code == 0
    wanted = ["lora_llava.py", "configs/accelerate/cpu.yaml", "configs/lora_llava.yaml"]
    assert [str(Path(line).relative_to(out)) for line in lines] == wanted
    assert sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()) == sorted(wanted)
    assert run(capsys, "recipes", "copy", "other.py", str(out)) == (0, [str(out / "other.py")], "")
    (out / "configs" / "lora_llava.yaml").write_text("a: mine\n")
    (out / "lora_llava.py").unlink()
    code, _, errors = run(capsys, "recipes", "copy", "lora_llava", str(out))
    assert code == 2
    assert "Would overwrite" in errors
    assert not (out / "lora_llava.py").exists()
    assert (out / "configs" / "lora_llava.yaml").read_text() == "a: mine\n"


def test_recipes_of_this_checkout_are_found() -> None:
    assert recipes.recipes_folder().name in ("recipes", "_recipes")


def test_missing_recipes_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "files", lambda package: tmp_path / "judge")
    with pytest.raises(ArbiterError, match="No recipes beside"):
        recipes.recipes_folder()


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    code, lines, _ = run(capsys, "--version")
    assert code == 0
    assert lines[0].startswith("arbiter")


def test_help_explains_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    code, lines, _ = run(capsys, "judge", "--help")
    assert code == 0
    assert "  Exit codes:" in lines
    assert any("even if others could not be judged" in line for line in lines)


@pytest.mark.parametrize(
    "words",
    [
        *([], ["judge"], ["calibrate"], ["merge"], ["export"], ["taxonomy"], ["recipes"]),
        *(["taxonomy", "show"], ["taxonomy", "check"], ["recipes", "list"], ["recipes", "copy"]),
    ],
    ids=" ".join,
)
def test_help_fits_a_terminal_of_80_columns(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for option in ("-h", "--help"):
        code, lines, _ = run(capsys, *words, option)
        assert code == 0
        assert lines[0].startswith(" ".join(["Usage: arbiter", *words]))
        assert max(map(len, lines)) <= 80


# --- evidence ----------------------------------------------------------------------------------------------


def test_verdicts_name_their_evidence_and_its_lack_is_said_once(
    red: RedJudge, picture: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    files = (picture("a.png"), picture("b.png"))
    code, lines, errors = run(capsys, "judge", *files, "--judge", "run", "--json")
    assert [json.loads(line)["evidence"] for line in lines] == ["trained"] * 2
    assert "trained" not in errors
    red.evidence = Evidence(frozenset(), {read_text(DIGITS.categories[3]): 0.957})
    few = ("--judge", "run", "--categories", "three,four", "--custom", "Toys: toys of any kind", "--json")
    code, lines, errors = run(capsys, "judge", *files, *few)
    assert [json.loads(line)["evidence"] for line in lines] == ["none"] * 2
    assert code == 0
    assert errors.count("neither trained nor measured") == 1
    assert "'four', 'Toys', worded so" in errors
    _, lines, errors = run(capsys, "judge", *files, "--judge", "run", "--categories", "three", "--json")
    assert json.loads(lines[0])["evidence"] == "measured 0.96"
    assert "measured" not in errors


def test_a_run_older_than_records_is_named(
    red: RedJudge, picture: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    red.evidence = None
    RunDir.create(tmp_path / "old")
    _, lines, errors = run(capsys, "judge", picture("a.png"), "--judge", str(tmp_path / "old"), "--json")
    assert json.loads(lines[0])["evidence"] == "none"
    assert "older than records of lessons" in errors
    assert "neither" not in errors
    _, _, errors = run(capsys, "judge", picture("a.png"), "--judge", "org/base")
    assert "and 5 more, worded so" in errors  # five of ten are named


def test_what_a_cascade_promises_stands_in_verdicts_and_in_the_end(
    red: RedJudge, picture: Callable[..., str], capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    said = {10: "at most 2.0% missed, calibrated on 400 unsafe images under such policies"}

    monkeypatch.setattr(RedJudge, "outside_promise", lambda self, taxonomy: None, raising=False)
    monkeypatch.setattr(
        RedJudge,
        "promise",
        lambda self, taxonomy: said.get(len(taxonomy), "withdrawn: another list"),
        raising=False,
    )
    _, lines, errors = run(capsys, "judge", picture("a.png"), "--judge", "run", "--json")
    assert json.loads(lines[0])["promise"] == said[10]
    assert errors.endswith(f"promise: {said[10]}\n")
    _, lines, errors = run(capsys, "judge", picture("a.png"), "--judge", "run", "--categories", "three")
    assert errors.endswith("promise: withdrawn: another list\n")
