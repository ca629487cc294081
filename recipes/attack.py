r"""Attack judges, students, filters and cascades, and measure their robustness.

    python recipes/attack.py

With no options it attacks what `make demo`, `make student` and `make defences` leave behind, on digits: the suite
`strong` on the pixels of every victim at four budgets (all its attacks at 2/255, APGD with restarts at the others),
image and prompt together through all stages of the cascades, prompts alone, also very long ones and ones in odd
characters, edits as platforms make them, transfer between victims. On 2 CPU cores it takes about 15 minutes and leaves
`runs/attack` (metrics.json, every trial, report.html). It also checks the attacks themselves (honesty checks). Exit
code 0: all passed; 1: one failed; 2: an error of any kind, with a traceback under `--debug`.

A prompt can only add suspicion (`judge.readings`). So what is flagged without a prompt is not attacked by text, and
cascades are attacked without a prompt; the table of length and character attacks shows what this rule saves.

Your own classifiers and data, at full strength:

    arbiter attack runs/my_judge runs/my_student --steps 100 --restarts 5 --queries 5000 --everywhere true --rows 500 \
        --dataset unsafebench --taxonomy unsafebench --held_out Deception --cascade none --defended_cascade none

`arbiter attack my_head.py:make_head` attacks any object with `score` that a function of yours gives back. Without
`pixel_margins` (`judge/protocol.py`) it is attacked by queries only, which report and metrics say.

`--preset unsafebench` runs the paper's own protocol (weak: see `eval/robustness/suites.py`), `--draws 2023 2024 2025`
its three draws. Every option can stand in the YAML, and all but `flip` and `defended` on the command line; an unknown
one stops the run.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import set_seed

from adversarial.errors import AttackError
from adversarial.pixels.apgd import APGD
from adversarial.pixels.square import Square
from adversarial.pixels.universal import Universal
from adversarial.texts.families import FAMILIES
from adversarial.texts.paraphrases import paraphrases, read_paraphrases
from adversarial.threat import ThreatModel, format_epsilon, parse_epsilon
from eval.classifiers import load
from eval.metrics.judged import summarise
from eval.predict import predict_questions
from eval.questions import Question, draw_grouped_questions
from eval.recipe import DataOptions, clean_start, create_run, log, parse_options, write_metrics
from eval.reports.robustness_page import write_robustness_report
from eval.reports.robustness_tables import HEADLINE_KEYS, failed_checks, headline, tables
from eval.robustness.deployments import evaluate_deployment
from eval.robustness.disguises import attack_by_disguise
from eval.robustness.edits import edit_pictures
from eval.robustness.run import attack_victim, check_attack, check_victim_sample, suite_for
from eval.robustness.suites import GRID, Suite, queries_only, strong, unsafebench
from eval.robustness.summary import compare_defended, summarise_draws, summarise_trials
from eval.robustness.texts import attack_texts, score_static_sets
from eval.robustness.transfer import attack_universally, transfer_matrix
from eval.robustness.trials import VictimResults, trial_records
from eval.robustness.victims import ClassifierVictim
from judge import load_classifier
from judge.cascade.cascade import Cascade
from judge.cascade.filters_alone import FilterClassifier
from judge.cascade.margins import PATHS
from judge.data.examples import load_examples
from judge.errors import ConfigError
from judge.runs.folder import RunDir
from judge.serve.exit_codes import run_to_exit_code
from prompts import FlipOptions, Taxonomy, load_taxonomy
from prompts.errors import ArbiterError

CONFIG = Path(__file__).parent / "configs" / "attack.yaml"
report_progress = partial(log, stderr=True)


@dataclass
class AttackOptions(DataOptions):
    """Which classifiers are attacked, on which data, with what."""

    output_dir: str = field(default="runs/attack", metadata={"help": "The folder of the run."})
    victims: list[str] = field(
        default_factory=lambda: ["runs/student"],
        metadata={
            "help": "Classifiers whose pixels are attacked: run folders, FILE.py:FUNCTION, or any of eval.classifiers."
        },
    )
    defended: dict[str, Any] = field(
        default_factory=dict,
        metadata={"help": "Which victim is another one's defended version, to compare. In a YAML only."},
    )
    cascade: str = field(
        default="none", metadata={"help": "A cascade, attacked in image and prompt; or none."}
    )
    defended_cascade: str = field(default="none", metadata={"help": "The same, defended; or none."})
    unsafe_rows: int = field(
        default=100, metadata={"help": "Unsafe rows that cascades are attacked on, and as many benign ones."}
    )
    text_rows: int = field(
        default=24,
        metadata={"help": "Unsafe rows under long and disguised prompts; a third for token search."},
    )
    clean_rows: int = field(default=800, metadata={"help": "Questions that clean F1 is measured on."})
    preset: str = field(default="strong", metadata={"help": "strong, or unsafebench (weak, the paper's)."})
    rows: int = field(default=96, metadata={"help": "Questions attacked, the same for every victim."})
    epsilon: str = field(default="2/255", metadata={"help": "The headline budget, in pixels of [0, 1]."})
    epsilons: list[str] = field(
        default_factory=list, metadata={"help": "All budgets; by default 0.5 to 8/255."}
    )
    norm: str = field(default="linf", metadata={"help": "linf or l2."})
    space: str = field(default="file", metadata={"help": "file, or input: pixels after resizing."})
    goal: str = field(default="opposite", metadata={"help": "opposite, safe, force or hide (a category)."})
    category: str | None = field(default=None, metadata={"help": "Name of the category to force or hide."})
    steps: int = field(default=100, metadata={"help": "Of each gradient attack and restart."})
    restarts: int = field(
        default=5, metadata={"help": "Of PGD and APGD; the first starts at the clean image."}
    )
    queries: int = field(default=5000, metadata={"help": "Of Square, which uses no gradients."})
    everywhere: bool = field(
        default=True,
        metadata={
            "help": "All attacks at all budgets; else APGD alone, with its restarts, beside the headline."
        },
    )
    draws: list[int] = field(
        default_factory=lambda: [42],
        metadata={"help": "Seeds of the draws; the first is reported in full."},
    )
    knowledge: str = field(default="white_box", metadata={"help": "white_box, or queries: no gradients."})
    paraphrases: str | None = field(
        default=None, metadata={"help": "A file of prompts with their paraphrases."}
    )
    static_sets: list[str] = field(
        default_factory=list, metadata={"help": "FORMAT:FILE of your own, as mma_diffusion:prompts.csv."}
    )
    severities: list[int] = field(
        default_factory=lambda: [1, 3, 5], metadata={"help": "Of edits and corruptions, from 1 to 5."}
    )
    batch_size: int = field(default=32, metadata={"help": "Images in one forward pass."})


OPTIONS = (AttackOptions,)


def main() -> None:
    """Attack pixels, then cascades, texts and the rest; report; exit with 1 if an honesty check failed."""
    started = time.time()
    (options,) = parse_options(OPTIONS, CONFIG)
    set_seed(options.draws[0])
    taxonomy, suite = load_taxonomy(options.taxonomy), build_suite(options)
    if len(set(map(victim_name, options.victims))) < len(options.victims):
        raise ConfigError(f"Victims are named by their folders, and two of {options.victims} share one.")
    victims = {
        name: ClassifierVictim(load(name), options.category, victim_name(name)) for name in options.victims
    }
    suites = {name: suite_for(victim, suite) for name, victim in victims.items()}
    for name in {options.cascade, options.defended_cascade} - {"none"}:
        RunDir.open(name, kind="cascade")  # a missing one stops the run now, not after minutes of attacks
    draws = [draw(options, taxonomy, seed, options.rows) for seed in options.draws]
    for victim in victims.values():
        check_victim_sample(
            victim, draws[0], suite.threat
        )  # before there is a folder, and minutes of attacks
    run = create_run(options.output_dir, "attack", taxonomy, (options,))

    results, broken = attack_pixels(victims, draws, suites, options)
    first = {victim_name(name): found[0] for name, found in results.items()}
    metrics: dict[str, Any] = {
        "suite": {**suite.describe(), "rows": len(draws[0]), "seeds": options.draws},
        "pixels": {
            one.name: summarise_trials(first[one.name], suites[name], no_gradients=one.no_gradients)
            for name, one in victims.items()
        },
        "draws": {
            victim_name(name): summarise_draws(found, suite.threat.epsilon) for name, found in results.items()
        },
        "honesty": check_attacks(victims, draws[0], suite, options),
        "clean": {victim_name(name): clean_f1(victim, options, taxonomy) for name, victim in victims.items()},
    }
    pairs = [(victim_name(a), victim_name(b)) for a, b in options.defended.items()]
    metrics["comparison"] = compare_defended(first, metrics["clean"], pairs, suite)
    names = (options.cascade, options.defended_cascade)
    cascades = {victim_name(name): load_classifier(name) for name in names if name != "none"}
    metrics["deployments"] = attack_deployments(cascades, options, taxonomy, suite)
    metrics |= run_other_attacks(victims, cascades, draws[0], suite, options)
    budgets = map(format_epsilon, (suite.threat.epsilon, suite.epsilons[-1]))
    metrics |= headline(metrics, pairs[0] if pairs else None, *budgets)
    metrics["seconds"] = time.time() - started
    write_metrics(run, metrics)
    run.write_rows("trials", (record for found in first.values() for record in trial_records(found)))
    write_robustness_report(run, metrics, first, broken, suite.threat.epsilon)
    print_results(metrics)
    log(f"\n{time.time() - started:.0f} s in all; {run.path}/report.html has the curves and the images")
    if failed_checks(metrics["honesty"]):
        raise SystemExit(1)


def build_suite(options: AttackOptions) -> Suite:
    """The preset with the options' budgets and counts.

    Raises:
        AttackError: a preset, norm, space or epsilon that does not exist.
    """
    if options.knowledge not in ("white_box", "queries"):
        raise AttackError(f"knowledge is {options.knowledge!r}; it is white_box or queries.")
    if options.preset == "unsafebench":
        suite = unsafebench(options.steps)
    elif options.preset == "strong":
        if options.norm == "l2" and not options.epsilons:
            raise AttackError(
                "L2 budgets have no default; give --epsilon and --epsilons, as 0.5 and 0.25 0.5 1."
            )
        budget = parse_epsilon(options.epsilon, options.norm)
        threat = ThreatModel(budget, options.norm, options.goal, options.category, options.space)
        budgets = tuple(parse_epsilon(text, threat.norm) for text in options.epsilons) or GRID
        suite = strong(
            threat,
            budgets,
            steps=options.steps,
            restarts=options.restarts,
            queries=options.queries,
            everywhere=options.everywhere,
        )
    else:
        raise AttackError(f"preset is {options.preset!r}; it is strong or unsafebench.")
    return queries_only(suite) if options.knowledge == "queries" else suite


def draw(options: AttackOptions, taxonomy: Taxonomy, seed: int, rows: int) -> list[Question]:
    """Exactly so many questions, the same for every victim."""
    plain = {"rename": 0.0, "custom": 0.0} if options.category else {}  # a goal names its category
    flip = FlipOptions(held_out=frozenset(options.held_out), **{**plain, **options.flip})
    examples = load_examples(options.dataset, split="test", taxonomy=taxonomy, limit=options.limit).examples
    return draw_grouped_questions(examples, taxonomy, flip, seed=seed, rows=rows)


def victim_name(name: str) -> str:
    """What tables call a victim: its folder's name."""
    return Path(name).name


def attack_pixels(
    victims: Mapping[str, ClassifierVictim],
    draws: Sequence[Sequence[Question]],
    suites: Mapping[str, Suite],
    options: AttackOptions,
) -> tuple[dict[str, list[VictimResults]], dict[str, Any]]:
    """The suite against each victim on each draw; and, of the first draw, victim -> question -> what broke it."""
    found: dict[str, list[VictimResults]] = {}
    broken: dict[str, Any] = {}
    for name, victim in victims.items():
        found[name] = []
        if victim.no_gradients is not None:
            log(f"{victim.name} gives no gradients ({victim.no_gradients}); it is attacked by queries only")
        for seed, questions in zip(options.draws, draws, strict=True):
            results, examples = attack_victim(
                victim, questions, suites[name], batch_size=options.batch_size, seed=seed, progress=report_progress
            )  # fmt: skip
            found[name].append(results)
            broken.setdefault(victim.name, examples)
    return found, broken


def check_attacks(
    victims: Mapping[str, ClassifierVictim],
    questions: Sequence[Question],
    suite: Suite,
    options: AttackOptions,
) -> dict[str, list[dict[str, Any]]]:
    """The honesty checks of each victim; images for their transfer check come from the next victim in the list."""
    found, ring = {}, list(victims.values())
    for place, (name, victim) in enumerate(victims.items()):
        report_progress(f"{victim.name}: honesty checks")
        other = ring[(place + 1) % len(ring)]
        checks = check_attack(
            victim, questions, suite, steps=options.steps, queries=options.queries,
            other=None if other is victim else other, batch_size=options.batch_size,
        )  # fmt: skip
        found[victim_name(name)] = [check.to_dict() for check in checks]
    return found


def clean_f1(victim: ClassifierVictim, options: AttackOptions, taxonomy: Taxonomy) -> float:
    """F1 on more rows than are attacked, too few to show a loss of a few hundredths."""
    questions = draw(options, taxonomy, options.draws[0] + 1, options.clean_rows)
    return float(summarise(predict_questions(victim.classifier, questions))["f1"])


def attack_deployments(
    cascades: Mapping[str, Any], options: AttackOptions, taxonomy: Taxonomy, suite: Suite
) -> dict[str, Any]:
    """Filters alone, the cascade and the defended cascade: text, image and both, adaptively and by transfer."""
    if not cascades:
        return {}
    first = next(iter(cascades))
    deployed = {
        f"filters of {first}": [ClassifierVictim(FilterClassifier.from_cascade(cascades[first]))],
        **{name: victims_by_stage(cascade) for name, cascade in cascades.items()},
    }
    drawn = draw(options, taxonomy, options.draws[0] + 2, 2 * options.unsafe_rows)
    found = {}
    crafted: dict[str, Any] = {}
    for name, paths in deployed.items():
        clean = clean_f1(paths[0], options, taxonomy)
        report_progress(f"{name}: image and text")
        found[name] = {
            "clean_f1": clean,
            **evaluate_deployment(
                paths,
                drawn,
                replace(suite.threat, goal="safe", category=None, space="file", after=("8bit",)),
                sorted({suite.threat.epsilon, suite.epsilons[-1]}),
                Square(queries=options.queries)
                if options.knowledge == "queries"
                else APGD(steps=options.steps),
                crafted,
                families=families(options),
                batch_size=options.batch_size,
                seed=options.draws[0],
            ),
        }
    return found


def victims_by_stage(cascade: Cascade) -> list[ClassifierVictim]:
    """The cascade as it is, and with gradients through each of its stages."""
    paths = [path for path in PATHS if path != "judge" or cascade.judge is not None]
    return [ClassifierVictim(cascade, path=path) for path in paths]


def families(options: AttackOptions) -> dict[str, Any]:
    """Families of text attacks, with the user's paraphrases if there are any."""
    own = options.paraphrases
    return {**FAMILIES, **({"paraphrases": paraphrases(read_paraphrases(own))} if own else {})}


def run_other_attacks(
    victims: Mapping[str, ClassifierVictim],
    cascades: Mapping[str, Any],
    questions: Sequence[Question],
    suite: Suite,
    options: AttackOptions,
) -> dict[str, Any]:
    """Text alone, edits, transfer, one universal perturbation, and the user's own sets of prompts.

    An attacker with queries only has no gradients for transfer or a universal perturbation.
    """
    named = {victim.name: victim for victim in victims.values()}
    gradients = options.knowledge == "white_box"
    white_box = {name: each for name, each in named.items() if gradients and each.no_gradients is None}
    largest = replace(suite.threat, epsilon=suite.epsilons[-1], space="file", after=("8bit",))
    texts, edits, token_rows = {}, {}, max(1, options.text_rows // 3)
    for name, victim in named.items():
        report_progress(f"{name}: texts and edits")
        texts[name] = attack_texts(
            victim, questions, suite.threat, families=families(options), token_rows=token_rows
        )
        edits[name] = edit_pictures(victim, questions, suite.threat, severities=tuple(options.severities))
    report_progress("length and character attacks")
    everyone = named | {name: ClassifierVictim(cascade) for name, cascade in cascades.items()}
    filters = {name: FilterClassifier.from_cascade(cascade) for name, cascade in list(cascades.items())[:1]}
    disguises = attack_by_disguise(everyone, filters, questions, rows=options.text_rows)
    report_progress("transfer")
    maker = APGD(steps=options.steps, early_stop=False)
    return {
        "texts": texts,
        "disguises": disguises,
        "edits": edits,
        "transfer": transfer_matrix(named, questions, largest, maker) if white_box else None,
        "universal": {
            name: attack_universally(victim, questions, largest, Universal())
            for name, victim in white_box.items()
        },
        "static_sets": score_static_sets(options.static_sets, named, questions),
    }


def print_results(metrics: dict[str, Any]) -> None:
    """Every table, the headline numbers, and failed honesty checks."""
    for table in tables(metrics):
        log(f"\n{table.to_text()}")
    log()
    for key in HEADLINE_KEYS:
        log(f"{key:28}{'–' if metrics[key] is None else f'{metrics[key]:.3f}'}")
    for line in failed_checks(metrics["honesty"]):
        log(f"HONESTY CHECK FAILED: {' '.join(line.split())}")


if __name__ == "__main__":
    # Not `run_recipe`: exit code 1 means a failed honesty check here, so any error has to end with 2.
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    raise SystemExit(
        run_to_exit_code(clean_start(main), debug=debug, name="error", ours=(ArbiterError, AttackError))
    )
