"""What was measured is what is served: the base of a run is loaded again in the precision of its metrics."""

import json
import sys

import numpy as np
import pytest

from eval.predict import predict_questions
from judge import load_classifier
from judge.errors import CheckpointError, ConfigError, MissingExtraError
from judge.publish.merge import merge_run
from judge.runs.folder import RunDir
from judge.vlm.load import BaseOptions, load_base

PRECISIONS = {
    "nf4": {"load_in_4bit": True},
    "fp4, single": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "use_bnb_nested_quant": False},
    "bfloat16": {"dtype": "bfloat16"},
    "mixed": {"bf16": True},
}


def asked_again(classifier, evaluation):
    return np.array([row.unsafe for row in predict_questions(classifier, evaluation.questions)])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_run_is_served_as_it_was_measured(train_here, base_folder, precision, tmp_path):
    options = PRECISIONS[precision]
    if options.get("load_in_4bit"):
        pytest.importorskip("bitsandbytes", reason="pip install '.[qlora]'")
    run = train_here(base_folder(width=64), learning_rate=0.1, **options)
    evaluation, rows = run.asked["after"]
    measured = np.array([row.unsafe for row in rows])
    assert np.ptp(measured) > 1e-3
    manifest = json.loads((run.path / "run.json").read_text())
    assert manifest["dtype"] == options.get("dtype", "float32")
    assert manifest["quantization"]["load_in_4bit"] == options.get("load_in_4bit", False)
    assert asked_again(load_classifier(run.path, batch_size=32), evaluation) == pytest.approx(
        measured, rel=1e-5
    )

    if options.get("load_in_4bit"):
        plain = manifest | {"quantization": {"load_in_4bit": False}}
        (run.path / "run.json").write_text(json.dumps(plain))
        full = asked_again(load_classifier(run.path, batch_size=32), evaluation)
        assert np.abs(full - measured).max() > 1e-3, "4 bits that change nothing would prove nothing"
        (run.path / "run.json").write_text(json.dumps(manifest))
        merged = load_classifier(merge_run(run.path, tmp_path / "merged"), batch_size=32)
        assert asked_again(merged, evaluation) == pytest.approx(measured, rel=1e-3)


@pytest.fixture
def manifest_run(tmp_path):
    """`manifest_run(name, **about)` -> a run folder with no more than a manifest."""
    return lambda name, **about: RunDir.create(tmp_path / name, template="policy_first", **about)


@pytest.mark.parametrize(
    "options",
    [BaseOptions("base", "v1.2", "bfloat16", True, "fp4", False), BaseOptions("base", dtype="float16")],
)
def test_options_survive_the_manifest(manifest_run, options):
    assert BaseOptions.from_run(manifest_run("run", **options.to_manifest())) == options


def test_older_runs_kept_their_bits_among_their_options(manifest_run):
    run = manifest_run("run", base="base", dtype="bfloat16")
    assert not BaseOptions.from_run(run).load_in_4bit
    run.write_config({"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "lora_r": 4})
    found = BaseOptions.from_run(run)
    assert (found.load_in_4bit, found.bnb_4bit_quant_type, found.dtype) == (True, "fp4", "bfloat16")


def test_a_run_in_4_bits_cannot_be_served_without_bitsandbytes(manifest_run, base_folder, monkeypatch):
    run = manifest_run("run", **BaseOptions(str(base_folder()), load_in_4bit=True).to_manifest())
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingExtraError, match=r"trained and measured so.*arbiter-vision\[qlora\]"):
        load_classifier(run.path)


def test_unknown_bits_and_a_run_without_base_are_named(manifest_run, base_folder):
    pytest.importorskip("bitsandbytes", reason="pip install '.[qlora]'")
    with pytest.raises(ConfigError, match="'int3'; choose nf4 or fp4"):
        load_base(BaseOptions(str(base_folder()), load_in_4bit=True, bnb_4bit_quant_type="int3"))
    with pytest.raises(CheckpointError, match="names no base"):
        load_classifier(manifest_run("run").path)
