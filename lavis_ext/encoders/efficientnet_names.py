"""Parameter names of EfficientNets in lukemelas/EfficientNet-PyTorch and its lite variants.

They number the blocks of the whole network, where timm numbers stages and the blocks of each; and
name a block's batch norms by the convolution that they follow in a block with expansion (``_bn0``),
also in the first stage, which has none (efficientnet_pytorch/model.py: MBConvBlock).
"""

from typing import Any

from lavis_ext.checkpoints.foreign import ForeignNames, NameTable

PROGRAM = "EfficientNet-PyTorch"
STEM_AND_HEAD = (
    ("_conv_stem.*", "conv_stem.*"),
    ("_bn0.*", "bn1.*"),
    ("_conv_head.*", "conv_head.*"),
    ("_bn1.*", "bn2.*"),
    ("_fc.*", "classifier.*"),
)
SEPARABLE = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
"""A block without expansion."""
INVERTED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
SQUEEZE = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}


def efficientnet_names(network: Any) -> ForeignNames:
    """Names for an EfficientNet of timm, whose ``blocks`` are stages of blocks."""
    rules = list(STEM_AND_HEAD)
    number = 0
    for stage, blocks in enumerate(network.blocks):
        for place, block in enumerate(blocks):
            layers = INVERTED if hasattr(block, "conv_pwl") else SEPARABLE
            rules += [
                (f"_blocks.{number}.{theirs}.*", f"blocks.{stage}.{place}.{ours}.*")
                for theirs, ours in {**layers, **SQUEEZE}.items()
            ]
            number += 1
    return ForeignNames((NameTable(PROGRAM, tuple(rules), needs=("*_blocks.0._bn1.weight",)),))
