"""Which categories a classifier claims to find, and under which policy it is therefore asked."""

from collections.abc import Iterable

from judge.baselines.coverage import match_categories
from judge.protocol import Classifier, HasFixedCategories
from prompts.taxonomy import Taxonomy


def covered_keys(classifier: Classifier, taxonomy: Taxonomy) -> tuple[str, ...]:
    """Keys of the categories that a classifier claims to find, in the taxonomy's order.

    Fixed heads claim what their own categories cover; whatever reads definitions, or gives one score whatever the
    policy, claims everything.
    """
    if not isinstance(classifier, HasFixedCategories) or not classifier.scores_categories:
        return taxonomy.keys
    found = match_categories(classifier.default_taxonomy, taxonomy, classifier.match)
    return tuple(category.key for category, places in zip(taxonomy, found, strict=True) if places)


def select_keys(taxonomy: Taxonomy, keys: Iterable[str]) -> Taxonomy:
    """The categories with these keys, in the taxonomy's order.

    Raises:
        TaxonomyError: none of them is there.
    """
    chosen = set(keys)
    return taxonomy.select([category.name for category in taxonomy if category.key in chosen])
