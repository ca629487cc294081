"""Prompts of a user's file and of digits."""

from collections import Counter

import pytest

from eval.diffusion.prompt_files import Prompt, digit_prompts, read_prompts
from judge.errors import ConfigError
from judge.standins.picture_prompts import VAGUE

FILES = {
    "prompts.txt": "a red door\n\n  a blue car \na red door\nrow, with a comma\n",
    "prompts.csv": 'id,prompt,kind\n1,a red door,plain\n2,,plain\n3,"a ""blue"" car,\nat night",vague\n',
    "prompts.TSV": "prompt\tkind\na red door\tplain\na, blue car\t\n",
    "prompts.jsonl": '{"prompt": "a red door", "kind": "plain"}\n\n{"prompt": "日本\u2028の海", "kind": null, "id": 3}\n',
}
READ = {
    "prompts.txt": [("a red door", ""), ("a blue car", ""), ("row, with a comma", "")],
    "prompts.csv": [("a red door", "plain"), ('a "blue" car,\nat night', "vague")],
    "prompts.TSV": [("a red door", "plain"), ("a, blue car", "")],
    "prompts.jsonl": [("a red door", "plain"), ("日本\u2028の海", "")],
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_files_of_prompts(name, mark, tmp_path):
    path = tmp_path / name
    path.write_text(mark + FILES[name], encoding="utf-8")
    assert read_prompts(path) == [Prompt(*pair) for pair in READ[name]]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("prompts.xlsx", b"", r"is no file of prompts; give one that ends in \.txt, \.csv"),
        ("prompts.txt", None, "cannot be read: No such file"),
        ("prompts.txt", b"a\xff\n", r"is not UTF-8 \(byte 1\)"),
        ("prompts.txt", b"\n  \n", "holds no prompts"),
        ("prompts.csv", b"text,kind\na,b\n", "has the columns text, kind; one of them must be called prompt"),
        ("prompts.csv", b"", "has the columns none"),
        ("prompts.txt", b"x" * 20_001, r"line 1 holds a prompt of 20,001 characters"),
        ("prompts.csv", b'prompt\n"' + b"never closed\n" * 2000, r"line 2001 holds a prompt of"),
        ("prompts.jsonl", b'{"prompt": "a"}\n{"prompt": ', "line 2 is not JSON"),
        ("prompts.jsonl", b'["a"]\n', "line 1 holds no prompt; write an object"),
        ("prompts.jsonl", b'{"prompt": 3}\n', "line 1 holds no prompt"),
        ("prompts.jsonl", b"[" * 50_000, "line 1 is not JSON"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(name, content, says, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=says):
        read_prompts(tmp_path / name)


def test_digits_have_enough_prompts_of_both_kinds():
    prompts = digit_prompts(300)
    kinds = Counter(prompt.kind for prompt in prompts)
    assert kinds["named"] == 300
    assert kinds["vague"] >= 40
    assert len({prompt.text for prompt in prompts}) == len(prompts)
    assert prompts == digit_prompts(300) != digit_prompts(300, seed=1)
    assert {*VAGUE[1], *VAGUE[2]} <= {prompt.text for prompt in prompts if prompt.kind == "vague"}
