"""The fusion network: the only part that is trained beside the objectives' heads."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lavis_ext.common.errors import UserError
from lavis_ext.config.schema import check
from lavis_ext.encoders.base import Tokens

# Imported to be registered.
from lavis_ext.fusion import baselines, difnet  # noqa: F401
from lavis_ext.fusion.base import FusionConfig, FusionEncoder
from lavis_ext.fusion.stream_adapter import StreamAdapter, StreamLayout
from lavis_ext.registry import registry


def streams_read(config: FusionConfig, names: list[str], where: str = "model.fusion") -> list[str]:
    """Which of the streams ``names`` the fusion of ``config`` reads, in their order.

    Raises UserError for a fusion that needs more streams than there are.
    """
    reads = registry.get_fusion_class(config.name).reads
    if reads != "first" and len(names) < 2:
        raise UserError(
            f"{where}.name: the fusion '{config.name}' fuses streams, and model.streams has "
            f"{names[0]} alone; add another, or choose first_only."
        )
    return {"all": names, "first": names[:1], "others": names[1:]}[reads]


class FusionNetwork(nn.Module):
    """Adapter, fusion encoder, gate and output projection: the first stream with more in it.

    With the gate, ``fused = first + tanh(gate) * encoder(...)``, a value per channel that starts at
    0, so that at step 0 whatever reads the fused tokens sees exactly the first stream (after
    Flamingo, Alayrac et al., 2022, section 3.1.2). Without it the encoder's output is passed on, as
    in DIFNet's paper.

    ``config`` is an instance of the named fusion's ``Config``. ``layouts`` are the streams' in
    their order; the first is the one whose layout and width the fused tokens have. ``where`` is
    the config's own key, named in errors. Raises UserError for an unknown fusion and for options
    that do not fit.
    """

    def __init__(
        self,
        config: FusionConfig,
        layouts: Mapping[str, StreamLayout],
        where: str = "model.fusion",
    ) -> None:
        super().__init__()
        check(config, where)
        encoder_class: type[FusionEncoder] = registry.get_fusion_class(config.name)
        if not isinstance(config, encoder_class.Config):
            raise TypeError(
                f"{config.name} takes a {encoder_class.Config.__name__}, not {config!r}"
            )
        if config.gate and not encoder_class.gated:
            raise UserError(
                f"{where}.gate is true, and the fusion '{config.name}' has none: set it to false."
            )
        names = list(layouts)
        self.first = names[0]
        self.reads = streams_read(config, names, where)
        width = layouts[self.first].width
        d_model = width if config.d_model is None else config.d_model
        self.config = config
        self.adapter = StreamAdapter(layouts, self.reads, d_model)
        self.encoder = encoder_class(config, d_model)
        self.output_projection = nn.Identity() if d_model == width else nn.Linear(d_model, width)
        self.gate = nn.Parameter(torch.zeros(width)) if config.gate else None

    def forward(self, streams: Mapping[str, Tokens]) -> Tensor:
        """Fused tokens [B, P+N, D] in place of the first stream's.

        ``streams`` are encoders' tokens by name; those that aren't in ``reads`` may be left out,
        but for the first, whose layout is kept.
        """
        encoded = self.output_projection(self.encoder(*self.adapter(streams)))
        if self.gate is None:
            return encoded
        return streams[self.first].values + torch.tanh(self.gate) * encoded
