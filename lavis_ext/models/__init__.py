"""The registered models."""

from lavis_ext.models import pnp_vqa_fusion as pnp_vqa_fusion
