"""`arbiter recipes copy`: a copy names its own files, runs where it lies, and finds what it names."""

import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from eval.recipe import parse_options
from judge.errors import ConfigError
from judge.serve import recipe_files as recipes

SOURCE = recipes.recipes_folder()
NAMES = sorted(path.stem for path in SOURCE.glob("*.py"))
READER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's, where it is there: each of sixty copies has sixty files."""


@pytest.fixture(params=["copy", "my own copy", "fotos é \U0001f600"])
def folder(request, tmp_path):
    return tmp_path / request.param


def named(text):
    """Every file that a text names by a path with a folder in it, quoted or not."""
    return [
        Path(one or two)
        for one, two in re.findall(
            r"""['"](/[^'"\n]+\.(?:py|yaml|json))['"]|(?<![\w'"])(/[\w./-]+\.(?:py|yaml|json))""", text
        )
    ]


@pytest.mark.parametrize("name", NAMES)
def test_whatever_a_copy_names_is_there(folder, name):
    written = recipes.copy_recipe(name, folder)
    assert folder / f"{name}.py" in written
    count = 0
    for path in written:
        text = path.read_text(encoding="utf-8")
        for place in named(text):
            assert place.is_file(), f"{path.name} names {place}"
            count += 1
        left = re.findall(r"recipes/[\w/]+\.(?:py|yaml|json)", text.replace(str(SOURCE), ""))
        assert not left, f"{path.name} still names {left}"
        if path.suffix == ".yaml":
            yaml.load(text, Loader=READER)
        elif path.suffix == ".json":
            json.loads(text)
    assert count > 20


def test_profiles_of_a_copy_name_its_own_deepspeed_files(folder):
    recipes.copy_recipe("lora_llava", folder)
    profiles = {
        path.stem: yaml.safe_load(path.read_text()) for path in (folder / "configs/accelerate").glob("*.yaml")
    }
    zero = {name: found for name, found in profiles.items() if "zero" in name}
    assert len(zero) == 5
    for name, found in zero.items():
        file = Path(found["deepspeed_config"]["deepspeed_config_file"])
        assert file.resolve().is_relative_to(folder.resolve()), name
        json.loads(file.read_text())


def test_a_copy_parses_its_own_yaml_from_any_folder(folder, tmp_path, monkeypatch):
    recipes.copy_recipe("fixed_head", folder)
    config = folder / "configs" / "linear_probe.yaml"
    config.write_text(config.read_text().replace("epochs: 30", "epochs: 7"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fixed_head.py"])
    recipe = runpy.run_path(str(folder / "fixed_head.py"), run_name="recipe")
    _, options = parse_options(recipe["OPTIONS"], recipe["CONFIG"])
    assert options.epochs == 7


def test_the_first_command_of_a_copy_is_its_own(folder):
    recipes.copy_recipe("cascade", folder)
    text = (folder / "cascade.py").read_text()
    command = next(line for line in text.splitlines() if line.startswith("    python "))
    assert shlex.split(command)[1] == str((folder / "cascade.py").resolve())


def test_a_second_recipe_goes_beside_the_first(folder):
    recipes.copy_recipe("lora_llava", folder)
    assert recipes.copy_recipe("cascade", folder) == [folder / "cascade.py"]
    assert recipes.copy_recipe("cascade", folder) == []
    (folder / "configs" / "cascade.yaml").write_text("seed: 3\n")
    with pytest.raises(ConfigError, match="Would overwrite"):
        recipes.copy_recipe("fixed_head", folder)


def test_a_folder_that_no_text_can_hold_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="quotes"):
        recipes.copy_recipe("attack", tmp_path / 'a """ b')
    assert not (tmp_path / 'a """ b').exists()
    with pytest.raises(ConfigError, match="control characters"):
        recipes.copy_recipe("lora_llava", tmp_path / "a\nb")
    assert not (tmp_path / "a\nb").exists()
