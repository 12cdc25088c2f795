"""The command ``python -m lavis_ext.evaluation.leaderboard``; see ``gqa/leaderboard.py``."""

from lavis_ext.evaluation.gqa.leaderboard import main

if __name__ == "__main__":
    main()
