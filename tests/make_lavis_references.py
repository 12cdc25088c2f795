r"""Write the reference outputs in assets/lavis, where LAVIS 1.0.2 runs.

    python3.11 -m venv build/lavis
    build/lavis/bin/pip install torch torchvision wheel PyYAML braceexpand filelock packaging \
        pillow portalocker pycocotools python-dateutil pytz regex requests tqdm tzdata
    build/lavis/bin/pip install --no-deps salesforce-lavis==1.0.2 transformers==4.26.1 \
        tokenizers==0.13.3 huggingface-hub==0.16.4 numpy==1.26.4 timm==0.4.12 pandas==2.2.3 \
        opencv-python-headless==4.5.5.64 omegaconf==2.3.0 antlr4-python3-runtime==4.9.3 \
        sentencepiece==0.1.99 einops==0.4.1 iopath==0.1.10 decord==0.6.0 webdataset==1.0.2 \
        pycocoevalcap==1.2
    build/lavis/bin/pip install --no-deps --no-build-isolation fairscale==0.4.4
    build/lavis/bin/python -m tests.make_lavis_references

Nothing of this library is imported, and nothing is downloaded but the packages. LAVIS's classes
build the models, at the sizes of ``lavis_references``; its own functions compute everything, and
wrappers keep what they take and return. Only two things are replaced: the BERT tokenizer, which
LAVIS loads by its name on the hub, and spacy, which another of its models imports.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests import lavis_references as about
from tests.lavis_formulas import Sizes

sys.modules.setdefault("spacy", ModuleType("spacy"))

import sentencepiece  # noqa: E402
import transformers  # noqa: E402
from lavis.models.blip_models import blip_image_text_matching  # noqa: E402
from lavis.models.blip_models.blip import BlipBase  # noqa: E402
from lavis.models.blip_models.blip_caption import BlipCaption  # noqa: E402
from lavis.models.med import XBertEncoder, XBertLMHeadDecoder  # noqa: E402
from lavis.models.pnp_vqa_models.pnp_unifiedqav2_fid import PNPUnifiedQAv2FiD  # noqa: E402
from lavis.models.pnp_vqa_models.pnp_vqa import PNPVQA  # noqa: E402
from lavis.models.vit import VisionTransformerEncoder  # noqa: E402
from lavis.processors.blip_processors import (  # noqa: E402
    BlipImageEvalProcessor,
    BlipQuestionProcessor,
)
from omegaconf import OmegaConf  # noqa: E402


def bert_tokenizer(_: str) -> Any:
    """In place of ``BertTokenizer.from_pretrained("bert-base-uncased")``."""
    return transformers.BertTokenizer(str(about.VOCABULARY), model_max_length=512)


def vision(sizes: Sizes) -> Any:
    built = VisionTransformerEncoder(
        img_size=sizes.grid * sizes.patch,
        patch_size=sizes.patch,
        embed_dim=sizes.vision,
        depth=sizes.vision_layers,
        num_heads=sizes.heads,
        mlp_ratio=sizes.vision_mlp / sizes.vision,
    )
    built.vision_width = sizes.vision
    return built


def text_config(sizes: Sizes) -> Any:
    """As configs/models/med_large_config.json, but for the sizes."""
    return transformers.BertConfig(
        hidden_size=sizes.text,
        num_hidden_layers=sizes.text_layers,
        num_attention_heads=sizes.heads,
        intermediate_size=sizes.text_mlp,
        max_position_embeddings=sizes.positions,
        vocab_size=sizes.vocabulary,
        layer_norm_eps=1e-12,
        pad_token_id=0,
        add_type_embeddings=False,
        encoder_width=sizes.vision,
        add_cross_attention=True,
    )


def loaded(model: Any, state: dict[str, Tensor]) -> Any:
    """The model with a checkpoint that LAVIS reads; each of its weights has to be in it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.pth"
        torch.save({"model": state}, path)
        found = model.load_checkpoint(str(path))
    missing = [name for name in found.missing_keys if not name.endswith("position_ids")]
    assert not missing, missing
    return model.eval()


def reader(folder: Path) -> Any:
    """From a folder as UnifiedQA's repository, by LAVIS's ``from_config``."""
    config = transformers.T5Config(
        **about.T5, feed_forward_proj="relu", decoder_start_token_id=0, dropout_rate=0.1
    )
    model = transformers.T5ForConditionalGeneration(config)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    model.load_state_dict(about.reader_state(shapes))
    model.save_pretrained(folder)
    (folder / "spiece.model").write_bytes(about.PIECES.read_bytes())
    section = {"pretrained": str(folder), "t5_config_path": str(folder / "config.json")}
    return PNPUnifiedQAv2FiD.from_config(OmegaConf.create(section)).eval()


def write_pieces() -> None:
    """A small T5 vocabulary without the table of Unicode normalization, which is large."""
    words = about.VOCABULARY.read_text(encoding="utf-8").split()
    words = [word for word in words if word.isalpha()]
    random = np.random.RandomState(0)
    with tempfile.TemporaryDirectory() as folder:
        sentences = Path(folder) / "sentences.txt"
        sentences.write_text("\n".join(" ".join(random.choice(words, 8)) for _ in range(2000)))
        sentencepiece.SentencePieceTrainer.train(
            input=str(sentences),
            model_prefix=str(about.PIECES.with_suffix("")),
            vocab_size=120,
            normalization_rule_name="identity",
            **about.T5_PIECES,
        )
    about.PIECES.with_suffix(".vocab").unlink()


@contextmanager
def wrapped(holder: Any, name: str, keep: Callable[[tuple[Any, ...], Any], None]) -> Iterator[None]:
    """``keep`` gets positional arguments and result of each call of ``holder.name``."""
    before = getattr(holder, name)

    @wraps(before)  # transformers reads signatures
    def called(*args: Any, **kwargs: Any) -> Any:
        result = before(*args, **kwargs)
        keep(args, result)
        return result

    setattr(holder, name, called)
    try:
        yield
    finally:
        setattr(holder, name, before)


def outcome(step: Callable[[], Any]) -> str:
    """What a step of LAVIS ends with: the error's type, or nothing."""
    try:
        step()
    except Exception as error:
        return type(error).__name__
    return ""


def matching_references(
    model: Any, image: Tensor, questions: list[str], found: dict[str, Tensor], told: dict[str, Any]
) -> None:
    """Scores of all questions, and heat of all that LAVIS has heat for."""
    itm = model.image_question_matching_model

    def samples(rows: list[int]) -> dict[str, Any]:
        return {
            "image": image.expand(len(rows), -1, -1, -1),
            "text_input": [questions[row] for row in rows],
        }

    every = [*range(len(questions))]
    stripped = [question.strip("?") for question in questions]
    with torch.no_grad():
        found["image_tokens"] = itm.visual_encoder.forward_features(image)[0, :: about.EVERY_TOKEN]
        logits = itm({"image": samples(every)["image"], "text_input": stripped})
    found["scores"] = logits.softmax(dim=1)[:, 1]
    short = [row for row in every if row != about.LONGEST]
    told["longest"] = outcome(lambda: model.forward_itm(samples([about.LONGEST])))
    text = itm.tokenizer(
        stripped[about.LONGEST],
        truncation=True,
        max_length=about.MAX_TXT_LEN,
        return_tensors="pt",
    )
    for block in about.BLOCKS:
        heat = model.forward_itm(samples(short), block_num=block)["gradcams"]
        # The mask cut as the question is, which ``forward_itm`` doesn't do.
        cut, _ = blip_image_text_matching.compute_gradcam(
            itm, image, [stripped[about.LONGEST]], text, block_num=block
        )
        found[f"heat_{block}"] = torch.cat([heat, cut[0][1].reshape(1, -1)])


def caption_references(model: Any, samples: dict[str, Any], found: dict[str, Tensor]) -> None:
    """Probabilities of patches; of a caption its patches, words and next words' logits."""
    drawn: list[tuple[Tensor, Tensor]] = []
    logits: list[Tensor] = []
    said: list[Tensor] = []
    captioner = model.image_captioning_model
    with torch.no_grad():
        tokens = captioner.visual_encoder.forward_features(samples["image"][:1])
    found["caption_image_tokens"] = tokens[0, :: about.EVERY_TOKEN]
    with (
        wrapped(torch, "multinomial", lambda args, result: drawn.append((args[0], result))),
        wrapped(captioner.text_decoder, "forward", lambda _, out: logits.append(out.logits)),
        wrapped(captioner.text_decoder, "generate", lambda _, result: said.append(result)),
        torch.no_grad(),
    ):
        torch.manual_seed(0)
        model.forward_cap(
            samples,
            num_captions=about.CAPTIONS,
            num_patches=about.PATCHES,
            cap_max_length=about.CAPTION_LENGTH,
            top_k=0,
        )
    first = drawn[: about.CAPTIONS]  # the others are words, and captions drawn again
    weights = first[0][0]
    found["patch_probabilities"] = weights / weights.sum(dim=1, keepdim=True)
    # Of each question, its first caption.
    found["patches"] = first[0][1].sort(dim=1).values
    ids = said[0][:: about.CAPTIONS]
    begun = len(captioner.tokenizer(about.PROMPT).input_ids) - 1
    last = logits[ids.shape[1] - begun - 1]  # without a cache, the last step has all places
    assert last.shape[1] == ids.shape[1] - 1, last.shape
    found["caption_ids"] = ids
    found["caption_logits"] = last[:: about.CAPTIONS, begun - 1 :]


def reader_references(
    model: Any,
    samples: dict[str, Any],
    together: int,
    found: dict[str, Tensor],
    told: dict[str, Any],
) -> None:
    """Passages, logits of each next word, and greedy answers."""
    qa = model.question_answering_model
    logits: list[list[Tensor]] = []
    said: list[Tensor] = []
    with (
        wrapped(qa.encoder, "forward", lambda *_: logits.append([])),
        wrapped(qa, "forward", lambda _, out: logits[-1].append(out.logits[0, -1])),
        wrapped(qa, "generate", lambda _, result: said.append(result[0])),
        torch.no_grad(),
    ):
        answers = model.forward_qa(
            samples,
            num_captions=about.CAPTIONS,
            num_captions_fid=together,
            max_len=about.ANSWER_LENGTH,
        )
    told[f"passages_{together}"] = samples["question_captions"]
    told[f"answers_{together}"] = answers
    told[f"answer_ids_{together}"] = [each.tolist() for each in said]
    for row, steps in enumerate(logits):
        found[f"answer_logits_{together}_{row}"] = torch.stack(steps)


def main() -> None:
    """Run LAVIS and write the files."""
    torch.set_num_threads(1)
    about.ASSETS.mkdir(exist_ok=True)
    write_pieces()
    BlipBase.init_tokenizer.__globals__["BertTokenizer"] = type(
        "Vocabulary", (), {"from_pretrained": staticmethod(bert_tokenizer)}
    )
    itm = blip_image_text_matching.BlipITM(
        vision(about.MATCHING),
        XBertEncoder(text_config(about.MATCHING), add_pooling_layer=False),
        embed_dim=about.MATCHING.projection,
    )
    captioner = BlipCaption(
        vision(about.SIZES), XBertLMHeadDecoder(text_config(about.SIZES)), prompt=about.PROMPT
    )
    with tempfile.TemporaryDirectory() as folder:
        model = PNPVQA(
            loaded(itm, about.matching_state()),
            loaded(captioner, about.captioning_state()),
            reader(Path(folder)),
        )
    side = about.SIZES.grid * about.SIZES.patch
    processor = BlipImageEvalProcessor(image_size=side)
    image, resized = processor(about.picture())[None], processor(about.picture(*about.PICTURE))
    questions = [BlipQuestionProcessor()(question) for question in about.ASKED]
    found: dict[str, Tensor] = {"pixels": resized[:, :: about.EVERY_PIXEL, :: about.EVERY_PIXEL]}
    packages = ("salesforce-lavis", "transformers", "tokenizers", "timm", "torch", "torchvision")
    told: dict[str, Any] = {
        "versions": {name: version(name) for name in packages},
        "questions": questions,
    }
    matching_references(model, image, questions, found, told)
    samples = {
        "image": image.expand(len(about.READ), -1, -1, -1),
        "text_input": [questions[row] for row in about.READ],
    }
    samples = model.forward_itm(samples, block_num=about.BLOCK)
    caption_references(model, samples, found)
    told["captions"] = samples["captions"]
    for together in about.TOGETHER:
        reader_references(model, samples, together, found, told)
    empty = {"image": image, "text_input": [questions[about.EMPTY]]}
    told["empty"] = outcome(lambda: model.forward_cap(model.forward_itm(empty)))
    np.savez_compressed(about.ARRAYS, **{name: each.numpy() for name, each in found.items()})
    about.write_texts(told)
    for path in sorted(about.ASSETS.iterdir()):
        print(f"{path.name}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
