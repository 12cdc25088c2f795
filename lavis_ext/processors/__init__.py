"""From a record to tensors and text."""

from lavis_ext.processors import image as image
from lavis_ext.processors import text as text
