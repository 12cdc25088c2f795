"""The fusion network: the only part that is trained, and all that a fusion checkpoint holds."""

import torch
from torch import Tensor, nn

from lavis_ext.common.errors import UserError
from lavis_ext.config.schema import check

# Imported to be registered.
from lavis_ext.fusion import baselines, difnet  # noqa: F401
from lavis_ext.fusion.base import FusionConfig, FusionEncoder, Stream
from lavis_ext.fusion.stream_adapter import StreamAdapter
from lavis_ext.registry import registry


class FusionNetwork(nn.Module):
    """Adapter, fusion encoder, gate and output projection; in short, grid tokens with more in them.

    With the gate, ``fused = grid + tanh(gate) * encoder(...)``, a value per channel that starts at
    0, so that at step 0 the frozen text encoder sees exactly BLIP (after Flamingo, Alayrac et al.,
    2022, section 3.1.2). Without it the encoder's output is passed on, as in DIFNet's paper.

    ``config`` is an instance of the named fusion's ``Config``. ``grid_size`` is the grid stream's
    (rows, columns). ``heads`` is empty: objectives that train a head put it there, so that it is
    saved with the fusion. ``where`` is the config's own key, named in errors. Raises UserError for
    an unknown fusion and for options that do not fit.
    """

    def __init__(
        self,
        config: FusionConfig,
        *,
        grid_width: int,
        grid_size: tuple[int, int],
        segmentation_width: int = 256,
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
        d_model = grid_width if config.d_model is None else config.d_model
        self.config = config
        self.adapter = StreamAdapter(
            encoder_class.streams,
            d_model=d_model,
            grid_width=grid_width,
            grid_size=grid_size,
            segmentation_width=segmentation_width,
        )
        self.encoder = encoder_class(config, d_model)
        self.output_projection = (
            nn.Identity() if d_model == grid_width else nn.Linear(d_model, grid_width)
        )
        self.gate = nn.Parameter(torch.zeros(grid_width)) if config.gate else None
        self.heads = nn.ModuleDict()

    @property
    def streams(self) -> tuple[Stream, ...]:
        """The streams that are read; an encoder whose stream is not among them need not run."""
        return self.encoder.streams

    def forward(
        self,
        grid_tokens: Tensor,
        segmentation_tokens: Tensor | None = None,
        segmentation_grid: tuple[int, int] | None = None,
        grid: tuple[int, int] | None = None,
    ) -> Tensor:
        """Fused tokens [B, 1+N, Dg] in place of the grid tokens.

        ``grid_tokens`` [B, 1+N, Dg] have their class token first; ``segmentation_tokens``
        [B, h*w, Ds] lie row by row on ``segmentation_grid`` = (h, w), and may be None if
        ``streams`` does not name them. ``grid`` is the grid tokens' (rows, columns), by default
        those that the network was built for.
        """
        streams = self.adapter(grid_tokens, segmentation_tokens, segmentation_grid, grid)
        encoded = self.output_projection(self.encoder(*streams))
        if self.gate is None:
            return encoded
        return grid_tokens + torch.tanh(self.gate) * encoded
