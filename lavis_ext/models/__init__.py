"""The registered models, a folder each."""

from lavis_ext.models.pnp_vqa import model as model
