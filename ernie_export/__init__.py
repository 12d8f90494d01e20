"""ernie-export: a published ERNIE-4.5 checkpoint becomes an engine that is known to be right."""

__version__ = "0.1.0"
