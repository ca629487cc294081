"""The runs that ship judge what their lessons were about."""

import numpy as np
import pytest

from judge import load_classifier
from judge.data.examples import load_examples
from judge.protocol import HasDefaultTaxonomy
from judge.standins.shipped import SHIPPED_RUNS
from prompts import load_taxonomy


@pytest.mark.parametrize(
    ("name", "data"), [("tiny-student", "digits"), ("small-student", "signs"), ("small-cascade", "signs")]
)
def test_a_shipped_run_judges_its_data(name: str, data: str) -> None:
    classifier = load_classifier(name)
    taxonomy = load_taxonomy(data)
    assert isinstance(classifier, HasDefaultTaxonomy)
    assert classifier.default_taxonomy is not None
    assert classifier.default_taxonomy.hash == taxonomy.hash
    examples = load_examples(f"{data}:48", split="test", taxonomy=taxonomy).examples
    policy = taxonomy.select(taxonomy.names[:4])
    scores = classifier.score([one.image for one in examples], None, policy)
    truth = np.array([bool(one.violates & set(policy.keys)) for one in examples])
    assert truth.any()
    assert not truth.all()
    assert ((scores.unsafe >= 0.5) == truth).mean() >= 0.9


def test_every_shipped_run_says_what_it_knows() -> None:
    assert all(text for text in SHIPPED_RUNS.values())
