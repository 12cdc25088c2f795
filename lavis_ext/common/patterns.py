"""Shell patterns of names of layers, modules and parameters, as options give them."""

from collections.abc import Collection
from fnmatch import fnmatchcase

from lavis_ext.common.errors import UserError, nearest_of


def matching(
    pattern: str, names: Collection[str], what: str, key: str, *, inside: bool = False
) -> list[str]:
    """The names that match ``pattern`` or, with ``inside``, are within a matching module.

    Raises UserError without a match, naming the option ``key`` and ``what`` the names are.
    """
    patterns = (pattern, f"{pattern}.*") if inside else (pattern,)
    found = [name for name in names if any(fnmatchcase(name, each) for each in patterns)]
    if not found:
        near = ", ".join(nearest_of(pattern, names)) or "the model has none"
        raise UserError(f"{key}: no {what} matches '{pattern}'. Nearest: {near}.")
    return found
