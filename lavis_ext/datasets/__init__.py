"""Data: questions, images, batches, and the builder that makes data sets of them."""

from lavis_ext.datasets import builder as builder
