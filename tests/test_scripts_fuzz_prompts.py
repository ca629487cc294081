"""`scripts/fuzz_prompts.py` counts the flags that prompts lose, and fails where the guarantee does not hold."""

import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from judge.protocol import Scores
from prompts import Taxonomy

SCRIPT = Path(__file__).parents[1] / "scripts" / "fuzz_prompts.py"


class Gullible:
    """Flags every image, and believes every other prompt; under `max` only if it breaks the guarantee."""

    name = "gullible"

    def __init__(self, *, breaks: bool) -> None:
        self.prompt_mode, self.breaks = "max", breaks

    def score(
        self, images: Sequence[object], prompts: Sequence[str | None] | None, taxonomy: Taxonomy
    ) -> Scores:
        believes = self.prompt_mode == "use" or self.breaks
        unsafe = np.array(
            [0.1 if believes and p and len(p) % 2 else 0.9 for p in prompts or [None] * len(images)]
        )
        return Scores(unsafe, np.repeat(unsafe[:, None], len(taxonomy), axis=1), (None,) * len(unsafe))


@pytest.fixture
def fuzz_prompts(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_prompts", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "fuzz_prompts", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("breaks", [False, True])
def test_flags_lost(
    breaks: bool,
    fuzz_prompts: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(fuzz_prompts, "load_classifier", lambda name: Gullible(breaks=breaks))
    monkeypatch.setattr(
        sys, "argv", ["fuzz_prompts.py", "--prompts", "50", "--images", "4", "--threads", "1"]
    )
    assert fuzz_prompts.main() == int(breaks)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["prompts"] == 50
    assert 0 < found["flags_lost_with_use"] < 50
    assert found["flags_lost_with_max"] == (found["flags_lost_with_use"] if breaks else 0)
    assert found["deepest_fall"] == pytest.approx(8 / 9 if breaks else 0)
