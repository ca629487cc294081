"""What each classifier of ours can do, as `isinstance` tells attacks, calibration and the command line."""

import numpy as np
import pytest
import torch

from judge import protocol
from judge.baselines.linear_probe import LinearProbe, ParallelMLP
from judge.cascade.cascade import Cascade
from judge.cascade.filters_alone import FilterClassifier
from judge.cascade.settings import CascadeSettings
from judge.cascade.similarity import Platt
from judge.cascade.stages import Cutoffs
from judge.encoders.dual import DualEncoder
from judge.protocol import Scores, modules_of, score_each_category
from judge.student.head import CrossAttentionHead, HeadConfig
from judge.student.student import Student
from judge.vlm.remote import RemoteJudge
from judge.vlm.score import VisionLanguageJudge
from prompts import load_taxonomy

DIGITS = load_taxonomy("digits")
SETTINGS = CascadeSettings(
    Platt(3.0, 0.0), Platt(9.0, 0.0), Cutoffs(2, 0.3, 0.8, 0.3, 0.6, 0.5), True, 0.05, 0.02, 99
)
CAPABILITIES = (
    *("MultiLabelClassifier", "DifferentiableClassifier", "ForwardOnlyClassifier", "OwnsModules"),
    *("HasImageProcessor", "HasEncoder", "HasDefaultTaxonomy", "PromisesMissRate"),
    "HasFixedCategories",
)
GRADIENTS = {"DifferentiableClassifier", "OwnsModules", "HasDefaultTaxonomy"}
SEES = {"HasImageProcessor", "HasEncoder"}


@pytest.fixture(scope="module")
def classifiers(tiny_vlm):
    encoder = DualEncoder.load("tiny-clip")
    judge = VisionLanguageJudge(*tiny_vlm())
    student = Student(encoder, CrossAttentionHead(HeadConfig(encoder.width, 32, 2, 1, 4)))
    cascade = Cascade(student, SETTINGS, judge)
    return {
        "judge": judge,
        "student": student,
        "probe": LinearProbe(encoder, ParallelMLP(encoder.width, len(DIGITS), 8), DIGITS),
        "cascade": cascade,
        "filters": FilterClassifier.from_cascade(cascade),
        "remote": RemoteJudge("http://localhost:9/v1", "model", api_key="none"),
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("judge", GRADIENTS | SEES | {"MultiLabelClassifier"}),
        ("student", GRADIENTS | SEES),
        ("probe", GRADIENTS | SEES | {"HasFixedCategories"}),
        ("filters", GRADIENTS | SEES),
        ("cascade", GRADIENTS | {"PromisesMissRate"}),
        ("remote", {"ForwardOnlyClassifier"}),
    ],
)
def test_capabilities(classifiers, name, expected):
    found = {one for one in CAPABILITIES if isinstance(classifiers[name], getattr(protocol, one))}
    assert found == expected


def test_a_cascade_owns_the_modules_of_its_stages(classifiers):
    student, judge = classifiers["student"], classifiers["judge"]
    expected = [student.encoder.model, student.head, judge.model]
    assert list(modules_of(classifiers["cascade"])) == expected
    assert list(modules_of(Cascade(student, SETTINGS))) == expected[:2]
    assert not list(modules_of(classifiers["remote"]))


def test_a_torch_module_owns_its_modules():
    module = torch.nn.Sequential(torch.nn.Linear(1, 1))
    assert list(modules_of(module)) == [module, module[0]]


def test_each_category_is_asked_about_only_where_a_classifier_can():
    class Plain:
        name = "plain"

        def score(self, images, prompts, taxonomy, **options):
            self.options = options
            return Scores(np.zeros(1), np.zeros((1, len(taxonomy))), (None,))

    class MultiLabel(Plain):
        supports_multilabel = True

    plain, several = Plain(), MultiLabel()
    score_each_category(plain, [None], [None], DIGITS)
    score_each_category(several, [None], [None], DIGITS)
    assert (plain.options, several.options) == ({}, {"multilabel": True})
