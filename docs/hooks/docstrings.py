"""An extension of griffe: the docstrings' own marks, as Markdown has them."""

import re
from typing import Any

from griffe import Extension, Object

ROLE = re.compile(r":(?:class|func|meth|mod|attr|data):`~?\.?([^`]+)`")


class Docstrings(Extension):
    """Show Sphinx's roles, such as ``:class:`Task```, as code."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Called once for each object that has been read from source."""
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(r"`\1`", obj.docstring.value)
