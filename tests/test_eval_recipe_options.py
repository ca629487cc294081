"""Options of recipes: defaults, the recipe's YAML, the user's, the command line, each over the one before."""

import runpy
import sys
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from eval.recipe import DataOptions, RecipeOptions, check_mapping, parse_options, resume_from, resumes
from judge.errors import ConfigError
from prompts import Category, FlipOptions, Taxonomy
from prompts.errors import ArbiterError, ExampleError

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
CONFIGS = RECIPES / "configs"
OWN = {
    "adversarial_lora": "adversarial_judge",
    "attack": "attack",
    "cascade": "cascade",
    "diffusion_detector": "diffusion_detector",
    "distill_cross_attention": "distill_cross_attention",
    "fixed_head": "linear_probe",
    "lora_llava": "lora_llava",
    "build_corpus": "build_corpus",
    "obedience": "obedience",
    "own_head": "own_head",
    "response_classifier": "response_classifier",
    "robust_encoder": "robust_encoder",
    "robust_student": "robust_student",
    "unsafebench": "unsafebench",
}
"""Recipe -> its own YAML."""
OTHERS = {
    "build_corpus_sdxl": "build_corpus",
    "diffusion_detector_sd": "diffusion_detector",
    "pooled_attention": "fixed_head",
    "prompt_learning": "fixed_head",
    "distill_judge_only": "distill_cross_attention",
    "lora_llava_7b": "lora_llava",
    "lora_onevision_7b": "lora_llava",
    "lora_gemma3_4b": "lora_llava",
    "lora_idefics3_8b": "lora_llava",
    "lora_internvl3_8b": "lora_llava",
    "lora_llava_next_7b": "lora_llava",
    "lora_qwen2_5_vl_7b": "lora_llava",
    "lora_qwen3_vl_8b": "lora_llava",
    "lora_smolvlm_2b": "lora_llava",
    "qlora_gemma3_12b_24gb": "lora_llava",
    "qlora_qwen3_vl_8b_24gb": "lora_llava",
    "pooled_attention_published": "fixed_head",
    "qlora_llava_7b_24gb": "lora_llava",
    "unsafebench_paper": "unsafebench",
}
"""A YAML that ships for other work -> its recipe."""


FOR_OWN_DATA = {"own_data", "own_data_7b", "own_data_student"}
"""What recipes take in place of their own YAML for other data than digits and signs, and what lies over it."""


@dataclass
class Some(RecipeOptions):
    output_dir: str = "runs/library"
    taxonomy: str = "digits"
    held_out: list[str] = field(default_factory=list)
    flip: dict[str, Any] = field(default_factory=dict)
    limit: int | None = None


@dataclass
class More:
    learning_rate: float = 5e-5
    max_steps: int = -1
    num_train_epochs: float = 3.0
    everywhere: bool = True


@pytest.fixture
def parse(tmp_path):
    """`parse(*words, mine=YAML)` under a recipe's YAML; `FILE` among the words is a file with `mine`."""
    own = tmp_path / "own.yaml"
    own.write_text(
        "output_dir: runs/demo\ntaxonomy: digits\nheld_out: [four, eight]\nflip: {group_size: 8, max_categories: 9}\n"
        "learning_rate: 1.0e-3\nmax_steps: 400\n"
    )

    def run(*words, mine=""):
        path = tmp_path / "mine.yaml"
        path.write_text(mine)
        some, more = parse_options((Some, More), own, [word.replace("FILE", str(path)) for word in words])
        return SimpleNamespace(**vars(some), **vars(more))

    return run


def test_each_source_lies_over_the_one_before(parse):
    plain = parse()
    assert (plain.output_dir, plain.learning_rate, plain.limit) == ("runs/demo", 1e-3, None)
    mine = parse("--config", "FILE", mine="limit: 7\nmax_steps: 9\n")
    assert (mine.output_dir, mine.learning_rate, mine.limit, mine.max_steps) == ("runs/demo", 1e-3, 7, 9)
    last = parse("--max_steps", "2", "--config=FILE", mine="limit: 7\nmax_steps: 9\n")
    assert (last.limit, last.max_steps, last.held_out) == (7, 2, ["four", "eight"])


def test_several_files_lie_over_each_other(parse, tmp_path):
    first = tmp_path / "first.yaml"
    first.write_text("limit: 1\nmax_steps: 1\n")
    found = parse("--config", str(first), "--config", "FILE", mine="limit: 2\n")
    assert (found.limit, found.max_steps) == (2, 1)


def test_a_mapping_is_replaced_as_a_whole(parse):
    assert parse("--config", "FILE", mine="flip: {group_size: 2}\n").flip == {"group_size": 2}


@pytest.mark.parametrize(("words", "mine"), [(["--held_out"], ""), (["--config", "FILE"], "held_out: []\n")])
def test_an_empty_list_can_be_given(parse, words, mine):
    assert parse(*words, mine=mine).held_out == []
    assert parse(*words, "--limit", "3", mine=mine).limit == 3


def test_numbers_without_a_point_are_numbers_in_a_file_too(parse):
    assert parse("--config", "FILE", mine="learning_rate: 2e-4\n").learning_rate == 2e-4
    assert parse("--max_steps", "-1", "--learning-rate", "3e-5").max_steps == -1


def test_what_belongs_to_the_recipes_taxonomy_goes_with_it(parse):
    assert parse("--taxonomy", "mine.yaml").held_out == []
    assert parse("--config", "FILE", mine="taxonomy: mine.yaml\n").held_out == []
    assert parse("--taxonomy", "mine.yaml", "--held_out", "hats").held_out == ["hats"]
    assert parse("--taxonomy", "digits").held_out == ["four", "eight"]


def test_epochs_are_not_overruled_by_the_recipes_steps(parse):
    assert parse("--num_train_epochs", "3").max_steps == -1
    assert parse("--config", "FILE", mine="num_train_epochs: 2\n").max_steps == -1
    assert parse("--num_train_epochs", "3", "--max_steps", "5").max_steps == 5


def test_what_differs_is_told_and_kept(parse, capsys, monkeypatch):
    assert parse().changed == {}
    assert capsys.readouterr().out == ""
    found = parse("--taxonomy", "mine.yaml", "--learning_rate", "0.001", "--limit", "5")
    assert found.changed == {
        "taxonomy": {"recipe": "digits", "here": "mine.yaml"},
        "held_out": {"recipe": ["four", "eight"], "here": []},
        "limit": {"recipe": None, "here": 5},
    }
    told = capsys.readouterr().out
    assert told.startswith("Options that differ from own.yaml:\n")
    assert "held_out  four, eight -> none" in told
    assert "learning_rate" not in told
    monkeypatch.setenv("RANK", "1")
    parse("--limit", "5")
    assert capsys.readouterr().out == "", "once, not once a process"


@pytest.mark.parametrize(
    ("words", "mine", "says"),
    [
        (["--limits", "3"], "", "unknown option '--limits' .did you mean 'limit'"),
        (["--lim", "3"], "", "unknown option '--lim'"),
        (["stray"], "", "unknown option 'stray'"),
        (["--resume_from_checkpoint", "true"], "", "keeps no checkpoints"),
        (
            ["--config", "FILE"],
            "learning_rat: 1\n",
            "mine.yaml has an unknown option 'learning_rat' .did you mean",
        ),
        (["--config", "FILE"], "- 1\n", "holds no mapping"),
        (["--config", "FILE"], "", "holds no mapping"),
        (["--config", "FILE"], "a: [1\n", "cannot be read as YAML"),
        (["--config", "nowhere.yaml"], "", "nowhere.yaml cannot be read"),
        (["--config", "FILE"], "held_out: four\n", r"held_out in .* is 'four'; write a list"),
        (["--config", "FILE"], "held_out:\n", "write a list"),
        (["--config", "FILE"], "flip: 8\n", "write a mapping"),
        (["--config", "FILE"], "limit: 2.5\n", "write a whole number"),
        (["--config", "FILE"], "limit: true\n", "write a whole number, or null"),
        (["--config", "FILE"], "limit: many\n", "limit in .* is 'many'; write a whole number"),
        (["--config", "FILE"], "taxonomy: [a]\n", r"taxonomy in .* is \['a'\]; write text"),
        (["--config", "FILE"], "output_dir:\n", "output_dir in .* is None; write text"),
        (["--config", "FILE"], "taxonomy: 3\n", "write text .in quotes if it is a number"),
        (["--config", "FILE"], "held_out: [1]\n", "write a list"),
        (["--config", "FILE"], "learning_rate: fast\n", "learning_rate in .* is 'fast'; write a number"),
        (["--config", "FILE"], "num_train_epochs: true\n", "is True; write a number"),
        (["--config", "FILE"], "everywhere: 1\n", "write true or false"),
    ],
)
def test_what_cannot_be_meant_stops_the_run(parse, words, mine, says):
    with pytest.raises(ConfigError, match=says):
        parse(*words, mine=mine)


def test_values_that_fit_are_taken(parse):
    mine = "limit: null\nlearning_rate: 1\nmax_steps: '7'\neverywhere: no\nheld_out: [a, 'no']\n"
    found = parse("--config", "FILE", mine=mine)
    assert (found.limit, found.learning_rate, found.max_steps) == (None, 1.0, 7)
    assert (found.everywhere, found.held_out) == (False, ["a", "no"])


def test_what_a_run_recorded_of_itself_is_no_option(parse):
    mine = "limit: 3\nprocesses: 2\nchanged: {limit: {recipe: null, here: 3}}\n"
    assert parse("--config", "FILE", mine=mine).limit == 3


def test_a_mapping_is_checked_against_the_class_it_fills():
    check_mapping("flip", {"group_size": 4, "rename": 0, "names": ["x"]}, FlipOptions)
    with pytest.raises(
        ConfigError, match=r"flip has an unknown field 'groupsize' .did you mean 'group_size'"
    ):
        check_mapping("flip", {"groupsize": 4}, FlipOptions)
    with pytest.raises(ConfigError, match=r"flip\.group_size is 'lots'; write a whole number"):
        check_mapping("flip", {"group_size": "lots"}, FlipOptions)
    with pytest.raises(ConfigError, match="unknown field 'held_out'"):
        check_mapping("flip", {"held_out": ["four"]}, FlipOptions, without=("held_out",))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"flip": {"groupsize": 4}}, "flip has an unknown field"),
        ({"flip": {"group_size": 3}}, "group_size is 3"),
        ({"max_failures": 2.0}, "max_failures is 2.0; it is a share, from 0 to 1"),
    ],
)
def test_data_options_are_checked_before_anything_is_read(options, says):
    with pytest.raises(ArbiterError, match=says):
        DataOptions(**options)


def test_words_in_a_file_beside_the_program_are_not_read(parse, tmp_path, monkeypatch):
    (tmp_path / "recipe.args").write_text("--limit 3")
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "recipe.py")])
    assert parse().limit is None


def test_what_resuming_means(tmp_path):
    def about(given):
        return SimpleNamespace(resume_from_checkpoint=given, output_dir=str(tmp_path))

    for given in (None, "", "false", "False"):
        assert (resume_from(about(given)), resumes(about(given))) == (None, False)
    assert (resume_from(about("true")), resumes(about("true"))) == (None, True)
    assert resume_from(about("elsewhere/checkpoint-3")) == "elsewhere/checkpoint-3"
    for name, whole in (("checkpoint-9", True), ("checkpoint-10", True), ("checkpoint-11", False)):
        (tmp_path / name).mkdir()
        if whole:
            (tmp_path / name / "trainer_state.json").write_text("{}")
    assert resume_from(about("true")) == str(tmp_path / "checkpoint-10")


@pytest.fixture
def recipe(monkeypatch):
    """`recipe(name, *words)` -> all options of a recipe as a mapping."""

    def run(name, *words):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *words])
        found = runpy.run_path(str(RECIPES / f"{name}.py"), run_name="recipe")
        options = parse_options(found["OPTIONS"], found["CONFIG"])
        return {key: value for part in options for key, value in vars(part).items()}

    return run


def test_every_recipe_and_every_yaml_is_known():
    # signs.py and its YAMLs have tests of their own (test_recipes_signs); results_table.py and run_report.py have no YAML.
    assert {path.stem for path in RECIPES.glob("*.py")} == {*OWN, "signs", "results_table", "run_report"}
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == {*OWN.values(), *OTHERS, *FOR_OWN_DATA}


@pytest.mark.parametrize("name", OTHERS)
def test_a_yaml_for_other_work_takes_nothing_from_the_recipes_own(name):
    """It lies over the recipe's own, so it must state all that one does: no digits, rates or steps may leak in."""
    own, given = (
        yaml.safe_load((CONFIGS / f"{each}.yaml").read_text()) for each in (OWN[OTHERS[name]], name)
    )
    assert own.keys() <= given.keys()
    assert given["output_dir"] != own["output_dir"]
    if "7b" in name:
        assert given["max_steps"] == -1
        assert given["held_out"] == []


def test_own_data_take_nothing_from_the_demo(monkeypatch, tmp_path):
    found = runpy.run_path(str(RECIPES / "lora_llava.py"), run_name="recipe")
    demo, own = (
        yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) for name in ("lora_llava", "own_data")
    )
    assert found["own_config"]({}) == found["own_config"]({"dataset": "signs:9"}) == found["CONFIG"]
    assert demo.keys() - own.keys() == {"dataset", "taxonomy", "max_steps"}
    words = ["--dataset", "folder:mine", "--taxonomy", "mine.yaml", "--use_cpu", "true"]
    _, _, data, args = parse_options(found["OPTIONS"], found["own_config"], words)
    assert (data.held_out, data.flips.distractors, args.output_dir) == ([], (), "runs/own_data")
    assert data.changed.keys() == {"use_cpu"}
    assert [data.groups(images) for images in (36, 4800, 48_000)] == [2400, 2400, 24_000]
    words += ["--config", str(CONFIGS / "own_data_7b.yaml"), "--bf16", "false", "--groups_per_epoch", "5"]
    base, _, data, args = parse_options(found["OPTIONS"], found["own_config"], words)
    assert (base.dtype, args.learning_rate, data.groups(36)) == ("bfloat16", 2e-4, 5)
    with pytest.raises(ConfigError, match="--dataset folder:mine needs --taxonomy: a YAML file"):
        parse_options(found["OPTIONS"], found["own_config"], words[:2])


def test_a_student_of_ones_own_judge_takes_nothing_from_the_demo(capsys):
    found = runpy.run_path(str(RECIPES / "distill_cross_attention.py"), run_name="recipe")
    config = found["own_config"]
    assert config({}) == config({"dataset": "signs:9"}) == found["CONFIG"]
    demo, own = (
        yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
        for name in ("distill_cross_attention", "own_data_student")
    )
    assert demo.keys() - own.keys() == {"dataset", "taxonomy", "teacher", "encoder", "save_strategy"}
    needed = ["--taxonomy", "mine.yaml", "--encoder", "some/clip", "--teacher", "runs/my_project"]
    words = ["--dataset", "folder:mine", "--use_cpu", "true"]
    options, data, args = parse_options(found["OPTIONS"], config, words + needed)
    assert (options.teacher, options.encoder, data.dataset) == ("runs/my_project", "some/clip", "folder:mine")
    assert (data.held_out, data.baselines, args.output_dir) == ([], [], "runs/own_student")
    printed = capsys.readouterr().out
    assert "digits" not in printed
    assert "runs/demo" not in printed
    for i, name in ((0, "taxonomy"), (2, "encoder"), (4, "teacher")):
        with pytest.raises(ConfigError, match=f"--dataset folder:mine needs --{name}: "):
            parse_options(found["OPTIONS"], config, words + needed[:i] + needed[i + 2 :])


@pytest.mark.parametrize(
    ("recipe", "words"),
    [("lora_llava", []), ("distill_cross_attention", ["--teacher", "labels", "--encoder", "tiny-clip"])],
)
def test_ones_own_table_is_read_before_there_is_a_folder(recipe, words, tmp_path, monkeypatch):
    (tmp_path / "labels.csv").write_text("path,label,categories\ngone.png,safe,\n")
    (tmp_path / "mine.yaml").write_text(Taxonomy("mine", "1", (Category("kites", "a kite"),)).to_yaml())
    monkeypatch.setattr("eval.recipe.open_run", lambda *_, **__: pytest.fail("a run was opened"))
    own = ["--dataset", f"folder:{tmp_path}", "--taxonomy", str(tmp_path / "mine.yaml"), "--use_cpu", "true"]
    monkeypatch.setattr(sys, "argv", [recipe, *own, *words])
    main = runpy.run_path(str(RECIPES / f"{recipe}.py"), run_name="recipe")["main"]
    with pytest.raises(ExampleError, match=r"gone\.png"):
        main()


@pytest.mark.parametrize(
    ("word", "value", "says"),
    [
        ("report_to", "wandb", "--report_to wandb needs a package that is not installed: pip install wandb"),
        ("report_to", "tensorbord", "no tracker 'tensorbord'.*tensorboard"),
        ("learning_rate", "high", "argument --learning_rate/--learning-rate: invalid float value: 'high'"),
        ("eval_strategy", "sometimes", "'sometimes'"),
        ("warmup_steps", "-3", "These options cannot be used here: Got warmup_steps"),
    ],
)
def test_what_cannot_be_used_is_one_line_before_anything(recipe, word, value, says, tmp_path):
    if value == "wandb" and find_spec("wandb"):
        pytest.skip("wandb is installed")
    with pytest.raises(ArbiterError, match=says) as refused:
        recipe("lora_llava", f"--{word}", value, "--use_cpu", "true", "--output_dir", str(tmp_path / "run"))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", OWN)
def test_every_recipe_takes_a_file_over_its_own_yaml(recipe, name, tmp_path):
    own = yaml.safe_load((CONFIGS / f"{OWN[name]}.yaml").read_text())
    mine = tmp_path / "mine.yaml"
    changed = next(
        key
        for key in ("rows", "steps", "test_rows", "max_steps", "epochs", "limit")
        if key in own or name == "own_head"
    )
    mine.write_text(f"{changed}: 3\n")
    use_cpu = ["--use_cpu", "true"] if "report_to" in own else []
    found = recipe(name, f"--config={mine}", *use_cpu)
    assert found[changed] == 3
    assert found["changed"].keys() - {"use_cpu"} == {changed}
    special = {"lr_scheduler_type", "eval_strategy", "save_strategy", "report_to", changed}
    for key in own.keys() - special:
        assert found[key] == own[key], key
    if "held_out" in own:
        assert recipe(name, "--held_out", *use_cpu)["held_out"] == []
