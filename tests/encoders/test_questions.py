"""Question encoders: BERT's states, memory of frozen ones, and a model without BLIP."""

from typing import Any

import pytest
import torch
import transformers

from lavis_ext.common.errors import UserError
from lavis_ext.config.typed import typed
from lavis_ext.encoders.bert import BertConfig, BertQuestionEncoder
from lavis_ext.models.base import total_loss
from lavis_ext.models.pnp_vqa.config import PnpVqaFusionConfig
from lavis_ext.models.pnp_vqa.model import PnpVqaFusion
from tests.tiny import HEAD, QUESTIONS, STREAMS, make_samples, model_section, vocabulary

SIZES = {
    "weights": None,
    "tokenizer": "packaged:miniature/vocabulary.txt",
    "width": 24,
    "layers": 2,
    "heads": 2,
    "mlp": 48,
    "vocab_size": 660,
    "max_position_embeddings": 40,
}
PHOTO = {
    "encoder": "timm",
    "model": "test_convnext",
    "image_size": 32,
    "output": "features",
    "feature_index": 1,
}
SHORT, LONG = "red?", "what color is the circle left of the red square?"


def build(**options: Any) -> BertQuestionEncoder:
    torch.manual_seed(0)
    return BertQuestionEncoder(BertConfig(**{**SIZES, **options}), "model.question_encoder").eval()


def frozen(**options: Any) -> BertQuestionEncoder:
    return build(**options).requires_grad_(False)


def make_model(**options: Any) -> PnpVqaFusion:
    torch.manual_seed(0)
    section = {
        **model_section({"answer": HEAD}, {"name": "sum"}, {"photo": PHOTO, "texture": PHOTO}),
        "question_encoder": {"encoder": "bert", **SIZES},
        **options,
    }
    return PnpVqaFusion(typed(PnpVqaFusionConfig, section, "model"), vocabulary())


def samples() -> Any:
    found = make_samples()
    found["images"] = dict.fromkeys(("photo", "texture"), found["images"]["grid"])
    return found


def test_states_are_those_of_transformers(tmp_path: Any) -> None:
    encoder = frozen()
    theirs = transformers.BertModel(encoder.bert.config).eval()
    theirs.save_pretrained(tmp_path)
    encoder = frozen(weights=str(tmp_path))
    inputs = encoder.tokenizer([SHORT, LONG], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = theirs(**inputs).last_hidden_state
    states = encoder.read([SHORT, LONG], rows=1)
    length = int(inputs["attention_mask"][0].sum())
    assert length < expected.shape[1]
    torch.testing.assert_close(states[0, :length], expected[0, :length])
    torch.testing.assert_close(states[1], expected[1])


def test_a_frozen_encoder_reads_a_question_once(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = frozen(remembered=2)
    read: list[str] = []
    tokenize = encoder.tokenize
    monkeypatch.setattr(encoder, "tokenize", lambda texts: (read.extend(texts), tokenize(texts))[1])
    first = encoder.read([SHORT, LONG, SHORT], rows=1)
    again = encoder.read([LONG, SHORT], rows=1)
    assert read == [SHORT, LONG]
    assert torch.equal(first[:2], again.flip(0))
    for _ in range(2):
        encoder.read(["is there a circle?"], rows=1)
    assert read[2:] == 2 * ["is there a circle?"]  # only two are remembered


def test_a_trained_encoder_forgets_and_gets_gradients() -> None:
    encoder = build()
    before = encoder.read([LONG], rows=1)
    before.sum().backward()
    assert encoder.bert.embeddings.word_embeddings.weight.grad is not None
    with torch.no_grad():
        encoder.bert.embeddings.word_embeddings.weight.add_(torch.randn(660, 24))
    assert not torch.allclose(before, encoder.read([LONG], rows=1))


def test_a_model_without_blip_learns_to_answer() -> None:
    model, batch = make_model().train(), samples()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        output = model(batch)
        optimizer.zero_grad()
        (total_loss(output) / output.examples).backward()
        optimizer.step()
    report, answers = model.eval().evaluate(batch)
    assert answers is not None
    assert float(report["answer_accuracy"]) >= 0.9 * len(QUESTIONS)


def test_its_weights_file_is_not_saved_again(tmp_path: Any) -> None:
    transformers.BertModel(frozen().bert.config).save_pretrained(tmp_path)
    with_file = {"encoder": "bert", **SIZES, "weights": str(tmp_path)}
    for section, saved in ((with_file, False), ({"encoder": "bert", **SIZES}, True)):
        model = make_model(question_encoder=section).requires_grad_(False)
        names = model.exported_state()
        assert any(name.startswith("question_encoder.") for name in names) is saved


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objectives": {"itm": None}}, "model.objectives.itm: here BLIP reads questions with"),
        (
            {"objectives": {"answer": {"grounded": True}}},
            "model.objectives.answer: here BLIP reads",
        ),
        ({"question_encoder": {"encoder": "lstm"}}, "No question encoder is registered as 'lstm'"),
        ({"question_encoder": "bert"}, "model.question_encoder is 'bert'; it must be a mapping"),
        ({"question_encoder": {**SIZES, "heads": 5}}, "heads is 5; it must divide width 24"),
        ({"question_encoder": None}, "The first stream must be blip"),
    ],
)
def test_wrong_sections_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_model(**options)


def test_the_pipeline_needs_blip() -> None:
    section = {**model_section({"answer": HEAD}), "question_encoder": SIZES}
    section["streams"] = {"photo": PHOTO, **STREAMS}
    config = typed(PnpVqaFusionConfig, section, "model")
    with pytest.raises(UserError, match=r"streams\.photo\.encoder is timm\. The first stream must"):
        config.check_answering(load_weights=False)
