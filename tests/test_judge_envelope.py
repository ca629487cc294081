"""Which policies a calibration was about: the same categories, worded so, and no longer a list."""

import hashlib
import re
from dataclasses import asdict

import pytest

from judge.calibration.envelope import Envelope, category_hash
from judge.errors import ConfigError
from prompts import Category, Taxonomy

CAT, DOG, COW = (Category(name, f"a {name}", (f"one {name}",)) for name in ("cat", "dog", "cow"))


def policy(*categories):
    return Taxonomy("some", "1", categories)


def test_a_hash_is_of_what_a_classifier_reads():
    digest = hashlib.sha256(b'["cat", "a cat", "one cat"]').hexdigest()
    assert category_hash(CAT) == digest[:16]
    (named,) = policy(CAT).names_only()
    assert category_hash(named) == hashlib.sha256(b'["cat"]').hexdigest()[:16]
    assert category_hash(Category("cat", "a cat", ("one cat",), code="S1", key="c")) == digest[:16]
    others = [Category("cat", "a cat"), Category("cats", "a cat", ("one cat",)), Category("cat", "a lynx")]
    assert len({category_hash(one) for one in (CAT, named, *others)}) == 5


def test_the_envelope_of_policies():
    found = Envelope.from_policies(one for one in (policy(CAT, DOG), policy(COW), policy(DOG)))
    assert found.categories == tuple(sorted(category_hash(one) for one in (CAT, DOG, COW)))
    assert found.largest == 2
    assert Envelope.from_policies([]) == Envelope((), 0)
    assert Envelope.from_dict(asdict(found)) == found
    assert Envelope.from_dict({"categories": list(found.categories), "largest": 2}) == found
    assert Envelope.from_dict(None) is None


def test_what_lies_outside():
    found = Envelope.from_policies([policy(CAT, DOG), policy(COW)])
    assert found.why_outside(policy(COW, CAT)) is None
    assert found.why_outside(policy(CAT)) is None
    longer = "calibrated for at most 2 categories at a time, not 3"
    assert found.why_outside(policy(CAT, DOG, COW)) == longer
    hen, pig = Category("hen", "a hen"), Category("pig", "a pig")
    assert found.why_outside(policy(hen, CAT, pig)) == "not calibrated for 'hen', 'pig', worded so"
    assert found.why_outside(policy(CAT).reword({"cat": "a lynx"})) == "not calibrated for 'cat', worded so"


@pytest.mark.parametrize(("categories", "largest"), [((1,), 2), (("a", None), 2), ((), True), ((), "2")])
def test_no_envelope(categories, largest):
    said = f"No envelope of a calibration: {categories!r}, {largest!r}"
    with pytest.raises(ConfigError, match=re.escape(said)):
        Envelope(categories, largest)


def test_a_refusal_is_short():
    with pytest.raises(ConfigError) as error:
        Envelope(tuple(range(1000)), 3)
    assert len(str(error.value)) < 120


@pytest.mark.parametrize(
    ("data", "error"), [({"largest": 1}, KeyError), ({"categories": []}, KeyError), ([], TypeError)]
)
def test_what_is_no_envelope_raises_what_its_reader_catches(data, error):
    with pytest.raises(error):
        Envelope.from_dict(data)
