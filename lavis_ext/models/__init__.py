"""Registered models, one folder per family."""

from lavis_ext.models.pnp_vqa import model as model
