"""The version of this library, defined only here."""

__version__ = "0.1.0"
