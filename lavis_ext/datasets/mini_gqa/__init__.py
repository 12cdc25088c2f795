"""Mini-GQA: a small synthetic data set in GQA's formats, drawn on first use.

Scenes of colored, textured shapes in front of five kinds of places, with questions of all of
GQA's structural and semantic types, scene graphs, masks, and a balanced subset that can't be
answered from the questions alone.
"""

from lavis_ext.datasets.mini_gqa.writer import MiniGqaSummary, make_mini_gqa

__all__ = ["MiniGqaSummary", "make_mini_gqa"]
