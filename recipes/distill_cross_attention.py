"""Distil the judge into the cross-attention student: any taxonomy, at the cost of one image encoder pass.

    accelerate launch recipes/distill_cross_attention.py

With no options it distils the judge of `make demo` (`runs/demo`) on what ships: digits, `tiny-clip` as the frozen
encoder, two digits held out of all training. On 2 CPU cores it takes about a minute, and leaves `runs/student` (head,
metrics.json, report.html, and the judge's scores as a data set in `lessons/`). It prints the student's F1 beside the
judge's on the same rows, both flip directions, held-out categories, and the heads named in `baselines`.

A judge of your own, on the images it was trained on; `recipes/configs/own_data_student.yaml` then lies under it:

    accelerate launch recipes/distill_cross_attention.py --teacher runs/my_project --dataset folder:my_images \
        --taxonomy my_project/taxonomy.yaml --encoder openai/clip-vit-base-patch32 --output_dir runs/my_student

A CLIP, UnsafeBench and a served judge, in a YAML of your own:

    accelerate launch recipes/distill_cross_attention.py --config my.yaml

    encoder: openai/clip-vit-base-patch32
    teacher: http://localhost:8000/v1#my-judge
    dataset: unsafebench
    taxonomy: unsafebench

`--teacher labels` asks nobody: the student learns from the labels alone. `--config recipes/configs/signs/
distill_cross_attention.yaml` does so on signs, with small-clip as the encoder.

Every option can stand in the YAML, and all but `flip` and `distill` on the command line; `--help` lists them; an
unknown one stops the run.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from transformers import set_seed

from eval.metrics.judged import JudgedRow, summarise
from eval.obedience.quick import QuickObedience
from eval.predict import predict_questions, summarise_evaluation
from eval.questions import Evaluation, draw_evaluation
from eval.recipe import (
    DataOptions,
    RecipeTrainingArguments,
    check_mapping,
    check_own_data,
    config_by_data,
    judge_training,
    load_splits,
    log,
    open_run,
    parse_options,
    progress_bar,
    record_lessons,
    record_measured,
    resume_from,
    run_recipe,
    try_it,
    write_metrics,
)
from eval.reports.run_report import write_run_report
from judge import load_classifier
from judge.encoders.dual import DualEncoder
from judge.encoders.features import encode_images, encode_texts
from judge.encoders.phrase_embeddings import PhraseEmbeddings
from judge.runs.folder import RunDir
from judge.runs.references import teacher_identity
from judge.runs.resume import explain_interruption
from judge.student.distill import Distillation, DistillTrainer, calibrate_head
from judge.student.distill_data import DistillCollator, DistillOptions, VariedGroups
from judge.student.group_logits import group_logits
from judge.student.head import CrossAttentionHead, HeadConfig
from judge.student.student import Student, save_student
from judge.student.teacher_scores import ScoredGroup, read_teacher_scores, write_teacher_scores
from prompts import Example, Group, draw_groups, load_taxonomy

CONFIG = Path(__file__).parent / "configs" / "distill_cross_attention.yaml"
OWN_DATA = Path(__file__).parent / "configs" / "own_data_student.yaml"
LABELS = "labels"
"""In place of a teacher: the labels of the data alone."""
SHOWN = ("f1", "safe_to_unsafe", "unsafe_to_safe", "pair_score", "category_accuracy", "auc", "heldout_f1")
"""Columns of the table, and metrics of the evaluations during training."""


@dataclass
class StudentOptions:
    """The teacher, and the student's encoder and head."""

    teacher: str = field(
        default="runs/demo",
        metadata={
            "help": "Any classifier: a run folder, hf: and a hub id, or URL#model of a server. Or labels: no teacher."
        },
    )
    encoder: str = field(
        default="tiny-clip",
        metadata={"help": "An image-text encoder: hub id, folder, tiny-clip or small-clip."},
    )
    inner: int = field(default=256, metadata={"help": "Width of the cross-attention."})
    heads: int = field(default=4, metadata={"help": "Attention heads."})
    depth: int = field(default=1, metadata={"help": "Cross-attention blocks."})
    rank: int = field(default=32, metadata={"help": "Rank of the correction of the joint space."})

    def shape(self, width: int) -> HeadConfig:
        """The head's, on an encoder of this width."""
        return HeadConfig(width, self.inner, self.heads, self.depth, self.rank)


@dataclass
class DistillDataOptions(DataOptions):
    """What the teacher judges, under which categories, and what the student is compared with."""

    distill: dict[str, Any] = field(
        default_factory=dict,
        metadata={"help": "Any field of judge.student.distill_data.DistillOptions. In a YAML only."},
    )
    lessons: int = field(
        default=250, metadata={"help": "Policies the teacher judges, flip.group_size rows each."}
    )
    cache: str = field(default="runs/features", metadata={"help": "Folder for the encoder's features."})
    baselines: list[str] = field(
        default_factory=list, metadata={"help": "Run folders of other heads to ask the same questions."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_mapping("distill", self.distill, DistillOptions)


@dataclass
class StudentArguments(RecipeTrainingArguments):
    """transformers' own arguments; a batch is made of policies, each with `flip.group_size` rows."""

    eval_rows: int = field(
        default=400, metadata={"help": "Validation questions, during training and to calibrate."}
    )
    test_rows: int = field(
        default=1600, metadata={"help": "Test questions; the judge's own evaluation has 1600."}
    )


OPTIONS = (StudentOptions, DistillDataOptions, StudentArguments)
NEEDED = {
    "teacher": "the run folder of your judge, such as runs/my_project, or labels for none",
    "encoder": "an image-text encoder, such as openai/clip-vit-base-patch32; tiny-clip ships, and reads digits only",
    "taxonomy": "a YAML file with your categories, or the name of one that ships",
}
"""Options that have no usual value on data of one's own -> what to give."""
own_config = config_by_data(CONFIG, OWN_DATA, NEEDED)


def main() -> None:
    """Parse the options, open the run folder, distil; what interrupts it is explained."""
    options, data, args = parse_options(OPTIONS, own_config)
    for name in data.baselines:
        RunDir.open(name)  # a missing one stops the run now, not after the training
    taxonomy = load_taxonomy(data.taxonomy)
    check_own_data(data, taxonomy)
    run = open_run(args.output_dir, "student", taxonomy, (options, data, args), teacher=options.teacher)
    with explain_interruption(run.path):
        distil(run, options, data, args)


def distil(run: RunDir, options: StudentOptions, data: DistillDataOptions, args: StudentArguments) -> None:
    """Collect the teacher's scores, train, calibrate, evaluate, report."""
    started = time.time()
    set_seed(args.seed)
    taxonomy, flip = load_taxonomy(data.taxonomy), data.flips
    train, validation, test = (split.examples for split in load_splits(data, taxonomy, run=run))
    # A student scores whole policies; a row about one category only would be another question.
    whole = replace(flip, focus=0.0)
    groups = draw_groups(train, taxonomy, whole, seed=args.seed, epoch=0, groups=data.lessons)
    even = validation[::2]  # the cascade's promise rests on the odd ones (recipes/cascade.py)
    validation_questions = draw_evaluation(even, taxonomy, flip, seed=args.seed, rows=args.eval_rows)
    test_questions = draw_evaluation(test, taxonomy, flip, seed=args.seed, rows=args.test_rows)
    obedience = QuickObedience(test, taxonomy, flip, rows=args.obedience_rows, seed=args.seed)

    encoder = DualEncoder.load(options.encoder, device=str(args.device))
    record_lessons(run, [row for group in groups for row in group.rows], taxonomy)
    lessons = collect_lessons(options.teacher, groups, run, data, args)
    taught = time.time()
    head = CrossAttentionHead(options.shape(encoder.width))
    student = Student(encoder, head, name=run.path.name, default_taxonomy=taxonomy)
    parameters = sum(p.numel() for p in head.parameters())
    log(f"{parameters:,} parameters on {encoder.name} of width {encoder.width}")
    untrained = predict_questions(student, test_questions.questions)

    def evaluate(_: CrossAttentionHead) -> dict[str, float]:
        """Metrics on the validation questions, for the training log."""
        student.clear_cache()
        judged = predict_questions(student, validation_questions.questions)
        found = summarise_evaluation(validation_questions, judged)
        return {key: found[key] for key in SHOWN if found.get(key) is not None}

    weights = DistillOptions(**data.distill | ({"hard_weight": 1.0} if options.teacher == LABELS else {}))
    trainer = DistillTrainer(
        model=Distillation(head, weights),
        args=args,
        train_dataset=VariedGroups(lessons, taxonomy, weights, seed=args.seed),
        eval_dataset=validation_questions.questions,
        data_collator=build_collator(encoder, train, lessons, Path(data.cache)),
        evaluator=evaluate,
        scale_rate=weights.scale_rate,
    )
    trainer.train(resume_from_checkpoint=resume_from(args))
    head.eval()
    student.clear_cache()
    if trainer.is_world_process_zero():
        save_student(run, student)  # before calibrating: if that fails, the training is not lost
    count = max(1, args.eval_rows // whole.group_size)
    held_out = draw_groups(even, taxonomy, whole, seed=args.seed, epoch=1, groups=count)
    calibrate_head(head, *group_logits(student, held_out))
    if trainer.is_world_process_zero():
        save_student(run, student)
        run.write_rows("history", trainer.state.log_history)
        about = {
            "seconds_teaching": taught - started,
            "parameters": parameters,
            "rows_taught": sum(len(lesson.rows) for lesson in lessons),
            "unjudged_by_teacher": count_unjudged(options.teacher, lessons),
        }
        asked = (test_questions, test)
        evaluate_all(run, student, untrained, asked, obedience, options, data, about, started)
        log(f"  {try_it(run, test)}")


def count_unjudged(teacher: str, lessons: Sequence[ScoredGroup]) -> int | None:
    """Rows that the teacher could not judge; None without a teacher."""
    return None if teacher == LABELS else int(sum(np.isnan(lesson.unsafe).sum() for lesson in lessons))


def collect_lessons(
    name: str, groups: Sequence[Group], run: RunDir, data: DistillDataOptions, args: StudentArguments
) -> list[ScoredGroup]:
    """The teacher's scores of all groups, shared out over the processes; those already on disk are read.

    Without a teacher all scores are NaN, which no loss counts.
    """
    if name == LABELS:
        return [
            ScoredGroup(
                group.taxonomy,
                group.rows,
                np.full(len(group.rows), np.nan),
                np.full((len(group.rows), len(group.taxonomy)), np.nan),
            )
            for group in groups
        ]
    state = PartialState()
    about = {
        "teacher": teacher_identity(name),
        "dataset": data.dataset,
        "taxonomy": load_taxonomy(data.taxonomy).hash,
        "held_out": sorted(data.held_out),
        "seed": args.seed,
    }
    folder = run.path / "lessons"
    with progress_bar("the teacher judges", len(groups)) as progress:
        write_teacher_scores(
            load_classifier(name, device=str(args.device)),
            groups,
            folder,
            about=about,
            process=state.process_index,
            processes=state.num_processes,
            progress=progress,
        )
    state.wait_for_everyone()
    return read_teacher_scores(folder, groups, about=about)


def build_collator(
    encoder: DualEncoder, train: Sequence[Example], lessons: Sequence[ScoredGroup], cache: Path
) -> DistillCollator:
    """Features of the training images and prompts, computed once and cached on disk."""
    used = {row.example.id for lesson in lessons for row in lesson.rows}
    examples = [example for example in train if example.id in used]
    texts = sorted({row.prompt or "" for lesson in lessons for row in lesson.rows})
    return DistillCollator(
        encode_images(encoder, examples, cache=cache),
        [example.id for example in examples],
        encode_texts(encoder, texts, cache=cache),
        texts,
        PhraseEmbeddings(encoder),
    )


def evaluate_all(
    run: RunDir,
    student: Student,
    untrained: list[JudgedRow],
    asked: tuple[Evaluation, Sequence[Example]],
    obedience: QuickObedience,
    options: StudentOptions,
    data: DistillDataOptions,
    about: dict[str, Any],
    started: float,
) -> None:
    """Ask student, teacher and baselines the same questions; write metrics.json, rows and report.html, and print."""
    test, images = asked
    obedience.ask("after", student)  # before, its head was random
    answers = {"untrained": untrained, "student": predict_questions(student, test.questions)}
    if options.teacher != LABELS:
        obedience.ask("teacher", load_classifier(options.teacher))
        answers["judge"] = teacher_rows(options.teacher, test)
    answers |= {
        Path(name).name: predict_questions(load_classifier(name), test.questions) for name in data.baselines
    }
    found = {name: summarise_evaluation(test, rows) for name, rows in answers.items()}
    for name, rows in answers.items():
        # Users write categories that no head was trained on: flips and held-out categories in one number.
        found[name]["f1_everything"] = summarise(rows)["f1"]
    heads = [name for name in found if name not in ("student", "judge", "untrained")]
    seconds = time.time() - started
    learned = judge_training(
        found["untrained"], found["student"], test=images, taxonomy=run.taxonomy, held_out=data.held_out,
        history=list(run.read_rows("history")),
    )  # fmt: skip
    write_metrics(
        run,
        {
            "learned": learned.to_dict(),
            **found["student"],
            **({"judge_f1": found["judge"]["f1"], "judge": found["judge"]} if "judge" in found else {}),
            "untrained": found["untrained"],
            "baselines": {name: found[name]["f1_everything"] for name in heads},
            "baselines_trained_categories": {name: found[name]["f1"] for name in heads},
            "baselines_in_full": {name: found[name] for name in heads},
            "obedience": obedience.metrics,
            "seconds": seconds,
            **about,
        },
    )
    files = {
        "test" if name == "student" else name: rows for name, rows in answers.items() if name not in heads
    }
    for name, rows in files.items():
        run.write_rows(name, (row.to_dict() for row in rows))
    record_measured(run, answers["student"], run.taxonomy)
    write_run_report(run, [question.row.example for question in test.questions])
    shown = (*SHOWN, "f1_everything")
    log(f"\n{'':18}" + "".join(f"{key:>18}" for key in shown))
    for name, each in found.items():
        cells = "".join(f"{'-' if each.get(key) is None else format(each[key], '.3f'):>18}" for key in shown)
        log(f"{name:18}{cells}")
    log(f"\n{obedience.summary('student')}")
    log(f"\n{learned.to_text()}")
    log(f"\n{seconds:.0f} s in all, {about['seconds_teaching']:.0f} s of them the teacher's. Next:")


def teacher_rows(teacher: str, test: Evaluation) -> list[JudgedRow]:
    """The teacher's answers to the test questions: from its own run if it was asked the same, else asked now."""
    if (Path(teacher) / "rows" / "after.jsonl").is_file():
        rows = [JudgedRow.from_dict(row) for row in RunDir(teacher).read_rows("after")]
        same = [
            (row.id, row.truth, row.policy, row.prompt)
            == (question.id, question.row.unsafe, question.row.taxonomy.names, question.row.prompt)
            for row, question in zip(rows, test.questions, strict=False)
        ]
        if len(rows) == len(test.questions) == sum(same):
            return rows
    return predict_questions(load_classifier(teacher), test.questions)


if __name__ == "__main__":
    run_recipe(main)
