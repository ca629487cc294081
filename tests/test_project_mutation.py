"""The tables of scripts/mutation_test.py name modules, tests and lines that exist."""

from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DATA = ROOT / "tests" / "data"


def test_modules_and_their_tests_exist() -> None:
    areas = yaml.safe_load((DATA / "mutation_areas.yaml").read_text(encoding="utf-8"))
    modules = {module: files.split() for area in areas.values() for module, files in area.items()}
    assert len(modules) > 20
    assert not [module for module in modules if not (ROOT / module).is_file()]
    tests = {name for files in modules.values() for name in files}
    assert not [name for name in tests if not (ROOT / "tests" / f"test_{name}.py").is_file()]


@pytest.mark.parametrize(
    "module", yaml.safe_load((DATA / "surviving_mutants.yaml").read_text(encoding="utf-8"))
)
def test_lines_of_survivors_still_stand(module: str) -> None:
    """A survivor whose line was changed says nothing any more: test it again, or take it out."""
    listed = yaml.safe_load((DATA / "surviving_mutants.yaml").read_text(encoding="utf-8"))[module]
    source = " ".join((ROOT / module).read_text(encoding="utf-8").split())
    assert not [one["was"] for one in listed if " ".join(one["was"].split()) not in source]
