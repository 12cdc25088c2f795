"""DIFNet's authors' names of its encoder's parameters (mrwu-mac/DIFNet).

They have two modes. ``difnet`` creates a second norm inside each attention, ``difnet_lrp`` doesn't;
neither encoder uses it, because ``mhatt`` doesn't know the stream. So both modes' files have the
same encoder, and differ only in unused norms.
"""

from lavis_ext.checkpoints.foreign import ForeignNames, NameTable

AUTHORS = NameTable(
    "DIFNet's authors",
    (("encoder.layers.#.*", "layers.#.*"),),
    unused=(
        "encoder.layers.#.mhatt.layer_norm1.*",
        "encoder.layers.#.lnorm1.*",  # above Lf, where there is one stream
        "encoder.layers.#.pwff.layer_norm1.*",
        "decoder.*",
        "embed_image.*",
        "embed_pixel.*",
    ),
)
DIFNET_NAMES = ForeignNames((AUTHORS,))
