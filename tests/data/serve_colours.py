"""`arbiter serve` with a classifier that needs no torch: `python serve_colours.py GATE serve --port 0 ...`.

Nothing is scored until there is a file GATE.
"""

import sys
from pathlib import Path

from fixtures_server import ColourJudge, wait_until

import judge.server.loading
from judge.serve.cli import main
from judge.server.service import LoadedJudge


class Gated(ColourJudge):
    """Waits for the test."""

    def score(self, images, prompts, taxonomy):
        wait_until(Path(sys.argv[1]).exists)
        return super().score(images, prompts, taxonomy)


def load(settings):
    if settings.run == "tiny-clip":
        raise judge.server.loading.ConfigError("this one cannot be loaded")
    classifier = Gated(settings.taxonomy)
    return LoadedJudge(classifier, classifier.default_taxonomy, classifier.name)


judge.server.loading.load_judge = load
if __name__ == "__main__":
    sys.exit(main(sys.argv[2:]))
