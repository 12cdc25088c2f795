"""BLIP's parameter names of its authors and LAVIS; here they are transformers'.

Their image transformer is timm's; their text transformer is BERT, with the names of transformers.
(salesforce/BLIP, models/blip_retrieval.py and blip.py; LAVIS, models/blip_models.)
"""

from lavis_ext.checkpoints.foreign import ForeignNames, NameTable

PROGRAM = "BLIP's authors and LAVIS"
VISION_RULES = (
    ("visual_encoder.cls_token", "vision_model.embeddings.class_embedding"),
    ("visual_encoder.pos_embed", "vision_model.embeddings.position_embedding"),
    ("visual_encoder.patch_embed.proj.*", "vision_model.embeddings.patch_embedding.*"),
    ("visual_encoder.blocks.#.attn.qkv.*", "vision_model.encoder.layers.#.self_attn.qkv.*"),
    ("visual_encoder.blocks.#.attn.proj.*", "vision_model.encoder.layers.#.self_attn.projection.*"),
    ("visual_encoder.blocks.#.norm#.*", "vision_model.encoder.layers.#.layer_norm#.*"),
    ("visual_encoder.blocks.#.mlp.*", "vision_model.encoder.layers.#.mlp.*"),
    ("visual_encoder.norm.*", "vision_model.post_layernorm.*"),
)
POSITIONS = {"vision_model.embeddings.position_embedding": 1}
"""The class token comes before the patches."""
MOMENTUM = (
    "visual_encoder_m.*",
    "text_encoder_m.*",
    "vision_proj_m.*",
    "text_proj_m.*",
    "image_queue",
    "text_queue",
    "idx_queue",
    "ptr_queue",
    "queue_ptr",
    "temp",
)
"""State of contrastive training: the momentum encoder, its queues and the temperature."""
POSITION_IDS = "*.position_ids"
"""A buffer with 0, 1, 2, ... in old checkpoints."""
MATCHING = NameTable(
    PROGRAM,
    VISION_RULES,
    unused=(
        *MOMENTUM,
        POSITION_IDS,
        "text_decoder.*",  # pretraining also trains a captioner
        "image_captioning_model.*",  # LAVIS's PNP-VQA has three models in one
        "question_answering_model.*",
    ),
)
MATCHING_NAMES = ForeignNames((MATCHING,), POSITIONS)
CAPTIONING = NameTable(
    PROGRAM,
    VISION_RULES,
    unused=(POSITION_IDS, "image_question_matching_model.*", "question_answering_model.*"),
)
# Question answering also has both text transformers, but its decoder reads questions.
CAPTIONING_OF_PRETRAINING = NameTable(
    PROGRAM,
    VISION_RULES,
    unused=(
        *MOMENTUM,
        POSITION_IDS,
        "text_encoder.*",
        "itm_head.*",
        "vision_proj.*",
        "text_proj.*",
    ),
    needs=("*itm_head.weight",),
)
CAPTIONING_NAMES = ForeignNames((CAPTIONING, CAPTIONING_OF_PRETRAINING), POSITIONS)
ANSWERING = NameTable(PROGRAM, VISION_RULES, unused=(*MOMENTUM, POSITION_IDS))
ANSWERING_NAMES = ForeignNames((ANSWERING,), POSITIONS)
