"""Parsing the project's own sources."""

import ast
import gc


def parsed(source: str) -> ast.Module:
    """The syntax tree of ``source``, without garbage collection meanwhile.

    Up to CPython 3.11.7, a finalizer that parses during ``ast.parse``, as printing a traceback
    does, makes it raise a SystemError (https://github.com/python/cpython/issues/106905).
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        return ast.parse(source)
    finally:
        if enabled:
            gc.enable()
