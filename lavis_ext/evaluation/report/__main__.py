"""The command ``python -m lavis_ext.evaluation.report``; see ``gqa/report.py``."""

from lavis_ext.evaluation.gqa.report import main

if __name__ == "__main__":
    main()
