"""recipes/unsafebench.py --causes: a case study that waits for a person's review, on one's own pictures."""

import pytest

from judge.runs.folder import RunDir

BRIGHT = '''
import numpy as np
from judge.protocol import Scores

class Bright:
    """Says unsafe of every picture that is brighter than a few."""
    name = "bright"
    def score(self, images, prompts, taxonomy):
        unsafe = np.array([float(np.asarray(image).mean() > 100) for image in images])
        return Scores(unsafe, np.repeat(unsafe[:, None], len(taxonomy), axis=1), (None,) * len(images))
'''


@pytest.fixture
def arguments(shapes, tmp_path):
    (tmp_path / "bright.py").write_text(BRIGHT)
    return {
        "classifiers": [f"python:{tmp_path}/bright.py:Bright"],
        "dataset": shapes.dataset,
        "taxonomy": shapes.taxonomy,
        "output_dir": tmp_path / "run",
        "overlap": "false",
        "causes": "true",
        "review": tmp_path / "review",
        "encoder": "tiny-clip",
    }


def test_a_review_is_obeyed_when_the_run_goes_on(arguments, run_recipe, tmp_path):
    run_recipe("unsafebench", **arguments)
    causes = RunDir.open(tmp_path / "run").metrics["causes"]
    case = causes["case_study"]
    assert case["review"]["made"] is False
    assert len(case["images"]) == 20
    assert causes["clusters"]["groups"]
    table = tmp_path / "review" / "review.csv"
    head, *lines = table.read_text().splitlines()
    assert len(lines) == 20 * 9
    table.write_text("\n".join([head, *(f"{line}{'yes' if n else 'no'}" for n, line in enumerate(lines))]))

    run_recipe("unsafebench", output_dir=tmp_path / "run", resume="true")
    reviewed = RunDir.open(tmp_path / "run").metrics["causes"]["case_study"]
    assert reviewed["review"]["made"] is True
    assert reviewed["dropped"] == case["images"][:1]
    assert reviewed["images"] == case["images"][1:]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "a person looked at all variations" in page
    assert "lost what they showed: 1." in page
