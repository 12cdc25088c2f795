"""GQA's metrics as its authors define them (Hudson and Manning, CVPR 2019, and their script).

Each module is a family of metrics: pure functions from questions, predictions and what else they
need to a value for each question. ``outcomes.judge`` puts them together, ``scores.score`` averages
them, with intervals. Shares are of 1; only the command's table has percentages.

    python -m lavis_ext.evaluation.gqa --questions F --predictions F [--choices F] [--consistency]
"""
