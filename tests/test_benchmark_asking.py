"""The files of a benchmark and the policy tests of its classifiers: what is kept is neither asked nor loaded again."""

from dataclasses import replace

import numpy as np
import pytest
from fixtures_policy_sets import shift_row, write_parquet
from PIL import Image

from eval.benchmark.asking import Benchmark, machine_name
from eval.benchmark.choices import Choice
from eval.benchmark.policies import PolicyTests
from eval.benchmark.policy_asking import AskedPolicies
from eval.benchmark.policy_questions import PolicyOptions
from eval.benchmark.sets import load_policy_set
from judge.errors import ConfigError
from judge.protocol import Scores
from prompts import load_taxonomy
from prompts.example import Example

DIGITS = load_taxonomy("digits").select(["zero", "one"])
EXAMPLES = tuple(
    Example(
        f"{split} {number}",
        Image.new("RGB", (8, 8), (number, 0, 0)),
        violates=frozenset([DIGITS.keys[number % 2]] if number % 3 else []),
        split=split,
    )
    for split in ("train", "test")
    for number in range(12)
)


class Fake:
    name = "fake"

    def __init__(self, silent=False):
        self.silent, self.asked = silent, 0

    def score(self, images, prompts, taxonomy):
        self.asked += len(images)
        unsafe = np.full(len(images), np.nan if self.silent else 0.75)
        return Scores(
            unsafe,
            np.repeat(unsafe[:, None], len(taxonomy), axis=1),
            ("busy" if self.silent else None,) * len(images),
            unanswered=(self.silent,) * len(images),
        )


def never():
    pytest.fail("loaded again")


@pytest.fixture
def benchmark(tmp_path):
    def make(protocol="default", **fields):
        merged = EXAMPLES if protocol == "paper" else None
        return Benchmark(tmp_path, "digits", DIGITS, protocol, EXAMPLES[12:], merged, **fields)

    return make


class SilentFirst(Fake):
    """Gives no answer about the first image that it is asked about."""

    def score(self, images, prompts, taxonomy):
        self.silent = not self.asked
        return super().score(images, prompts, taxonomy)


@pytest.mark.parametrize("fake", [Fake, SilentFirst])
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"violates": frozenset(["zero"])}, "has other labels now"),
        ({"source": "generated"}, "has other labels now"),
        ({"id": "another"}, "is no longer in it"),
    ],
)
def test_a_data_set_that_was_edited_since_is_noticed(benchmark, changed, message, fake):
    """Rows hold the truth, so those of the old labels would be counted as if nothing had happened."""
    choice, made = Choice("fake", "a fake"), benchmark(batch_size=1)
    made.ask(choice, fake)
    made = replace(made, examples=(*made.examples[:-1], replace(made.examples[-1], **changed)))
    with pytest.raises(ConfigError, match=f"before digits was changed.*{message}.*another output_dir"):
        made.finished(choice) or made.ask(choice, Fake)


def test_an_image_that_is_new_since_is_noticed(benchmark):
    choice, made = Choice("fake", "a fake"), benchmark()
    made.ask(choice, Fake)
    made = replace(made, examples=(*made.examples, replace(made.examples[0], id="one more")))
    with pytest.raises(ConfigError, match="'one more' is new"):
        made.finished(choice)


def test_answers_are_kept_in_one_file(benchmark, tmp_path):
    choice, fake = Choice("fake", "a fake"), Fake()
    made = benchmark(batch_size=5, machine="here")
    assert made.finished(choice) is None
    found = made.ask(choice, lambda: fake)
    assert fake.asked == len(found.rows) == 12
    assert (found.about.splits, found.about.machine, found.about.covers) == (
        ("test",),
        "here",
        ("zero", "one"),
    )
    assert made.finished(choice) == found
    assert made.unanswered(found) == 0
    assert [file.name for file in tmp_path.iterdir()] == ["a fake.parquet"]
    priced = made.finished(Choice("fake", "a fake", price_per_1000=3.0))
    assert (
        priced.about.price_per_1000
        == made.finished(Choice("fake", "a fake", price_per_1000=3.0)).about.price_per_1000
        == 3
    )
    with pytest.raises(
        ConfigError, match=r"a fake\.parquet holds predictions with classifier 'fake', not 'other'"
    ):
        made.finished(Choice("other", "a fake"))


def test_what_is_unanswered_is_not_finished(benchmark):
    choice, made = Choice("fake", "fake"), benchmark()
    found = made.ask(choice, lambda: Fake(silent=True))
    assert {row.reason for row in found.rows} == {"busy"}
    assert made.unanswered(found) == 12
    assert made.finished(choice) is None
    assert made.unanswered(made.ask(choice, Fake)) == 0
    assert made.finished(choice).rows[0].unsafe == 0.75


def test_under_the_papers_rules_fixed_categories_are_asked_about_on_all_splits(benchmark):
    made = benchmark("paper")
    fixed, other = Choice("a", "a", group="conventional"), Choice("b", "b", group="zero_shot")
    assert len(made.examples_for(fixed)) == 24
    assert len(made.examples_for(other)) == 12
    assert benchmark().examples_for(fixed) == EXAMPLES[12:]
    assert made.ask(fixed, Fake).about.splits == ("test", "train")


def test_policy_tests_are_asked_once(benchmark, tmp_path):
    write_parquet(
        tmp_path / "copy" / "id_test.parquet",
        [
            shift_row(0, 1, "Policy A (Loose)", "pass"),
            shift_row(0, 1, "Policy B (Strict / No Pets)", "block"),
        ],
    )
    tests = PolicyTests(EXAMPLES[12:], DIGITS, PolicyOptions(pairs=4, rows=4, families=("upper_case",)))
    sets = [load_policy_set(f"policyshiftbench:{tmp_path / 'copy'}")]
    about = benchmark().ask(Choice("fake", "fake"), Fake).about
    fake = Fake()
    first = AskedPolicies(tmp_path / "policies", tests, sets)
    first.ask(about, lambda: fake)
    assert fake.asked == first.count(about) + 2
    again = AskedPolicies(tmp_path / "policies", tests, sets)
    again.ask(about, never)
    assert again.measured == first.measured
    assert again.measured_sets == first.measured_sets
    assert again.measured["fake"]["pairs"] > 0
    [(name, found)] = again.measured_sets.items()
    assert name.startswith("policyshiftbench")
    assert found["fake"]["rows"] == 2
    AskedPolicies(tmp_path / "none").ask(about, never)


def test_the_machine_has_a_name():
    assert "cores)" in machine_name()
