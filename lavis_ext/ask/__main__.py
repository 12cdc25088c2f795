"""The command ``python -m lavis_ext.ask``; see ``command.py``."""

from lavis_ext.ask.command import main

if __name__ == "__main__":
    main()
