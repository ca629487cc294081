"""Errors of the policy language. Every message says what was given, what is allowed and what to do.

ArbiterError
├── TaxonomyError   a list of categories that cannot be used
├── TemplateError   a chat that cannot be rendered or whose answer cannot be closed
└── ExampleError    a data row that cannot be used
"""


class ArbiterError(Exception):
    """Root of every error Arbiter raises on purpose; the command line prints it without a traceback."""


class TaxonomyError(ArbiterError, ValueError):
    """A taxonomy file, selection or extension that names something missing, double or empty."""


class TemplateError(ArbiterError, ValueError):
    """A template that does not exist, or a request it cannot answer."""


class ExampleError(ArbiterError, ValueError):
    """A row of a data set without a usable image, label or category."""
