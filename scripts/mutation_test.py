"""Mutation tests: change the code a little, again and again, and see whether a test notices.

    python3 -m venv --system-site-packages .mutation     # mutmut brings the operators; no test needs it
    .mutation/bin/python -m pip install 'mutmut>=3.8' -e '.[dev]' -c constraints.txt
    .mutation/bin/python scripts/mutation_test.py                          # all areas
    .mutation/bin/python scripts/mutation_test.py prompts --sample 150     # one area, some mutants of each module

Mutants are mutmut's (https://github.com/boxed/mutmut, `mutmut.mutation`); its own runner is not used, as it leaves out
what stands outside of functions, and copies the tree. Here each mutant is served from memory to a forked process, in
which torch is imported already, and only the tests that reach its lines run, quickest first, without shrinking, until
one fails. Strings within `raise` are left out: they are message text. Tests that start processes of their own see the
code as it is, so they kill nothing here.

`tests/data/surviving_mutants.yaml` lists the mutants that may live, each with its reason. A survivor that is not listed
makes the exit status 1, as does an area of which less than 85 % are killed.
"""

import argparse
import contextlib
import gc
import importlib
import importlib.util
import itertools
import json
import os
import random
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
LISTED = ROOT / "tests" / "data" / "surviving_mutants.yaml"
LEAST = 0.85
"""Share of an area's mutants that its tests have to kill."""
OURS = ("prompts", "judge", "adversarial", "eval", "tests", "conftest", "fixtures", "__main__", "__mp_main__")
TESTED = ROOT / "tests" / "data" / "mutation_areas.yaml"
"""Area -> module -> names of the test files that have to kill its mutants."""


@dataclass(frozen=True)
class Mutant:
    """One change: where, the lines it changes as they were and as they are, and the whole module's source."""

    module: str
    line: int
    last: int
    was: str
    now: str
    source: str = field(repr=False)

    @property
    def key(self) -> tuple[str, str, str]:
        """How the list of survivors names it; line numbers would not last."""
        return self.module, self.was, self.now


def mutants_of(module: str) -> list[Mutant]:
    """All mutants of a module, each once, but for those of types, decorators and message text."""
    import libcst
    from libcst.metadata import ByteSpanPositionProvider, MetadataWrapper, PositionProvider
    from mutmut.mutation.mutators import mutation_operators

    found: dict[str, Mutant] = {}

    class Visitor(libcst.CSTVisitor):
        METADATA_DEPENDENCIES = (PositionProvider,)
        raising = 0
        statement: libcst.CSTNode | None = None

        def on_visit(self, node: libcst.CSTNode) -> bool:
            self.raising += isinstance(node, libcst.Raise)
            if isinstance(node, libcst.SimpleStatementLine):
                self.statement = node
            if isinstance(node, libcst.Annotation | libcst.Decorator | libcst.Import | libcst.ImportFrom):
                return False
            if not (self.raising and isinstance(node, libcst.BaseString)):
                for kind, operator in mutation_operators:
                    for other in operator(node) if isinstance(node, kind) else ():
                        self.note(node, other)
            return True

        def on_leave(self, node: libcst.CSTNode) -> None:
            self.raising -= isinstance(node, libcst.Raise)
            if node is self.statement:
                self.statement = None

        def note(self, node: libcst.CSTNode, other: libcst.CSTNode) -> None:
            changed = _spliced(code, spans[node], wrapper.module, node, other)
            # Lines within a statement are not always traced by themselves.
            place = self.get_metadata(PositionProvider, self.statement or node)
            was, now = _difference(code, changed)
            if was != now:
                found.setdefault(changed, Mutant(module, place.start.line, place.end.line, was, now, changed))

    code = (ROOT / module).read_text(encoding="utf-8")
    wrapper = MetadataWrapper(libcst.parse_module(code), unsafe_skip_copy=True)
    spans = wrapper.resolve(ByteSpanPositionProvider)
    wrapper.visit(Visitor())
    return list(found.values())


def _spliced(code: str, span: Any, tree: Any, node: Any, other: Any) -> str:
    """The module with one node's text exchanged; libcst's own `deep_replace` writes all of it anew each time."""
    if getattr(other, "lpar", ()) and getattr(node, "lpar", ()):
        other = other.with_changes(lpar=(), rpar=())  # brackets are no part of a node's span
    text, raw = tree.code_for_node(other), code.encode()
    return (raw[: span.start] + text.encode() + raw[span.start + span.length :]).decode()


def _difference(code: str, changed: str) -> tuple[str, str]:
    """The lines in which two versions differ, white space aside."""
    left, right = ([line.strip() for line in text.splitlines()] for text in (code, changed))
    start = sum(
        1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False))
    )
    left, right = left[start:], right[start:]
    while left and right and left[-1] == right[-1]:
        left.pop(), right.pop()
    return " ".join(left), " ".join(right)


class _Served(SourceFileLoader):
    """Loads one module from a string instead of its file."""

    source: str

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.source, self.path, "exec", dont_inherit=True)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return (
            importlib.util.spec_from_file_location(name, self.path, loader=self)
            if name == self.name
            else None
        )


class _Quick:
    """A pytest plugin: hypothesis finds failures, but does not shrink them; notes which test runs when."""

    def __init__(self, on_phase: Callable[[str], None] = lambda name: None) -> None:
        self.on_phase = on_phase
        self.seconds: dict[str, float] = {}

    def pytest_configure(self) -> None:
        from hypothesis import Phase, settings

        settings.register_profile(
            "mutation",
            settings(),
            phases=[Phase.explicit, Phase.generate],
            report_multiple_bugs=False,
            database=None,
        )
        settings.load_profile("mutation")

    def pytest_runtest_setup(self, item: Any) -> None:
        self.on_phase(f"{item.nodeid}|setup")

    def pytest_runtest_call(self, item: Any) -> None:
        self.on_phase(f"{item.nodeid}|call")

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration


def run_pytest(tests: Sequence[str], plugin: _Quick) -> int:
    """Pytest's exit status, in this process and in silence."""
    import pytest

    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    options = "-x -q -p no:cacheprovider -p no:randomly -p no:xdist -p no:cov --tb=no".split()
    options.append("--assert=plain")  # what is preloaded can no longer be rewritten
    return int(pytest.main([*options, f"--rootdir={ROOT}", *tests], plugins=[plugin]))


def forked(work: Callable[[], Any], seconds: float) -> Any:
    """What `work` returns in a forked process, as JSON keeps it; None if it dies or takes longer."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.setsid()
        os.close(read)
        with contextlib.suppress(BaseException), os.fdopen(write, "w", encoding="utf-8") as pipe:
            json.dump(work(), pipe)
        os._exit(0)
    os.close(write)
    until, data = time.monotonic() + seconds, b""
    while select.select([read], [], [], max(0.0, until - time.monotonic()))[0]:
        block = os.read(read, 1 << 16)
        if not block:
            break
        data += block
    else:
        data = b""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # and what it started
    os.close(read)
    os.waitpid(child, 0)
    return json.loads(data) if data else None


@dataclass
class Baseline:
    """What the tests do with the code as it is."""

    status: int
    seconds: dict[str, float]
    """By test."""
    reaching: dict[str, list[str]]
    """Line, as text -> tests, or "" for what runs at import."""
    imported: list[str]

    def tests(self, first: int, last: int) -> list[str]:
        """Tests that may notice a change of some lines, file by file, quickest first."""
        found = {
            name.rpartition("|")
            for line in range(first, last + 1)
            for name in self.reaching.get(str(line), ())
        }
        if any(not name for name, _, _ in found):
            chosen = set(self.seconds)
        else:  # what a fixture of a module made, any test of that file may use
            files = {name.split("::")[0] for name, _, phase in found if phase == "setup"}
            reached = {name for name, _, _ in found}
            chosen = {test for test in self.seconds if test in reached or test.split("::")[0] in files}
        cost: dict[str, float] = {}
        for test in chosen:
            cost[test.split("::")[0]] = cost.get(test.split("::")[0], 0.0) + self.seconds[test]
        return sorted(
            chosen, key=lambda test: (cost[test.split("::")[0]], test.split("::")[0], self.seconds[test])
        )


def baseline(module: str, tests: Sequence[str]) -> Baseline:
    """Run the tests on the code as it is, and note which lines of the module each reaches."""
    import coverage

    before = set(sys.modules)
    cover = coverage.Coverage(data_file=None, include=[str(ROOT / module)], config_file=False)
    cover.start()
    plugin = _Quick(cover.switch_context)
    status = run_pytest(tests, plugin)
    cover.stop()
    reaching = cover.get_data().contexts_by_lineno(str(ROOT / module))
    imported = [
        name
        for name in sys.modules
        if name not in before and name.partition(".")[0].partition("_")[0] not in OURS
    ]
    return Baseline(status, plugin.seconds, {str(line): names for line, names in reaching.items()}, imported)


def preload(names: Sequence[str]) -> None:
    """Import what the tests will import, so that no mutant has to."""
    for name in names:
        if name.isidentifier() or all(part.isidentifier() for part in name.split(".")):
            with contextlib.suppress(BaseException):
                importlib.import_module(name)
    gc.collect()
    gc.freeze()  # what is shared with the forked processes should stay so


def outcome(mutant: Mutant, base: Baseline) -> str:
    """`killed`, `survived`, or `timeout`, which counts as killed."""
    tests = base.tests(mutant.line, mutant.last)
    if not tests:
        return "survived"
    name = mutant.module.removesuffix(".py").replace("/", ".")

    def work() -> int:
        loader = _Served(name, str(ROOT / mutant.module))
        loader.source = mutant.source
        sys.meta_path.insert(0, loader)  # type: ignore[arg-type]  # it finds one module, itself
        return run_pytest(tests, _Quick())

    status = forked(work, 20 + 5 * sum(base.seconds[test] for test in tests))
    return "timeout" if status is None else "survived" if status == 0 else "killed"


def judged(module: str, tests: Sequence[str], sample: int, seed: int) -> Iterator[tuple[Mutant, str]]:
    """The mutants of a module, or a fixed share of them, with what became of each."""
    found = forked(lambda: asdict(baseline(module, tests)), 1200)
    if found is None or found["status"]:
        sys.exit(
            f"The tests of {module} do not pass on the code as it is; repair them first: {' '.join(tests)}"
        )
    base = Baseline(**found)
    preload(base.imported)
    source = (ROOT / module).read_text(encoding="utf-8")
    if outcome(Mutant(module, 1, source.count("\n") + 1, "", "", source), base) != "survived":
        sys.exit(
            f"The tests of {module} fail on unchanged code that is served from memory; every mutant would die."
        )
    mutants = mutants_of(module)
    if len(mutants) > sample > 0:
        mutants = sorted(random.Random(f"{seed}/{module}").sample(mutants, sample), key=lambda one: one.line)
    for mutant in mutants:
        yield mutant, outcome(mutant, base)


def main() -> int:
    """Test the areas, print a table and the survivors that nobody has explained."""
    areas: dict[str, dict[str, str]] = yaml.safe_load(TESTED.read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "areas", nargs="*", metavar="AREA", help=f"of {', '.join(areas)}, or one of their modules"
    )
    parser.add_argument(
        "--sample", type=int, default=0, help="mutants of each module, drawn by seed; 0 takes all"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    os.environ["PYTHONPATH"], os.environ["OMP_NUM_THREADS"] = str(ROOT), "1"
    if wrong := [name for name in options.areas if name not in areas and not Path(name).is_file()]:
        parser.error(f"no area or module {', '.join(wrong)}; there are {', '.join(areas)}")
    entries = yaml.safe_load(LISTED.read_text(encoding="utf-8")) or {} if LISTED.exists() else {}
    listed = {(module, one["was"], one["now"]) for module, ones in entries.items() for one in ones}
    failed, table = (
        False,
        ["| module | mutants | killed | explained | unexplained |", "|---|---|---|---|---|"],
    )
    for area, modules in areas.items():
        killed = total = 0
        for module, files in modules.items():
            if options.areas and not {area, module} & set(options.areas):
                continue
            tests = [f"tests/test_{name}.py" for name in files.split()]
            ends, alive, new = 0, 0, 0
            for mutant, end in judged(module, tests, options.sample, options.seed):
                ends, alive = ends + 1, alive + (end == "survived")
                if end == "survived" and mutant.key not in listed:
                    new += 1
                    print(f"{module}:{mutant.line}\n  - {mutant.was}\n  + {mutant.now}", flush=True)
            table.append(f"| {module} | {ends} | {ends - alive} | {alive - new} | {new} |")
            print(table[-1], flush=True)
            killed, total, failed = killed + ends - alive, total + ends, failed or bool(new)
        if total:
            table.append(f"| **{area}** | {total} | {killed} ({killed / total:.1%}) | | |")
            failed = failed or killed < LEAST * total
    print("\n".join(["", *table]))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
