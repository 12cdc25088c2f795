"""Training of the encoders, captioner and reader of the model type ``mini`` on mini-GQA.

Only the recipes in ``projects/mini`` import it, under ``imports``, so that other runs start faster.
"""

from lavis_ext.pretraining import blip as blip
from lavis_ext.pretraining import builder as builder
from lavis_ext.pretraining import efficient_sam as efficient_sam
from lavis_ext.pretraining import reader as reader
from lavis_ext.pretraining import task as task
