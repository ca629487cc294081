"""The classifier of a server, loaded by name."""

from judge.classifiers import load_classifier
from judge.errors import ConfigError
from judge.protocol import HasDefaultTaxonomy
from judge.publish.hub import run_folder
from judge.runs.references import fingerprint

from .service import LoadedJudge
from .settings import ServerSettings


def load_judge(settings: ServerSettings) -> LoadedJudge:
    """Load the classifier that `settings` name; takes seconds to minutes.

    Raises:
        ArbiterError: none is named, it cannot be loaded, or it has no taxonomy of its own and none was given.
    """
    if settings.run is None:
        raise ConfigError("No classifier was named; give --judge RUN.")
    classifier = load_classifier(
        settings.run,
        device=settings.device,
        batch_size=settings.batch_size,
        stage_judge=settings.stage_judge,
        prompt_mode=settings.prompt_mode,
    )
    own = classifier.default_taxonomy if isinstance(classifier, HasDefaultTaxonomy) else None
    taxonomy = settings.taxonomy or own
    if taxonomy is None:
        raise ConfigError("This judge has no taxonomy of its own; give --taxonomy NAME or a YAML file.")
    path = run_folder(settings.run)
    return LoadedJudge(classifier, taxonomy, classifier.name, fingerprint(path) if path.exists() else None)
