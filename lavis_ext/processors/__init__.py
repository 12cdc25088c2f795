"""Processors of pictures and texts."""

from lavis_ext.processors import image as image
from lavis_ext.processors import text as text
