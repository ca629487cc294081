"""What the packages promise: every exported name exists, is documented and is where it says."""

import importlib
import importlib.resources
import importlib.util
import inspect
import pkgutil

import pytest

import judge

PACKAGES = ("prompts", "judge", "eval", "adversarial")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_exported_name_exists_and_is_documented(package: str) -> None:
    module = importlib.import_module(package)
    assert inspect.getdoc(module), package
    for name in getattr(module, "__all__", ()):
        thing = getattr(module, name)
        if inspect.isclass(thing) or inspect.isroutine(thing):
            assert inspect.getdoc(thing), f"{package}.{name} has no text"
            # A dataclass without a text of its own gets its signature for one.
            assert not str(thing.__doc__).startswith(f"{name}("), f"{package}.{name} has no text of its own"


@pytest.mark.parametrize("package", PACKAGES)
def test_exports_are_sorted_and_unique(package: str) -> None:
    names = list(getattr(importlib.import_module(package), "__all__", ()))
    assert len(names) == len(set(names))


def test_lazy_names_of_judge_agree_with_its_list() -> None:
    assert sorted(judge._HOMES) == sorted(judge.__all__) == dir(judge)
    with pytest.raises(AttributeError, match="no attribute 'load_clasifier'"):
        _ = judge.load_clasifier  # type: ignore[attr-defined]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_has_a_text_and_a_typed_marker(package: str) -> None:
    module = importlib.import_module(package)
    [folder] = module.__path__
    assert importlib.resources.files(package).joinpath("py.typed").is_file()
    for info in pkgutil.walk_packages([folder], f"{package}."):
        spec = importlib.util.find_spec(info.name)
        assert spec is not None
        assert spec.loader is not None
        source = spec.loader.get_source(info.name)  # type: ignore[attr-defined]
        assert source.lstrip().startswith('"""'), f"{info.name} has no text"
