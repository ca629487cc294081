"""`arbiter serve` with a classifier that needs no torch: `python serve_colours.py SECONDS serve --port 0 ...`."""

import sys
import time

from fixtures_server import ColourJudge

import judge.server.loading
from judge.serve.cli import main
from judge.server.service import LoadedJudge


class Slow(ColourJudge):
    """Takes its time for every batch."""

    def score(self, images, prompts, taxonomy):
        time.sleep(float(sys.argv[1]))
        return super().score(images, prompts, taxonomy)


def load(settings):
    if settings.run == "tiny-clip":
        raise judge.server.loading.ConfigError("this one cannot be loaded")
    classifier = Slow(settings.taxonomy)
    return LoadedJudge(classifier, classifier.default_taxonomy, classifier.name)


judge.server.loading.load_judge = load
if __name__ == "__main__":
    sys.exit(main(sys.argv[2:]))
