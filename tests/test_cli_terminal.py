"""The command line in a terminal: colours, tables and progress there, plain text everywhere else; what shells complete."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from judge.runs.folder import RunDir
from judge.serve.cli import main
from judge.serve.completion import VARIABLE

pty = pytest.importorskip("pty")
ROOT = Path(__file__).parents[1]
CODE = f"""\
import sys; sys.path.insert(0, {str(ROOT)!r})
import judge
from judge.serve.cli import main
class RedJudge:
    name = "red"
    def score(self, images, prompts, taxonomy):
        import numpy as np
        from judge.protocol import Scores
        red = [[image.getpixel((0, 0))[0] / 255] * len(taxonomy) for image in images]
        return Scores(np.max(red, axis=1), np.array(red), (None,) * len(images))
judge.load_classifier = lambda *_, **__: RedJudge()
sys.exit(main(sys.argv[1:]))
"""
JUDGE = ("--judge", "r", "--taxonomy", "digits", "--categories", "one,three")
COLOUR = re.compile(r"\x1b\[[0-9;]*(?:3[0-7]|38;[25];[0-9;]+)m")
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")

Launch = Callable[..., tuple[int, str, str]]


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    for name, red in (("a", 0), ("b", 250), ("c", 250)):
        Image.new("RGB", (4, 4), (red, 0, 0)).save(tmp_path / f"{name}.png")

    def run(
        *words: str, piped: bool = False, file: Path | None = None, **variables: str
    ) -> tuple[int, str, str]:
        """(exit code, what the terminal got, what a pipe or a file on standard output got)."""
        kept = None if file is None else file.open("w")
        ours, theirs = pty.openpty()
        program = subprocess.Popen(
            [sys.executable, "-c", CODE, *words],
            stdin=theirs,
            stdout=subprocess.PIPE if piped else kept or theirs,
            stderr=theirs,
            cwd=tmp_path,
            env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "NO_COLOR": "", **variables},
        )
        os.close(theirs)
        shown = b""
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # how Linux says that the other side has closed
                break
            if not piece:
                break
            shown += piece
        os.close(ours)
        out = program.communicate()[0] or b""
        if file is not None and kept is not None:
            kept.close()
            out = file.read_bytes()
        return program.returncode, shown.decode().replace("\r\n", "\n"), out.decode()

    return run


def test_results_have_colours_and_progress_is_drawn_in_a_terminal(launch: Launch) -> None:
    code, shown, _ = launch("judge", "a.png", "b.png", "c.png", *JUDGE, "--batch-size", "1")
    assert code == 1
    assert COLOUR.search(shown)
    plain = ESCAPE.sub("", shown)
    assert "loading r" in plain
    assert "judging" in plain
    assert "of 3" in plain
    lines = [line.strip() for line in plain.replace("\r", "\n").splitlines()]
    assert [line for line in lines if line.endswith(".png")] == [
        "safe      0.000  -      a.png",
        "unsafe    0.980  one    b.png",
        "unsafe    0.980  one    c.png",
    ]
    assert lines[-2:] == ["3 images: 2 flagged, 1 safe, 0 not judged", "flagged: one 2, three 2"]


def test_no_color_and_quiet_are_obeyed(launch: Launch) -> None:
    code, shown, _ = launch("judge", "a.png", "b.png", *JUDGE, "--quiet", NO_COLOR="1")
    assert code == 1
    assert not COLOUR.search(shown)
    assert ESCAPE.sub("", shown) == "safe      0.000  -      a.png\nunsafe    0.980  one    b.png\n"


def test_a_file_gets_plain_text_while_the_terminal_shows_progress(launch: Launch, tmp_path: Path) -> None:
    code, shown, out = launch("judge", "b.png", "a.png", *JUDGE, file=tmp_path / "out.txt")
    assert code == 1
    assert out == "unsafe    0.980  one    b.png\nsafe      0.000  -      a.png\n"
    assert "judging" in shown
    assert "b.png" not in shown


def test_a_pipe_gets_plain_text_and_its_reader_the_terminal(launch: Launch) -> None:
    """Of `arbiter judge ... | head -1`, a bar would erase the line that head printed."""
    _, shown, out = launch("judge", "b.png", *JUDGE, piped=True)
    assert out == "unsafe    0.980  one    b.png\n"
    assert "1 image: 1 flagged" in shown
    assert "\x1b" not in shown


def test_tables_are_drawn_in_a_terminal_and_aligned_in_a_pipe(launch: Launch) -> None:
    _, shown, _ = launch("taxonomy", "list")
    assert "─────" in shown
    assert "categories" in shown
    _, _, out = launch("taxonomy", "list", piped=True)
    assert "categories" not in out
    assert re.search(r"^digits +1 +10  [0-9a-f]{16}$", out, re.MULTILINE)


def test_without_rich_a_terminal_gets_plain_text(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as util\nfound = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name == 'rich' else found(name, *rest)\n"
    )
    _, shown, _ = launch("taxonomy", "list", PYTHONPATH=str(tmp_path))
    assert "─" not in shown
    assert re.search(r"^digits +1 +10  [0-9a-f]{16}$", shown, re.MULTILINE)


def test_an_error_in_a_terminal_leaves_one_line_and_no_bar(launch: Launch) -> None:
    code, shown, _ = launch("judge", "a.png", *JUDGE, "--multilabel")
    assert code == 2
    assert (
        ESCAPE.sub("", shown).replace("\r", "\n").strip().splitlines()[-1].startswith("arbiter: --multilabel")
    )
    assert "Traceback" not in shown


def test_help_and_pipes_load_nothing_that_draws() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom judge.serve.cli import main\n"
        "main(['--help']); main(['judge', '--help']); main(['taxonomy', 'list']); main(['taxonomy', 'show', 'digits'])\n"
        "print(*sorted({'rich', 'jinja2', 'torch', 'numpy', 'PIL', 'fastapi'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""


# --- completion --------------------------------------------------------------------------------------------


def proposed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> list[str]:
    """What bash is told where the last word is incomplete."""
    monkeypatch.setenv(VARIABLE, "complete_bash")
    monkeypatch.setenv("COMP_WORDS", " ".join(["arbiter", *words]))
    monkeypatch.setenv("COMP_CWORD", str(len(words)))
    assert main([]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    return shown.out.split()


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["ju"], ["judge"]),
        (["judge", "--jud"], ["--judge"]),
        (
            ["judge", "--judge", ""],
            ["runs/demo", "small-cascade", "small-student", "student.onnx", "tiny-student"],
        ),
        (["judge", "--judge", "runs/"], ["runs/demo"]),
        (["judge", "--judge", "../"], []),
        (["judge", "--judge", "nowhere/x"], []),
        (["judge", "--taxonomy", "di"], ["digits"]),
        (["judge", "--taxonomy", "my/"], ["my/own.yaml"]),
        (["judge", "--taxonomy", "digits", "--categories", "three,se"], ["three,seven"]),
        (["judge", "--categories", "three,se"], []),
        (["judge", "--sort", "s"], ["score"]),
        (["judge", "--prompt-mode", ""], ["ignore", "max", "use"]),
        (["taxonomy", "d"], ["diff"]),
        (["taxonomy", "show", "unsafe"], ["unsafebench"]),
        (["recipes", "copy", "lora"], ["lora_llava"]),
    ],
)
def test_shells_complete(
    words: list[str],
    wanted: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    RunDir.create(tmp_path / "runs" / "demo")
    (tmp_path / "runs" / "notes").mkdir()
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "own.yaml").touch()
    (tmp_path / "student.onnx").touch()
    assert proposed(capsys, monkeypatch, *words) == wanted


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_for_each_shell_is_shown(
    shell: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("typer._completion_shared._get_shell_name", lambda: shell)
    monkeypatch.setattr("typer.completion._get_shell_name", lambda: shell)
    with pytest.raises(SystemExit) as done:
        main(["--show-completion"])
    assert done.value.code == 0
    assert VARIABLE in capsys.readouterr().out


def test_an_unknown_shell_is_an_error_and_no_verdict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("typer.completion._get_shell_name", lambda: "tcsh")
    assert main(["--show-completion"]) == 2
    monkeypatch.setenv(VARIABLE, "complete_tcsh")
    assert main([]) == 2
    capsys.readouterr()
