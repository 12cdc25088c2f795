"""The command ``python -m lavis_ext.serve``; see ``command.py``."""

from lavis_ext.serve.command import main

if __name__ == "__main__":
    main()
