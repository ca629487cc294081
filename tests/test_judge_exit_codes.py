"""Exit codes: 1 is "flagged" and nothing else; every error is 2 and one line."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import judge
from judge.errors import CheckpointError
from judge.serve import cli
from judge.serve.exit_codes import run_to_exit_code

ROOT = Path(__file__).resolve().parent.parent


def failing(error: BaseException) -> Callable[..., int]:
    def fail(*_: object, **__: object) -> int:
        raise error

    return fail


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "a.png"
    Image.new("RGB", (4, 4)).save(path)
    return str(path)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ZeroDivisionError("by\nzero"), "arbiter: ZeroDivisionError: by zero (--debug shows where)\n"),
        (MemoryError(), "arbiter: MemoryError (--debug shows where)\n"),
        (RuntimeError("CUDA \x1b[2J"), "arbiter: RuntimeError: CUDA \\x1b[2J (--debug shows where)\n"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"), "UnicodeDecodeError"),
        (RecursionError("deep"), "RecursionError: deep"),
        (ModuleNotFoundError("No module named 'torch'", name="torch._C"), "torch is not installed"),
        (
            ModuleNotFoundError("Could not import module 'x'"),
            "ModuleNotFoundError: Could not import module 'x'",
        ),
        (CheckpointError("runs/\x1bx is\nno run"), "arbiter: runs/\\x1bx is no run\n"),
    ],
)
def test_any_exception_is_two_and_one_line(
    monkeypatch: pytest.MonkeyPatch,
    picture: str,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    line: str,
) -> None:
    monkeypatch.setattr(judge, "load_classifier", failing(error), raising=False)
    assert cli.main(["judge", picture, "--judge", "r"]) == 2
    shown = capsys.readouterr().err
    assert line in shown
    assert shown.count("\n") == 1
    assert "Traceback" not in shown


@pytest.mark.parametrize("before", [True, False])
def test_debug_shows_where_before_or_after_the_command(
    monkeypatch: pytest.MonkeyPatch, picture: str, capsys: pytest.CaptureFixture[str], before: bool
) -> None:
    monkeypatch.setattr(judge, "load_classifier", failing(ZeroDivisionError("\x1b")), raising=False)
    command = ["judge", picture, "--judge", "r"]
    assert cli.main(["--debug", *command] if before else [*command, "--debug"]) == 2
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert "in failing" in shown or "in fail" in shown
    assert "\x1b" not in shown


def test_an_interrupt_is_130() -> None:
    assert run_to_exit_code(failing(KeyboardInterrupt())) == 130


def test_exit_codes_of_commands_and_system_exit_pass(capsys: pytest.CaptureFixture[str]) -> None:
    assert [run_to_exit_code(lambda code=code: code) for code in range(4)] == [0, 1, 2, 3]  # type: ignore[misc]
    with pytest.raises(SystemExit):
        run_to_exit_code(failing(SystemExit(2)))


def test_an_interrupt_inside_a_command_is_130(monkeypatch: pytest.MonkeyPatch, picture: str) -> None:
    monkeypatch.setattr(judge, "load_classifier", failing(KeyboardInterrupt()), raising=False)
    assert cli.main(["judge", picture, "--judge", "r"]) == 130


def test_unknown_arguments_are_repeated_harmlessly(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["judge", "a.png", "--judge", "r", "--\x1b[2J"]) == 2
    shown = capsys.readouterr().err
    assert "\x1b" not in shown
    assert "--\\x1b[2J" in shown


def test_debug_reaches_the_attack_recipe_and_its_code_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from judge.serve import recipe_files as recipes

    calls: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(recipes, "run_recipe", lambda name, rest: calls.append((name, list(rest))) or 1)
    assert cli.main(["--debug", "attack", "runs/x", "--rows", "4"]) == 1
    assert cli.main(["attack", "--rows", "4"]) == 1
    assert calls[0] == ("attack", ["--victims", "runs/x", "--rows", "4", "--debug"])
    assert calls[1] == ("attack", ["--rows", "4"])
    words = ["--epsilon=1/255", "--rows", "-4", "-0.5", "-h", "--help", "a b", "--version"]
    cli.main(["attack", *words])
    assert calls[2] == ("attack", words)


def test_a_recipe_that_cannot_be_imported_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """An exit code of 1 would say that an attack was not honest."""
    from judge.serve import recipe_files as recipes

    monkeypatch.setattr(recipes, "recipes_folder", lambda: tmp_path)
    (tmp_path / "beside.py").write_text("CODE = 1\n")
    (tmp_path / "good.py").write_text("import sys, beside\nprint(sys.argv[1:])\nsys.exit(beside.CODE)\n")
    (tmp_path / "bad.py").write_text("import torch_that_is_missing\n")
    assert recipes.run_recipe("good", ["--rows", "4"]) == 1
    assert capfd.readouterr().out == "['--rows', '4']\n"
    assert recipes.run_recipe("bad", []) == 2
    errors = capfd.readouterr().err
    assert errors.startswith("arbiter: torch_that_is_missing is not installed")
    assert errors.count("\n") == 1
    assert recipes.run_recipe("bad", ["--debug"]) == 2
    assert "Traceback" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("out", "err", "code", "errors"),
    [
        (None, None, 0, ""),
        ("gone", None, 141, ""),
        (
            "/dev/full",
            None,
            2,
            "arbiter: OSError: [Errno 28] No space left on device (--debug shows where)\n",
        ),
        ("/dev/full", "/dev/full", 2, ""),
        (None, "/dev/full", 0, ""),
    ],
)
def test_closed_and_full_streams(out: str | None, err: str | None, code: int, errors: str) -> None:
    """A closed pipe is exit code 141, a full disk 2; never 1 and never Python's own 120.

    Characters that the terminal's encoding lacks are no error.
    """
    if "/dev/full" in (out, err) and not Path("/dev/full").exists():
        pytest.skip("nothing is ever full here")
    program = (
        "import sys; from judge.serve.exit_codes import run_to_exit_code, print_stderr\n"
        "sys.exit(run_to_exit_code(lambda: (print('drei \\u4e09'), print_stderr('1 image'), 0)[2]))"
    )
    streams: list[int] = []
    for name in (out, err):
        if name == "gone":
            reader, writer = os.pipe()
            os.close(reader)
            streams.append(writer)
        else:
            streams.append(subprocess.PIPE if name is None else os.open(name, os.O_WRONLY))
    done = subprocess.run(
        [sys.executable, "-c", program],
        stdout=streams[0],
        stderr=streams[1],
        text=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""},
    )
    for stream in streams:
        if stream != subprocess.PIPE:
            os.close(stream)
    assert done.returncode == code
    assert done.stdout in (None, "drei \\u4e09\n")
    assert done.stderr is None or done.stderr == "1 image\n" + errors


@pytest.mark.parametrize("buffered", ["", "1"])
def test_a_closed_pipe_is_no_verdict_of_any_command(buffered: str) -> None:
    """Typer itself would exit with 1, which means "flagged"."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "judge.serve.cli", "taxonomy", "list"],
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": buffered},
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_missing_package_of_the_command_line_is_an_error_too(tmp_path: Path) -> None:
    """As after an upgrade with `pip install --no-deps`; Python itself would exit with 1, which means "flagged"."""
    (tmp_path / "typer.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'typer'\", name='typer')\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "judge.serve.cli", "judge", "a.png"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("arbiter: typer is not installed")
