"""Training the encoders, captioner and reader of the model type ``mini`` on mini-GQA.

The recipes in ``projects/mini`` name this package under ``imports``, so that nobody else waits for
what it imports.
"""

from lavis_ext.pretraining import blip as blip
from lavis_ext.pretraining import builder as builder
from lavis_ext.pretraining import efficient_sam as efficient_sam
from lavis_ext.pretraining import reader as reader
from lavis_ext.pretraining import task as task
