"""Train a head with fixed categories on frozen CLIP embeddings: the published classifiers to compare with.

    accelerate launch recipes/fixed_head.py --head linear_probe
    accelerate launch recipes/fixed_head.py --head prompt_learning
    accelerate launch recipes/fixed_head.py --head pooled_attention

Each head has its own defaults in `configs/HEAD.yaml`, and its own run folder. With no other options: digits, tiny-clip,
two digits held out of training; F1 on the judge's own test questions, on one CPU core:

    head              seconds   F1 by members   F1 by name   F1, held-out categories
    linear_probe           15            0.99         0.86                      0.06
    prompt_learning        30            0.99         0.86                      0.21
    pooled_attention       10            0.71            -                      0.73

"By members" maps a policy's categories to heads by what they mean (the kindest reading: an operator told the system
which heads make up each category), "by name" by their names alone. What cannot be mapped is left unjudged.

`linear_probe` (UnsafeBench, CCS 2025, section A.5): MLPs of D - D/2 - 2 (768-384-2 for CLIP ViT-L/14), Adam 2e-4,
batches of 128, 30 epochs, one MLP a category. An image that is unsafe in another category counts as safe.

`prompt_learning` (the same section, after CoOp): two soft prompts a category of eight vectors, started from "This image
is about something safe" and "... unsafe in [category]", Adam 2e-4, batches of 128, 80 epochs, both encoders frozen.

`pooled_attention` (arXiv 2504.11707) attends from one pooled text vector to one pooled image vector; with a single key
the softmax is 1, so the text has no effect. It says "unsafe" when any training category is violated, whatever the
policy, so it flags almost everything, and gets no flip from unsafe to safe. The original trains all of CLIP ViT-B/32
with the head; here the encoder stays frozen. `--config recipes/configs/pooled_attention_published.yaml` has its
settings (SGD 1e-3, momentum 0.2, weight decay 1e-3, 10 epochs). On frozen features they stop early (loss 0.23 against
0.001; F1 0.71, held-out 0.62), so the default is Adam 1e-3 for 30 epochs.

`--teacher judge` trains on a judge's probabilities instead of labels. Every option can stand in the YAML, and all but
`flip` on the command line; `--help` lists them; an unknown one stops the run. A head trains in seconds: under
`--resume_from_checkpoint true` a run that was stopped starts again from its beginning, and comes to the same head.
"""

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import set_seed

from eval.metrics.judged import summarise
from eval.obedience.quick import QuickObedience
from eval.predict import summarise_evaluation
from eval.questions import Evaluation, draw_evaluation
from eval.recipe import (
    DataOptions,
    judge_targets_distributed,
    judge_training,
    keep_answers,
    load_splits,
    log,
    open_run,
    parse_options,
    predict_distributed,
    progress_bar,
    record_labels,
    run_recipe,
    write_metrics,
)
from eval.reports.run_report import write_run_report
from judge import load_classifier
from judge.baselines.classifier import FixedClassifier
from judge.baselines.fit import FitOptions, Targets, fit, label_targets
from judge.baselines.linear_probe import LinearProbe, ParallelMLP, save_linear_probe
from judge.baselines.pooled_attention import PooledAttention, PooledAttentionHead, save_pooled_attention
from judge.baselines.prompt_learning import LENGTH, PromptLearning, SoftPrompts, save_prompt_learning
from judge.encoders.dual import DualEncoder
from judge.encoders.features import encode_images, encode_texts
from judge.errors import ConfigError
from judge.runs.folder import RunDir
from prompts import Example, Taxonomy, load_taxonomy

CONFIGS = Path(__file__).parent / "configs"
HEADS = ("linear_probe", "prompt_learning", "pooled_attention")
TEACHERS = ("labels", "judge")


@dataclass
class HeadOptions(DataOptions):
    """Which head, what it learns from, and what it is asked at the end."""

    head: str = field(
        default="linear_probe", metadata={"help": "linear_probe, prompt_learning or pooled_attention."}
    )
    output_dir: str = field(default="runs/head", metadata={"help": "Run folder to write; new or empty."})
    resume_from_checkpoint: bool = field(
        default=False, metadata={"help": "Start the run in output_dir again, under the same options."}
    )
    encoder: str = field(
        default="tiny-clip",
        metadata={"help": "An image-text encoder: hub id, folder, tiny-clip or small-clip."},
    )
    encoder_revision: str = field(default="main", metadata={"help": "Branch, tag or commit on the hub."})
    encoder_dtype: str = field(default="float32", metadata={"help": "float32, bfloat16 or float16."})
    cache: str | None = field(
        default="runs/features", metadata={"help": "Folder of computed features; null keeps none."}
    )
    teacher: str = field(default="labels", metadata={"help": "Targets: labels, or a judge's probabilities."})
    judge: str = field(default="runs/demo", metadata={"help": "The judge of teacher: judge; a run folder."})
    length: int = field(
        default=LENGTH, metadata={"help": "Vectors of a soft prompt; for prompt_learning only."}
    )
    test_rows: int = field(default=1600, metadata={"help": "Test questions asked at the end."})
    obedience_rows: int = field(default=24, metadata={"help": "Questions in each of a few other wordings."})
    threshold: float = field(default=0.5, metadata={"help": "P(unsafe) from which an image is flagged."})
    judge_batch_size: int = field(default=32, metadata={"help": "Images in one forward pass of a judge."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.teacher not in TEACHERS:
            raise ConfigError(f"teacher is {self.teacher!r}; use one of {', '.join(TEACHERS)}.")

    def trained(self, taxonomy: Taxonomy) -> Taxonomy:
        """The taxonomy without the held-out categories."""
        keys = self.flips.training_keys(taxonomy)
        return taxonomy.select(category.name for category in taxonomy if category.key in keys)


def choose_config(given: Mapping[str, Any]) -> Path:
    """The defaults of the head that the user chose."""
    head = given.get("head", HEADS[0])
    if head not in HEADS:
        raise ConfigError(f"head is {head!r}; use one of {', '.join(HEADS)}.")
    return CONFIGS / f"{head}.yaml"


OPTIONS = (HeadOptions, FitOptions)
CONFIG = choose_config


def main() -> None:
    """Load, encode once, train, evaluate, save."""
    started = time.time()
    options, training = parse_options(OPTIONS, CONFIG)
    state = PartialState(cpu=not torch.cuda.is_available())
    set_seed(training.seed)
    taxonomy = load_taxonomy(options.taxonomy)
    trained = options.trained(taxonomy)
    again = options.resume_from_checkpoint
    run = open_run(options.output_dir, options.head, trained, (options, training), resume=again)
    train, test = load_splits(options, taxonomy, ("train", "test"), run=run)
    source = (test.examples, taxonomy, options.flips)
    questions = draw_evaluation(*source, seed=training.seed, rows=options.test_rows)
    obedience = QuickObedience(*source, seed=training.seed, rows=options.obedience_rows)
    examples = [e for e in train.examples if not e.violates & frozenset(options.held_out)]
    log(f"{len(examples):,} training images without held-out categories, {len(trained)} categories")

    record_labels(run, examples, trained)
    encoder = DualEncoder.load(
        options.encoder, revision=options.encoder_revision, device=state.device, dtype=options.encoder_dtype
    )
    cache, shown = Path(options.cache) if options.cache else None, state.is_main_process
    inputs = [encode_images(encoder, examples, cache=cache, progress=shown).pooled]  # (N, D) each
    if options.head == "pooled_attention":
        prompts = [example.prompt or "" for example in examples]
        inputs.append(encode_texts(encoder, prompts, cache=cache, progress=shown).pooled)
    targets = find_targets(options, examples, trained)

    set_seed(training.seed)
    wanted = targets.categories  # (N, K)
    if options.head == "linear_probe":
        kind, save, head = LinearProbe, save_linear_probe, ParallelMLP(encoder.width, len(trained))
    elif options.head == "prompt_learning":
        kind, save = PromptLearning, save_prompt_learning
        head = SoftPrompts(encoder, trained.names, options.length)
    else:
        kind, save, head = PooledAttention, save_pooled_attention, PooledAttentionHead(encoder.width)
        wanted = targets.unsafe[:, None]  # (N, 1): one output for the whole
    with progress_bar("epochs", training.epochs) as progress:
        history = fit(head, inputs, wanted, training, progress=progress)
    classifier = kind(encoder, head, trained, name=run.path.name)
    if state.is_main_process:
        save(run, classifier)  # before measuring: if that fails, the training is not lost
    metrics = measure(run, classifier, questions, options.threshold)
    if state.is_main_process:
        run.write_rows("history", history)
        obedience.ask("after", classifier)
        metrics |= {"seconds": time.time() - started, "obedience": obedience.metrics}
        metrics["parameters"] = sum(parameter.numel() for parameter in head.parameters())
        learned = judge_training(
            None, metrics, test=test.examples, taxonomy=taxonomy, held_out=options.held_out,
            history=history, train_images=len(examples),
        )  # fmt: skip
        write_metrics(run, {"learned": learned.to_dict(), **metrics, "taxonomy_hash": trained.hash})
        print_table(metrics)
        log(f"\n{obedience.summary('head', 'Heads read no wording: categories are mapped to them.')}\n")
        log(f"{learned.to_text()}\n")
        write_run_report(run, test.examples)
        log(f"{metrics['seconds']:.0f} s in all; {run.path / 'report.html'}")


def find_targets(options: HeadOptions, examples: Sequence[Example], trained: Taxonomy) -> Targets:
    """Labels as targets, or the judge's probabilities, which all processes ask for together."""
    if options.teacher == "labels":
        return label_targets(examples, trained)
    size = options.judge_batch_size
    judge = load_classifier(options.judge, device=str(PartialState().device), batch_size=size)
    return judge_targets_distributed(judge, examples, trained, batch_size=size)


def measure(
    run: RunDir, classifier: FixedClassifier, evaluation: Evaluation, threshold: float
) -> dict[str, Any]:
    """Evaluate with both ways of mapping categories, and write every judged row.

    Returns:
        `summarise_evaluation` by members, with `f1_everything` (flips and held-out categories in one) beside it, and
        `f1_by_name` and `by_name`, the same by name; both None for a classifier that scores no categories.
    """
    found = {}
    for match, name in (("members", "rows"), ("name", "by_name")):
        if match == "name" and not classifier.scores_categories:
            break
        asked = copy.copy(classifier)
        asked.match = match
        judged = predict_distributed(asked, evaluation)
        found[name] = summarise_evaluation(evaluation, judged, threshold)
        found[name]["f1_everything"] = summarise(judged, threshold)["f1"]
        if PartialState().is_main_process:
            keep_answers(run, {name: judged}, measured="rows", threshold=threshold)
    by_name = found.get("by_name")
    return {"f1_by_name": by_name and by_name["f1"], "by_name": by_name, **found["rows"]}


def print_table(metrics: dict[str, Any]) -> None:
    """By members and by name, one metric a line."""
    labels = {
        "f1": "F1",
        "safe_to_unsafe": "flip accuracy, safe -> unsafe",
        "unsafe_to_safe": "flip accuracy, unsafe -> safe",
        "heldout_f1": "F1, held-out categories",
        "f1_everything": "F1, both together",
        "unjudged_share": "unjudged",
    }
    log(f"{'':32}{'by members':>12}{'by name':>12}")
    for key, label in labels.items():
        values = [column.get(key) for column in (metrics, metrics["by_name"] or {})]
        log(f"{label:32}" + "".join(f"{'-' if value is None else f'{value:.3f}':>12}" for value in values))


if __name__ == "__main__":
    run_recipe(main)
