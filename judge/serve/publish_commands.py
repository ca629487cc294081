"""`arbiter card`, `push` and `merge`: a trained run as others get it."""

import json
from pathlib import Path
from typing import Annotated

import typer

from prompts.printable import printable

from .options import JsonOption, quiet_libraries
from .terminal import Terminal

PUSH_EPILOG = """\
What is pushed: weights, taxonomy, template, thresholds.yaml, what is known of the lessons, the numbers and the card; of
a cascade its stages too. Rows, prompts, pictures, reports, checkpoints and options with paths stay here. --dry-run
shows both lists and contacts nobody. Log in first: hf auth login, or HF_TOKEN.

\b
Examples:
  arbiter push runs/demo user/my-judge --dry-run
  arbiter push runs/demo user/my-judge --private --license mit
  arbiter push runs/demo folder:/tmp/my-judge
  arbiter judge photo.jpg --judge hf:user/my-judge
"""
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/demo.")]
BaseOption = Annotated[
    str | None,
    typer.Option(metavar="ID", help="Hub id of the base or encoder, if the run was trained on a folder."),
]
LicenseOption = Annotated[
    str | None,
    typer.Option("--license", metavar="ID", help="Licence of the weights: mit, apache-2.0, other, ..."),
]
DataLicenseOption = Annotated[
    str | None, typer.Option(metavar="TEXT", help="Licence of the images and labels, in words.")
]
DataOption = Annotated[
    str | None, typer.Option(metavar="TEXT", help="Where the images and labels come from, in words.")
]


def write_run_card(
    run: RunArgument,
    base: BaseOption = None,
    license_id: LicenseOption = None,
    data_license: DataLicenseOption = None,
    data: DataOption = None,
) -> None:
    """Write the model card of a run, README.md; what is said here is kept for push and merge."""
    from judge.errors import ConfigError
    from judge.publish.card import KINDS, write_card
    from judge.publish.details import Details
    from judge.runs.folder import RunDir

    folder = RunDir.open(run)
    details = Details.of(run).updated(base=base, license=license_id, data_license=data_license, data=data)
    written = write_card(folder, details=details)
    if written is None:
        raise ConfigError(
            f"{run} is a run of kind {folder.kind!r}, for which there is no card; there is one for {', '.join(KINDS)}."
        )
    details.save(run)
    print(f"Wrote {printable(written)}")


def push_run(
    run: RunArgument,
    repository: Annotated[
        str, typer.Argument(metavar="REPOSITORY", help="user/name on the hub, or folder:PATH.")
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be pushed; contact nobody.")
    ] = False,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    update: Annotated[
        bool, typer.Option("--update", help="Push into a repository that exists already.")
    ] = False,
    revision: Annotated[str | None, typer.Option(metavar="BRANCH", help="Push to this branch.")] = None,
    examples: Annotated[
        bool, typer.Option("--examples", help="Publish the example pictures of your data too.")
    ] = False,
    base: BaseOption = None,
    license_id: LicenseOption = None,
    data_license: DataLicenseOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Publish a run on the Hugging Face hub, with its card, or lay it out in a folder."""
    quiet_libraries()
    from judge.publish.details import Details
    from judge.publish.push import push
    from judge.runs.folder import RunDir
    from judge.standins.shipped import run_path

    folder = RunDir.open(run_path(str(run))).path
    details = Details.of(folder).updated(base=base, license=license_id, data_license=data_license, data=data)
    pushed = push(
        folder,
        repository,
        details=details,
        dry_run=dry_run,
        private=private,
        update=update,
        revision=revision,
        examples=examples,
    )
    if as_json:
        about = {"repository": repository, "dry_run": dry_run, "url": pushed.url, "commit": pushed.commit}
        files, left = [list(one) for one in pushed.files], [list(one) for one in pushed.left_out]
        print(json.dumps({**about, "files": files, "left_out": left}))
        return
    terminal = Terminal()
    terminal.table(("file", "bytes"), [(name, size) for name, size in pushed.files])
    if pushed.left_out:
        print("\nStays here:")
        terminal.table(("", "why"), list(pushed.left_out), header=False)
    total = sum(size for _, size in pushed.files) / 1e6
    done = "Would push" if dry_run else "Pushed"
    print(f"\n{done} {len(pushed.files)} files, {total:.1f} MB, to {printable(repository)}")
    if pushed.commit:
        print(
            f"{printable(pushed.url)}\nLoad it: arbiter judge photo.jpg --judge hf:{repository}@{pushed.commit}"
        )


def merge(
    run: RunArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; must not exist.")],
    base: BaseOption = None,
    license_id: LicenseOption = None,
    data_license: DataLicenseOption = None,
    data: DataOption = None,
) -> None:
    """Merge a judge's adapter into its base, with a card and the commands to serve it."""
    quiet_libraries()
    from judge.publish.details import Details
    from judge.publish.merge import merge_run

    details = Details.of(run).updated(base=base, license=license_id, data_license=data_license, data=data)
    merge_run(run, out, details=details)
    print(f"Wrote {printable(out)}; {printable(out / 'serve.md')} says how to serve it")
