"""``python -m lavis_ext`` lists what is registered."""

from lavis_ext import __version__, registered
from lavis_ext.common.errors import command


@command
def main() -> None:
    """Print the registry, a kind of class a line."""
    print(f"lavis_ext {__version__}")
    for kind, names in registered().items():
        print(f"{kind + ':':<14} {', '.join(names) or '-'}")


if __name__ == "__main__":
    main()
