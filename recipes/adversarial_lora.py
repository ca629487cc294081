"""Harden a trained judge against attacks: LoRA on its vision tower, trained on images attacked at each step.

    accelerate launch recipes/adversarial_lora.py

With no options it hardens the judge of `make demo` (`runs/demo`), on its own data, policies and base, so the same
questions stay held out. Adapters on the tower learn, from images without labels, to keep the clean image's features
under attack (FARE, Schlarmann et al. 2024; `judge/vlm/training/tower.py`). Images of held-out categories are among
these, unlabelled, as in any collection. It leaves `runs/robust_judge`, a run like any judge's, and prints F1 on the
same held-out questions, and robust accuracy at three budgets under PGD, before and after. On one CPU core it takes six
and a half minutes: robust accuracy at 8/255 goes from 0.44 to 0.79, at 4/255 from 0.74 to 0.92, while F1 goes from
0.987 to 0.980 and stays at 0.96 on held-out categories.

`--learn_answers true` adds a second stage: training on answers to questions that are attacked against the current
weights. On digits its minute gained nothing (F1 0.976, on held-out categories 0.917, 0.79 at 8/255).

PGD of a few steps shows that training worked, not how robust the judge is: `arbiter attack` measures that.

A judge of your own, in a YAML or on the command line:

    accelerate launch recipes/adversarial_lora.py --judge runs/llava_7b --output_dir runs/robust_7b --epsilon 2/255

Every option can stand in the YAML and on the command line; `--help` lists them; an unknown one stops the run. A run
that was stopped goes on with `--resume_from_checkpoint true`: after the last epoch of the first stage, and from the
last checkpoint (`save_strategy`, `save_steps`) of the second.
"""

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import set_seed

from adversarial.pixels.pgd import PGD
from adversarial.threat import ThreatModel, format_epsilon, parse_epsilon
from eval.metrics.judged import JudgedRow
from eval.obedience.quick import QuickObedience, Stage
from eval.predict import summarise_evaluation
from eval.questions import Evaluation, Question, draw_evaluation
from eval.recipe import (
    DataOptions,
    Learned,
    RecipeOptions,
    RecipeTrainingArguments,
    command,
    continue_lessons,
    data_words,
    judge_hardening,
    load_splits,
    log,
    open_run,
    parse_options,
    predict_distributed,
    progress_bar,
    record_measured,
    resume_from,
    run_recipe,
    write_metrics,
)
from eval.reports.run_report import write_run_report
from eval.robustness.run import attack_victim
from eval.robustness.suites import Suite
from eval.robustness.summary import summarise_trials
from eval.robustness.victims import ClassifierVictim
from judge import load_classifier
from judge.data.examples import ExampleSet, check_splits, load_examples
from judge.encoders.fare import resize_to_input
from judge.errors import ConfigError
from judge.runs.checkpoint import CHECKPOINT
from judge.runs.folder import RunDir
from judge.runs.resume import explain_interruption
from judge.vlm.adapter import tidy_adapter
from judge.vlm.encode import ChatEncoder
from judge.vlm.families import is_language, judging_path
from judge.vlm.load import BaseOptions, load_base
from judge.vlm.plain import PlainJudge
from judge.vlm.score import VisionLanguageJudge
from judge.vlm.training.attention import register
from judge.vlm.training.harden import HardeningOptions, RobustCollator, RobustTrainer
from judge.vlm.training.tower import (
    TOWER_TARGETS,
    MatchingOptions,
    TowerFeatures,
    extend_adapter,
    match_features,
)
from judge.vlm.training.trainer import FlippedGroups
from prompts import FlipOptions, draw_groups

CONFIG = Path(__file__).parent / "configs" / "adversarial_judge.yaml"
BUDGETS = (2 / 255, 4 / 255, 8 / 255)
"""L-inf budgets at which robust accuracy is measured."""


@dataclass
class HardenOptions(RecipeOptions):
    """Which judge, how its batches are attacked, and how it is measured."""

    judge: str = field(default="runs/demo", metadata={"help": "Run folder of the judge to harden."})
    epsilon: str = field(default="8/255", metadata={"help": "Largest L-inf budget in training, as 8/255."})
    attack_steps: int = field(default=2, metadata={"help": "PGD steps on each attacked row."})
    attack_share: float = field(default=0.75, metadata={"help": "Share of rows attacked, 0 to 1."})
    tower_targets: str = field(
        default=TOWER_TARGETS,
        metadata={"help": "Regular expression on the full names of modules to adapt beside the judge's own."},
    )
    tower_rank: int = field(default=64, metadata={"help": "Rank of these further adapters."})
    learn_answers: bool = field(
        default=False, metadata={"help": "Run the second stage: train on answers to attacked questions."}
    )
    train_language: bool = field(
        default=False, metadata={"help": "Train the judge's own adapters as well in the second stage."}
    )
    feature_images: int = field(
        default=16000,
        metadata={"help": "Match features on at most so many images; of digits, so many are drawn."},
    )
    feature_epochs: int = field(
        default=3, metadata={"help": "Epochs over these images; 0 skips the first stage."}
    )
    feature_rate: float = field(default=2e-3, metadata={"help": "Peak learning rate of the first stage."})
    feature_batch_size: int = field(default=64, metadata={"help": "Images in a step of the first stage."})
    feature_clean_weight: float = field(
        default=0.0, metadata={"help": "Weight of clean images' features beside the attacked ones' there."}
    )
    feature_weight: float = field(
        default=1.0, metadata={"help": "Weight of the features' distance beside the answers' loss."}
    )
    max_length: int = field(default=2048, metadata={"help": "Most tokens in a row."})
    groups_per_epoch: int | None = field(
        default=None, metadata={"help": "Policies an epoch; by default each image is used about twice."}
    )
    max_failures: float = field(
        default=0.01, metadata={"help": "Largest share, 0 to 1, of unusable rows before the run stops."}
    )
    limit: int | None = field(default=None, metadata={"help": "Use at most so many rows of each split."})
    test_rows: int = field(default=1600, metadata={"help": "Test questions asked before and after."})
    attacked_rows: int = field(default=160, metadata={"help": "Test questions attacked before and after."})
    measured_steps: int = field(default=10, metadata={"help": "PGD steps in these measurements."})
    judge_batch_size: int = field(default=16, metadata={"help": "Images in one forward pass when judging."})

    def __post_init__(self) -> None:
        epsilon = parse_epsilon(self.epsilon)
        self.hardening = HardeningOptions(epsilon, self.attack_steps, self.attack_share, self.feature_weight)
        self.matching = MatchingOptions(
            epsilon, self.attack_steps, self.feature_epochs, self.feature_rate,
            self.feature_clean_weight, self.feature_batch_size,
        )  # fmt: skip


OPTIONS = (HardenOptions, RecipeTrainingArguments)


def main() -> None:
    """Parse the options, open the run folders, harden; what interrupts it is explained."""
    options, args = parse_options(OPTIONS, CONFIG)
    check_launch(options, args)
    judge_run = RunDir.open(options.judge, kind="vlm")
    # The judge's own data and held-out categories, so that the same test questions stay unseen.
    drawn = {key: judge_run.config[key] for key in ("dataset", "taxonomy", "held_out", "flip")}
    data = DataOptions(**drawn, max_failures=options.max_failures, limit=options.limit)
    about = {**BaseOptions.from_run(judge_run).to_manifest(), "template": judge_run.manifest["template"]}
    about["judge"] = options.judge
    run = open_run(args.output_dir, "vlm", judge_run.taxonomy, (drawn, options, args), **about)
    with explain_interruption(run.path):
        harden(run, judge_run, data, options, args)


def harden(
    run: RunDir, judge_run: RunDir, data: DataOptions, options: HardenOptions, args: RecipeTrainingArguments
) -> None:
    """Evaluate the judge, train its tower, evaluate what was saved, report clean and robust accuracy."""
    started = time.time()
    set_seed(args.seed)
    train, test = load_splits(data, run.taxonomy, ("train", "test"), run=run)
    unlabelled = load_feature_images(data, test, options, run)
    questions = draw_evaluation(
        test.examples, run.taxonomy, data.flips, seed=args.seed, rows=options.test_rows
    )
    attacked = draw_attacked(test, run, data.flips, options, args.seed)
    continue_lessons(run, judge_run)
    obedience = QuickObedience(
        test.examples, run.taxonomy, data.flips, rows=args.obedience_rows, seed=args.seed
    )
    first, before = measure(judge_run, questions, attacked, obedience, "before", options, args)

    set_seed(args.seed)
    groups = FlippedGroups(
        train.examples, run.taxonomy, data.flips.plain, seed=args.seed, groups=options.groups_per_epoch
    )
    trainer = build_trainer(judge_run, groups, options, args)
    training = time.time()
    history = train_features(trainer, unlabelled, options, args.seed, run.path / CHECKPOINT)
    if options.learn_answers:
        trainer.train(resume_from_checkpoint=resume_from(args))
    training = time.time() - training
    trainer.save_model(str(run.path / "adapter"))
    PartialState().wait_for_everyone()
    if trainer.is_world_process_zero():
        tidy_adapter(run.path / "adapter", base=run.manifest["base"])
    PartialState().wait_for_everyone()

    answers, after = measure(run, questions, attacked, obedience, "after", options, args)
    if trainer.is_world_process_zero():
        record_measured(run, answers, run.taxonomy)
        run.write_rows("history", [*history, *trainer.state.log_history])
        seconds = {"seconds": time.time() - started, "seconds_training": training}
        for name, judged in (("before", first), ("after", answers)):
            run.write_rows(name, (row.to_dict() for row in judged))
        robust = {
            budget: tuple(
                found["attacked"]["by_epsilon"][budget]["robust_accuracy"] for found in (before, after)
            )
            for budget in map(format_epsilon, BUDGETS)
        }
        learned = judge_hardening(
            before["clean"], after["clean"], robust=robust, attacked=after["attacked"]["rows"],
            test=test.examples, taxonomy=run.taxonomy, held_out=data.held_out,
        )  # fmt: skip
        write_results(run, before, after, obedience, seconds, learned)
        write_run_report(run, test.examples)
        (run.path / CHECKPOINT).unlink(missing_ok=True)


def check_launch(options: HardenOptions, args: RecipeTrainingArguments) -> None:
    """Refuse what this recipe cannot do under any options of its own.

    Raises:
        ConfigError: ZeRO-3, or DeepSpeed without the second stage.
    """
    plugin = args.deepspeed_plugin
    if plugin is not None and plugin.zero_stage == 3:
        raise ConfigError("Under ZeRO-3 no process has a whole judge to attack; use ZeRO-2 or plain DDP.")
    if plugin is not None and not options.learn_answers:
        raise ConfigError(
            "The first stage cannot use DeepSpeed; launch it with plain DDP, or add --learn_answers true."
        )


def load_feature_images(
    data: DataOptions, test: ExampleSet, options: HardenOptions, run: RunDir
) -> ExampleSet:
    """Images whose features are matched; their labels are not used, and no test image is among them."""
    digits = data.dataset.split(":")[0] == "digits"
    images = load_examples(
        f"digits:{options.feature_images}" if digits else data.dataset,
        split="train",
        taxonomy=run.taxonomy,
        max_failures=options.max_failures,
        limit=options.feature_images,
        ledger=run.path / "skipped-features.jsonl" if PartialState().is_main_process else None,
    )
    check_splits(images, test)
    return images


def draw_attacked(
    test: ExampleSet, run: RunDir, flip: FlipOptions, options: HardenOptions, seed: int
) -> list[Question]:
    """Whole-policy questions to attack; few policies, so that each is read once for many images."""
    wide = replace(flip.plain, focus=0.0, group_size=16 if options.attacked_rows >= 16 else flip.group_size)
    groups = draw_groups(
        test.examples, run.taxonomy, wide, seed=seed, epoch=0,
        groups=max(1, options.attacked_rows // wide.group_size),
    )  # fmt: skip
    return [
        Question(f"attacked-{i}-{j}", row)
        for i, group in enumerate(groups)
        for j, row in enumerate(group.rows)
    ]


def build_trainer(
    judge_run: RunDir, dataset: FlippedGroups, options: HardenOptions, args: RecipeTrainingArguments
) -> RobustTrainer:
    """The judge's base with its adapter, widened, ready to train."""
    manifest = judge_run.manifest
    model, processor = load_base(BaseOptions.from_run(judge_run), device=str(args.device))
    if judging_path(model) == "plain":
        raise ConfigError(
            f"{judge_run.path} judges on the plain path: {PlainJudge.why_no_gradients} to its pixels, and hardening "
            "needs them. Train a judge on a base of the fast path (docs/models.md) and harden that."
        )
    model.set_attn_implementation({"text_config": register()})
    features = TowerFeatures(model, processor)
    model, counts = extend_adapter(
        model,
        judge_run.path / "adapter",
        options.tower_targets,
        base=manifest["base"],
        rank=options.tower_rank,
    )
    if not options.train_language:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and not is_language(name))
    log(f"LoRA on {counts['modules']} modules: {counts['trainable']:,} of {counts['all']:,} parameters train")
    return RobustTrainer(
        judge=VisionLanguageJudge(model, processor, manifest["template"]),
        features=features,
        hardening=options.hardening,
        model=model,
        args=args,
        train_dataset=dataset,
        data_collator=RobustCollator(ChatEncoder(processor, manifest["template"]), options.max_length, model),
        processing_class=processor,
    )


def train_features(
    trainer: RobustTrainer, unlabelled: ExampleSet, options: HardenOptions, seed: int, checkpoint: Path
) -> list[dict[str, float]]:
    """The first stage: the tower's adapters learn to keep the clean image's features under attack."""
    matching = replace(options.matching, seed=seed)
    images = resize_to_input(trainer.judge.processor, unlabelled.examples)
    steps = max(len(images) // matching.batch_size, 1) * matching.epochs
    with progress_bar("features", steps) as progress:
        return match_features(
            trainer.judge.model,
            trainer.tower,
            images,
            matching,
            checkpoint=checkpoint,
            progress=lambda done, loss: progress(done, distance=loss),
        )


def measure(
    run: RunDir,
    questions: Evaluation,
    attacked: list[Question],
    obedience: QuickObedience,
    stage: Stage,
    options: HardenOptions,
    args: RecipeTrainingArguments,
) -> tuple[list[JudgedRow], dict[str, Any]]:
    """Answers to all questions, their numbers and robust accuracy on some, of a judge as a user would load it."""
    judge = load_classifier(run.path, device=str(args.device), batch_size=options.judge_batch_size)
    answers = predict_distributed(judge, questions)
    obedience.ask(stage, judge)
    pgd = PGD(steps=options.measured_steps)
    suite = Suite(
        "quick", ThreatModel(BUDGETS[0], after=("8bit",)), BUDGETS, (pgd,), (pgd,), "one attack, few steps"
    )
    found, _ = attack_victim(
        ClassifierVictim(judge), attacked, suite, batch_size=options.judge_batch_size, seed=args.seed
    )
    clean = summarise_evaluation(questions, answers)
    return answers, {"clean": clean, "attacked": summarise_trials(found, suite)}


def write_results(
    run: RunDir,
    before: dict[str, Any],
    after: dict[str, Any],
    obedience: QuickObedience,
    seconds: dict[str, float],
    learned: Learned,
) -> None:
    """Write metrics.json, and print clean and robust accuracy before and after, and how other wordings are obeyed."""
    summary = {
        "clean_f1_loss": before["clean"]["f1"] - after["clean"]["f1"],
        "undefended_robust_accuracy": before["attacked"]["robust_accuracy"],
        "defended_robust_accuracy": after["attacked"]["robust_accuracy"],
    }
    found = {"before": before, "after": after, "obedience": obedience.metrics}
    write_metrics(run, {"learned": learned.to_dict(), **summary, **found, **seconds})
    labels = {
        "f1": "F1",
        "heldout_f1": "F1, held-out categories",
        "lying_prompt_f1": "F1, prompt lies",
        "category_accuracy": "category accuracy",
    }
    table = {label: [found["clean"][key] for found in (before, after)] for key, label in labels.items()}
    for level in map(format_epsilon, BUDGETS):
        table[f"robust accuracy at {level}"] = [
            found["attacked"]["by_epsilon"][level]["robust_accuracy"] for found in (before, after)
        ]
    log(f"\n{'':34}{'before':>10}{'after':>10}")
    for label, values in table.items():
        log(f"{label:34}" + "".join(f"{'-' if v is None else f'{v:.3f}':>10}" for v in values))
    log(f"\n{obedience.summary()}")
    log(f"\n{learned.to_text()}")
    log(
        f"\n{seconds['seconds']:.0f} s in all, {seconds['seconds_training']:.0f} s of them training; robust accuracy "
        f"of {after['attacked']['rows']} questions, on 8-bit images. Next:"
    )
    words = data_words(run.config["dataset"], run.path / "taxonomy.yaml", run.config["held_out"])
    log(f"  {command('arbiter', 'attack', run.path, *words)}")


if __name__ == "__main__":
    run_recipe(main)
