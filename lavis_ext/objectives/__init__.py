"""Training objectives of the fusion."""

from lavis_ext.objectives import answer as answer
from lavis_ext.objectives import caption as caption
from lavis_ext.objectives import matching as matching
from lavis_ext.objectives import vqa as vqa
from lavis_ext.objectives import words as words
