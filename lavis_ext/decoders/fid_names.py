"""Parameter names of LAVIS and FiD's authors for a T5 that reads several passages.

Their encoder is wrapped, and its layers appear a second time under their plain names (LAVIS,
models/pnp_vqa_models/pnp_unifiedqav2_fid.py; facebookresearch/FiD, src/model.py).
"""

from lavis_ext.checkpoints.foreign import ForeignNames, NameTable

READER_NAMES = ForeignNames(
    (
        NameTable(
            "FiD and LAVIS",
            (("encoder.encoder.*", "encoder.*"),),
            unused=(
                # Old T5 checkpoints have an unused bias.
                "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
                "image_question_matching_model.*",  # LAVIS's PNP-VQA has three models in one
                "image_captioning_model.*",
            ),
        ),
    )
)
