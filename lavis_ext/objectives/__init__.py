"""What the fusion is trained for."""

from lavis_ext.objectives import answer as answer
from lavis_ext.objectives import matching as matching
