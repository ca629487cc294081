r"""Build a corpus: prompts, pictures drawn from them, labels on the pictures, and a ledger of every row.

    python recipes/build_corpus.py

With no options: 100 prompts for digits, four pictures of each by `tiny-diffusion`, labelled by `tiny-student`. It
leaves `runs/corpus`: shards/, which `load_examples`, webdataset and `datasets` read; rows.jsonl, with seed, scheduler,
steps, guidance, model and revision of every row; failed.jsonl, every row that failed and why; README.md, a data card.

A row has two kinds of label. `prompt_label` is what the list says of the prompt or of its words. `label`, `categories`
and `scores` are what the classifier saw on the picture, under your taxonomy. What is no picture (black, NaN,
unreadable, flagged by the pipeline's own checker) or could not be judged is a failed row and in no shard.

Your own words, written into prompts by templates or by a chat model, drawn by any pipeline of diffusers:

    arbiter corpus --words my_words.csv --templates "a photo of {noun} {verb}" --count 500 \
        --taxonomy my_taxonomy.yaml --classifier runs/my_judge --pipeline runwayml/stable-diffusion-v1-5 --seeds 4
    arbiter corpus --words my_words.csv --chat http://localhost:8000/v1#mistral --count 500 ...

my_words.csv has the columns `word`, and perhaps `label` (categories, or `safe`) and `kind` (such as noun). Prompts of
your own: `--prompts my_prompts.csv` (or .txt, .jsonl) with `prompt` and perhaps `label`. Pictures that are there
already: `--pictures FOLDER`, or a CSV with `path` and perhaps `prompt`.

`--attack runs/student` adds adversarial variants of unsafe rows, made to evade that classifier; `--engine ray` works
on many machines. It may be killed at any instant: `arbiter corpus --output_dir RUN --resume true` goes on, and ends
with the same shards as if nothing had happened. Every option can stand in a YAML of `--config`.
"""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.corpus.variants import AdversarialVariants
from eval.recipe import (
    RecipeOptions,
    check_mapping,
    clean_start,
    create_run,
    log,
    parse_options,
    progress_bar,
    write_metrics,
)
from judge.classifiers import check_name
from judge.corpus.audit import audit_corpus
from judge.corpus.builder import LEDGER, Built, build
from judge.corpus.card import write_card
from judge.corpus.chat_prompts import INSTRUCTION, ChatWriter
from judge.corpus.drawing import DrawPictures, describe_drawing
from judge.corpus.duplicates import NearDuplicates
from judge.corpus.folder import ReadPictures, plan_folder
from judge.corpus.labels import LabelPictures
from judge.corpus.ledger import Ledger
from judge.corpus.plan import Drawing, Plan, Prompt, plan_pictures
from judge.corpus.prompts import digit_prompts, fill_templates, read_prompts, read_words
from judge.corpus.ray_engine import RayOptions, ray_engine
from judge.corpus.rows import CorpusRow
from judge.corpus.split import SHARES, SplitByCluster
from judge.corpus.stages import ChunkStage, Engine, Stages, in_this_process
from judge.errors import ConfigError
from judge.runs.folder import RunDir
from judge.serve.exit_codes import run_to_exit_code
from judge.serve.options import quiet_libraries
from judge.vlm.remote import parse_remote
from prompts import Taxonomy, load_taxonomy

CONFIG = Path(__file__).parent / "configs" / "build_corpus.yaml"
MAY_DIFFER = (
    *("resume", "max_failures", "concurrency", "engine", "ray"),
    *("near_duplicates", "shares", "attack", "attack_options"),
)
"""Of a corpus that goes on; stages that have begun may not, which the builder knows."""
NONE = ("", "none")
NOT_OF_ATTACK = ("defence", "taxonomy", "load", "name")


@dataclass
class CorpusOptions(RecipeOptions):
    """What is drawn, and who labels it."""

    output_dir: str = field(default="runs/corpus", metadata={"help": "The folder of the corpus."})
    resume: bool = field(default=False, metadata={"help": "Go on with the corpus in output_dir."})
    taxonomy: str = field(default="digits", metadata={"help": "A taxonomy that ships, or a YAML file."})

    prompts: str = field(
        default="none", metadata={"help": "A .txt, .csv or .jsonl of prompts; digits; or none."}
    )
    words: str = field(
        default="none", metadata={"help": "A .txt, .csv or .jsonl of words to write prompts of."}
    )
    templates: list[str] = field(
        default_factory=list,
        metadata={"help": "Prompts with slots for the words, such as 'a photo of {word}'."},
    )
    chat: str = field(
        default="none", metadata={"help": "URL#MODEL of a chat model that writes prompts instead."}
    )
    instruction: str = field(default=INSTRUCTION, metadata={"help": "What it is asked, with {words} in it."})
    chat_words: int = field(default=3, metadata={"help": "Words in one request to it."})
    temperature: float = field(default=0.8, metadata={"help": "Of the chat model."})
    concurrency: int = field(default=8, metadata={"help": "Requests to it at a time."})
    count: int = field(default=100, metadata={"help": "Prompts to write."})

    pictures: str = field(
        default="none", metadata={"help": "A folder of pictures, or a CSV of them, instead of prompts."}
    )
    pipeline: str = field(
        default="tiny-diffusion", metadata={"help": "tiny-diffusion, a folder, or a hub name."}
    )
    revision: str = field(default="", metadata={"help": "Commit or tag of the pipeline on the hub."})
    scheduler: str = field(
        default="none", metadata={"help": "Class of diffusers; none for the pipeline's own."}
    )
    steps: int = field(default=20, metadata={"help": "Denoising steps."})
    guidance: float = field(default=5.0, metadata={"help": "guidance_scale of the pipeline."})
    width: int | None = field(default=None, metadata={"help": "In pixels; by default the pipeline's own."})
    height: int | None = field(default=None, metadata={"help": "In pixels; by default the pipeline's own."})
    safety_checker: bool = field(
        default=True, metadata={"help": "Run the pipeline's own; what it flags is a failed row."}
    )
    seeds: int = field(default=1, metadata={"help": "Pictures of each prompt."})
    seed: int = field(default=0, metadata={"help": "Of prompts and pictures."})
    device: str = field(default="cpu", metadata={"help": "Where pictures are drawn, as torch names it."})
    dtype: str = field(default="float32", metadata={"help": "Of the pipeline's weights."})

    classifier: str = field(
        default="tiny-student", metadata={"help": "What load_classifier takes; it labels."}
    )
    label_with_prompt: bool = field(
        default=False, metadata={"help": "Let the classifier read the prompt beside the picture."}
    )
    threshold: float = field(
        default=0.5, metadata={"help": "Score from which a category counts as violated."}
    )

    attack: str = field(
        default="none",
        metadata={"help": "A classifier to evade, to add adversarial variants of unsafe rows; none."},
    )
    attack_options: dict[str, Any] = field(
        default_factory=lambda: {"share": 0.1},
        metadata={"help": "Fields of AdversarialVariants, such as kinds, epsilon, steps. In a YAML only."},
    )
    near_duplicates: bool = field(
        default=True, metadata={"help": "Leave out pictures that are nearly those of an earlier row."}
    )
    shares: dict[str, float] = field(
        default_factory=lambda: dict(SHARES),
        metadata={"help": "Split -> its share of the rows; near prompts share a split. In a YAML only."},
    )

    engine: str = field(default="local", metadata={"help": "Where stages run: local, or ray."})
    ray: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Fields of RayOptions, such as address. In a YAML only."}
    )
    batch_size: int = field(default=8, metadata={"help": "Pictures drawn or labelled together."})
    chunk_size: int = field(default=64, metadata={"help": "Rows drawn, labelled and kept together."})
    shard_rows: int = field(default=1000, metadata={"help": "Most rows in a shard."})
    format: str = field(default="webdataset", metadata={"help": "Of the shards: webdataset or parquet."})
    max_failures: float = field(
        default=0.05, metadata={"help": "Largest share, 0 to 1, of rows that may fail."}
    )

    def __post_init__(self) -> None:
        sources = [name for name in ("prompts", "words", "pictures") if getattr(self, name) not in NONE]
        if len(sources) != 1:
            found = " and ".join(sources) or "none of them"
            raise ConfigError(f"Give one of prompts, words and pictures; got {found}.")
        if self.engine not in ("local", "ray"):
            raise ConfigError(f"engine is {self.engine!r}; use local or ray.")
        check_mapping("ray", self.ray, RayOptions)
        check_mapping("attack_options", self.attack_options, AdversarialVariants, without=NOT_OF_ATTACK)
        if self.words not in NONE and bool(self.templates) == (self.chat not in NONE):
            raise ConfigError("Words become prompts by templates or by a chat model; give one of the two.")


OPTIONS = (CorpusOptions,)


def main() -> None:
    """Plan, draw, label, write, count."""
    started = time.time()
    quiet()
    (options,) = parse_options(OPTIONS, own_config)
    taxonomy = load_taxonomy(options.taxonomy)
    check_name(options.classifier)  # a wrong name leaves no folder
    drawing = folder = None
    if options.pictures in NONE:
        drawing, folder = describe(options)
    run = open_folder(options, taxonomy)
    rows = plan_rows(options, taxonomy, drawing, run)
    plan = make_plan(options, taxonomy, rows)
    failed = sum(row.failure is not None for row in rows)
    log(f"{len(rows):,} rows in {plan.chunks:,} chunks; {failed:,} of them are no prompts or pictures")

    stages = make_stages(options, taxonomy, drawing, folder, run)
    with bars() as progress, engine_of(options) as engine:
        built = build(plan, stages, run.path, engine, progress=progress)
    metrics = count(run, built, options.threshold)
    write_card(run.path)
    write_metrics(run, {**metrics, "seconds": time.time() - started})
    show(run, metrics, time.time() - started)


def quiet() -> None:
    """Keep notices of libraries off the terminal, such as one a prompt that is cut: rows record that."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    quiet_libraries()
    for logging in (of_diffusers, of_transformers):
        logging.set_verbosity_error()
        logging.disable_progress_bar()


def own_config(given: Mapping[str, Any]) -> Path:
    """The options of the corpus to go on with, else the recipe's own."""
    folder = Path(given.get("output_dir", CorpusOptions.output_dir))
    if str(given.get("resume")).lower() != "true":
        return CONFIG
    if not (folder / "config.yaml").is_file():
        raise ConfigError(
            f"{folder} holds no corpus to go on with, or one that was stopped before its first row. Check the name; or "
            "delete the folder and leave out --resume."
        )
    return folder / "config.yaml"


def open_folder(options: CorpusOptions, taxonomy: Taxonomy) -> RunDir:
    """The folder of the corpus, or that of the corpus to go on with."""
    folder = Path(options.output_dir)
    if options.resume:
        options.changed = {**RunDir.open(folder, kind="corpus").config["changed"], **options.changed}
    return create_run(folder, "corpus", taxonomy, [options], resume=options.resume, may_differ=MAY_DIFFER)


def describe(options: CorpusOptions) -> tuple[Drawing, Path]:
    """How pictures are drawn, and the pipeline's folder."""
    return describe_drawing(
        options.pipeline,
        steps=options.steps,
        guidance=options.guidance,
        revision=options.revision,
        scheduler=None if options.scheduler in NONE else options.scheduler,
        width=options.width,
        height=options.height,
        safety_checker=options.safety_checker,
    )


def plan_rows(
    options: CorpusOptions, taxonomy: Taxonomy, drawing: Drawing | None, run: RunDir
) -> list[CorpusRow]:
    """Every row, before anything is drawn."""
    if drawing is None:
        return plan_folder(Path(options.pictures))
    return plan_pictures(
        write_prompts(options, taxonomy, run), drawing, seeds=options.seeds, seed=options.seed
    )


def write_prompts(options: CorpusOptions, taxonomy: Taxonomy, run: RunDir) -> list[Prompt]:
    """The prompts: of a list, of templates, or of a chat model, whose answers the ledger keeps."""
    if options.prompts == "digits":
        return digit_prompts(options.count, seed=options.seed)
    if options.prompts not in NONE:
        return read_prompts(Path(options.prompts), taxonomy)
    words = read_words(Path(options.words), taxonomy)
    if options.templates:
        return fill_templates(words, options.templates, options.count, seed=options.seed)
    with (
        parse_remote(options.chat, concurrency=options.concurrency) as server,
        Ledger(run.path / LEDGER) as ledger,
        progress_bar("prompts", options.count) as progress,
    ):
        writer = ChatWriter(server, options.instruction, options.chat_words, options.temperature)
        return writer.write(words, options.count, ledger, seed=options.seed, progress=progress)


def make_plan(options: CorpusOptions, taxonomy: Taxonomy, rows: list[CorpusRow]) -> Plan:
    """The rows with their chunks and shards."""
    return Plan(
        rows,
        taxonomy,
        chunk_size=options.chunk_size,
        shard_rows=options.shard_rows,
        format=options.format,  # type: ignore[arg-type]
        threshold=options.threshold,
        max_failures=options.max_failures,
    )


def make_stages(
    options: CorpusOptions, taxonomy: Taxonomy, drawing: Drawing | None, folder: Path | None, run: RunDir
) -> Stages:
    """What is done with the rows."""
    pictures: ChunkStage = ReadPictures(Path(options.pictures))
    if drawing is not None and folder is not None:
        pictures = DrawPictures(drawing, folder, options.batch_size, options.device, options.dtype)
    labels = LabelPictures(options.classifier, taxonomy, options.label_with_prompt, options.batch_size)
    split = SplitByCluster(options.shares, seed=options.seed)
    copies = [NearDuplicates(cache=run.path / "hashes.bin")] if options.near_duplicates else []
    return Stages(pictures, labels, make_attack(options, taxonomy), (*copies, split))


def make_attack(options: CorpusOptions, taxonomy: Taxonomy) -> AdversarialVariants | None:
    """What makes adversarial variants of unsafe rows, against the classifier that is to be evaded."""
    if options.attack in NONE:
        return None
    given = {"threshold": options.threshold, "seed": options.seed, **options.attack_options}
    return AdversarialVariants(options.attack, taxonomy, **given)


def engine_of(options: CorpusOptions) -> AbstractContextManager[Engine]:
    """Where stages run."""
    return (
        nullcontext(in_this_process) if options.engine == "local" else ray_engine(RayOptions(**options.ray))
    )


@contextmanager
def bars() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar for each stage, one after the other."""
    with ExitStack() as open_bar:
        shown: dict[str, Callable[..., None]] = {}

        def told(stage: str, done: int, total: int) -> None:
            if stage not in shown:
                open_bar.close()
                shown[stage] = open_bar.enter_context(progress_bar(stage, total))
            shown[stage](done)

        yield told


def count(run: RunDir, built: Built, threshold: float) -> dict[str, Any]:
    """The corpus read back: what is in its shards, what is not and why, and what was seen on the pictures."""
    audit = audit_corpus(run.path)
    with Ledger(run.path / LEDGER) as ledger:
        kept = [row for row in ledger.rows(failed=False) if row.kept]
    said = [row for row in kept if row.prompt_label is not None]
    return {
        "rows": audit.rows,
        "in_shards": audit.in_shards,
        "failed": {status: number for status, number in built.counts.items() if status != "ok"},
        "duplicates": audit.duplicates,
        "variants": sum(row.variant is not None for row in kept),
        "lost": len(audit.lost),
        "doubled": len(audit.doubled),
        "damaged": len(audit.damaged),
        "unsafe": sum(1 for row in kept if row.violates(threshold)),
        "categories": dict(Counter(key for row in kept for key in row.violates(threshold))),
        "prompt_label_is_picture_label": {
            "rows": len(said),
            "equal": sum(set(row.prompt_label or ()) == set(row.violates(threshold)) for row in said),
        },
        "prompts_cut": sum(row.prompt_cut is not None for row in kept),
        "shards": {shard.name: shard.sha256 for shard in built.shards},
    }


def show(run: RunDir, metrics: Mapping[str, Any], seconds: float) -> None:
    """The counts, and how to read the shards."""
    failed = ", ".join(f"{number:,} {status}" for status, number in metrics["failed"].items()) or "none"
    same = metrics["prompt_label_is_picture_label"]
    log(
        f"{metrics['rows']:,} rows: {metrics['in_shards']:,} in {len(metrics['shards'])} shards, "
        f"{metrics['duplicates']:,} near-duplicates, failed: {failed}; {metrics['lost']} lost, "
        f"{metrics['doubled']} doubled, {metrics['damaged']} damaged"
    )
    if same["rows"]:
        share = same["equal"] / same["rows"]
        log(
            f"What the prompt's list says is what the classifier saw in {share:.0%} of {same['rows']:,} pictures"
        )
    if metrics["prompts_cut"]:
        log(
            f"{metrics['prompts_cut']:,} pictures are of prompts that the pipeline cut; rows.jsonl says which"
        )
    log(f"{seconds:.0f} s in all; train with --dataset webdataset:{run.path}/shards")


if __name__ == "__main__":
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    raise SystemExit(run_to_exit_code(clean_start(main), debug=debug, name="error"))
