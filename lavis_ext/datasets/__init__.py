"""Data: records and pictures in, batches out. Each folder is a data set's own."""

from lavis_ext.datasets.gqa import builder as builder
