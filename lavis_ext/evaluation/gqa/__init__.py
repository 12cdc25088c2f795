"""GQA's metrics as its authors define them (Hudson and Manning, CVPR 2019, and their script).

Each module is a family of metrics: pure functions from questions, predictions and other inputs to
a value per question. ``outcomes.judge`` combines them, ``scores.score`` averages them, with
intervals. Shares are in [0, 1]; only the command's table has percentages.

    python -m lavis_ext.evaluation.gqa --questions F --predictions F [--choices F] [--consistency]
"""
