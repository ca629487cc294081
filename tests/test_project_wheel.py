"""What `pip install` puts on a machine: the four packages, their data, and the recipes as data."""

import os
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"prompts", "judge", "adversarial", "eval"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names inside the wheel; built in this process, so nothing is downloaded."""
    from hatchling.build import build_wheel

    folder, before = tmp_path_factory.mktemp("wheel"), Path.cwd()
    os.chdir(ROOT)
    try:
        name = build_wheel(str(folder))
    finally:
        os.chdir(before)
    with zipfile.ZipFile(folder / name) as archive:
        return set(archive.namelist())


def test_top_level_names_are_the_four_packages(wheel: set[str]) -> None:
    top = {name.split("/")[0] for name in wheel}
    assert {name for name in top if not name.endswith(".dist-info")} == PACKAGES
    assert len(top) == len(PACKAGES) + 1


def test_every_module_and_marker_is_inside(wheel: set[str]) -> None:
    sources = {str(p.relative_to(ROOT)) for package in PACKAGES for p in (ROOT / package).rglob("*.py")}
    assert sources <= wheel
    assert {f"{package}/py.typed" for package in PACKAGES} <= wheel


def test_data_files_are_inside(wheel: set[str]) -> None:
    taxonomies = {
        f"prompts/taxonomies/{path.name}" for path in (ROOT / "prompts" / "taxonomies").glob("*.yaml")
    }
    assert len(taxonomies) >= 3
    assert taxonomies <= wheel


def test_recipes_ride_along_where_the_command_line_looks(wheel: set[str]) -> None:
    recipes = {path.relative_to(ROOT / "recipes") for path in (ROOT / "recipes").rglob("*") if path.is_file()}
    wanted = {f"judge/_recipes/{p}" for p in recipes if p.suffix in {".py", ".yaml", ".json"}}
    assert any(name.endswith(".py") for name in wanted)
    assert wanted <= wheel


def test_nothing_else_is_inside(wheel: set[str]) -> None:
    assert not [
        name for name in wheel if "__pycache__" in name or name.endswith((".pyc", ".pkl", ".pt", ".bin"))
    ]
    assert not [name for name in wheel if "tests/" in name or "scripts/" in name]


def test_the_command_is_declared(wheel: set[str]) -> None:
    assert any(name.endswith(".dist-info/entry_points.txt") for name in wheel)
