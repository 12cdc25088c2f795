"""The command ``python -m lavis_ext.evaluation.compare``; see ``gqa/compare.py``."""

from lavis_ext.evaluation.gqa.compare import main

if __name__ == "__main__":
    main()
