"""EfficientSAM's masks: parity with the authors' for any batch, and training."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lavis_ext.common.errors import UserError
from lavis_ext.encoders.efficient_sam.encoder import EfficientSam, EfficientSamConfig
from lavis_ext.encoders.efficient_sam.mask_decoder import MaskPrediction, best_mask
from tests.parity import normal, reference, set_weights

SIDE = 32
SIZE, GRID = (SIDE, SIDE), (4, 4)
SMALL = {
    "image_size": SIDE,
    "patch_size": 8,
    "width": 24,
    "depth": 1,
    "heads": 2,
    "neck_width": 32,
    "decoder_heads": 2,
    "decoder_mlp": 64,
    "decoder_upscaling": [16, 8],
    "iou_head_width": 32,
    "weights": None,
}
POINTS = torch.tensor([[[4.0, 9.0], [20.0, 30.0]], [[30.0, 2.0], [7.0, 7.0]], [[15.0, 15.0]] * 2])
LABELS = torch.tensor([[1, 1], [2, 3], [1, -1]])


def small(**changes: object) -> EfficientSam:
    torch.manual_seed(0)
    return EfficientSam(EfficientSamConfig(**{**SMALL, **changes})).eval()  # type: ignore[arg-type]


def tokens_of(sam: EfficientSam, count: int, size: tuple[int, int] = SIZE) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        return sam.encode(torch.rand(count, 3, *size, generator=generator))


def predict(
    sam: EfficientSam, tokens: Tensor, points: Tensor, labels: Tensor, image_index: list[int]
) -> MaskPrediction:
    with torch.no_grad():
        return sam.predict_masks(
            tokens, GRID, SIZE, points, labels, torch.tensor(image_index, dtype=torch.long)
        )


def assert_same(found: MaskPrediction, expected: MaskPrediction) -> None:
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.predicted_iou, expected.predicted_iou, atol=1e-5, rtol=0)


def differ(found: MaskPrediction, other: MaskPrediction) -> bool:
    return bool((found.logits - other.logits).abs().max() > 1e-3)


def test_masks_and_their_predicted_ious_are_the_authors() -> None:
    sam = EfficientSam(EfficientSamConfig(image_size=256, weights=None)).eval()
    set_weights(sam)
    # The one exception of the rule: these are standard normal, as they are in a new model.
    name = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    sam.load_state_dict({name: normal(name, (2, 128))}, strict=False)
    images = torch.sigmoid(normal("ti256.image", (2, 3, 256, 256)))
    points = torch.tensor([[[40, 60], [200, 100], [128, 128]], [[10, 250], [99, 33], [-1, -1]]])
    labels = torch.tensor([[1, 1, 1], [1, 1, -1]])
    with torch.no_grad():
        logits, iou = sam.predict_masks(
            sam.encode(images), (16, 16), (256, 256), points, labels, torch.arange(2)
        )
    assert logits.shape == (2, 3, 64, 64)
    masks = reference("efficient_sam", "masks")[:, 0]
    torch.testing.assert_close(logits[..., ::4, ::4], masks, atol=1e-5, rtol=0)
    torch.testing.assert_close(iou, reference("efficient_sam", "iou")[:, 0], atol=1e-5, rtol=0)


def test_masks_of_a_query_do_not_depend_on_the_others() -> None:
    sam = small()
    tokens = tokens_of(sam, 2)
    together = predict(sam, tokens, POINTS, LABELS, [1, 0, 1])
    for query, image in enumerate([1, 0, 1]):
        one = slice(query, query + 1)
        alone = predict(sam, tokens[image][None], POINTS[one], LABELS[one], [0])
        assert_same(MaskPrediction(*(t[one] for t in together)), alone)
    repeated = predict(sam, tokens[[1, 0, 1]], POINTS, LABELS, [0, 1, 2])
    assert_same(together, repeated)
    assert differ(together, predict(sam, tokens, POINTS, LABELS, [0, 1, 0]))


def test_no_queries_give_no_masks() -> None:
    sam = small()
    logits, iou = predict(
        sam, tokens_of(sam, 1), torch.zeros(0, 2, 2), torch.zeros(0, 2, dtype=torch.long), []
    )
    assert logits.shape == (0, 3, 16, 16)
    assert best_mask(MaskPrediction(logits, iou))[0].shape == (0, 16, 16)


def test_the_point_of_padding_does_not_matter() -> None:
    sam = small()
    tokens = tokens_of(sam, 1)
    given = predict(sam, tokens, torch.tensor([[[4.0, 9.0]]]), torch.tensor([[1]]), [0])
    for place in (-1.0, 12.0, float("nan")):
        points = torch.tensor([[[4.0, 9.0], [place, place], [place, place]]])
        assert_same(predict(sam, tokens, points, torch.tensor([[1, -1, -1]]), [0]), given)
    # It is a token all the same: a decoder for fewer points is another one.
    fewer = small(max_points=2)
    fewer.load_state_dict(sam.state_dict())
    other = predict(fewer, tokens, torch.tensor([[[4.0, 9.0]]]), torch.tensor([[1]]), [0])
    assert differ(given, other)


def test_points_after_max_points_are_ignored() -> None:
    sam = small()
    tokens = tokens_of(sam, 1)
    points = torch.arange(16.0).view(1, 8, 2)
    labels = torch.ones(1, 8, dtype=torch.long)
    full = predict(sam, tokens, points[:, :6], labels[:, :6], [0])
    assert_same(predict(sam, tokens, points, labels, [0]), full)
    assert differ(full, predict(sam, tokens, points[:, :5], labels[:, :5], [0]))


@pytest.mark.parametrize("label", [0, 4, -2, 0.73, 1.0])
def test_scores_and_other_labels_are_errors(label: float) -> None:
    sam = small()
    labels = torch.tensor([[1, label]])
    with pytest.raises(UserError, match=r"label of a point; labels are the integers 1, 2, 3"):
        predict(sam, tokens_of(sam, 1), POINTS[:1], labels, [0])


def test_a_box_is_not_two_points() -> None:
    sam = small()
    tokens = tokens_of(sam, 1)
    corners = torch.tensor([[[4.0, 9.0], [20.0, 30.0]]])
    box, points, swapped = (
        predict(sam, tokens, corners, torch.tensor([labels]), [0])
        for labels in ([2, 3], [1, 1], [3, 2])
    )
    assert differ(box, points)
    assert differ(box, swapped)


def test_a_point_has_the_position_of_its_patch_in_a_wide_image() -> None:
    sam = small()
    size, grid = (24, 40), (3, 5)
    tokens = tokens_of(sam, 1, size)
    prompts = sam.prompt_encoder
    center = torch.tensor([[[4 * 8 + 3.5, 8 + 3.5]]])  # of the patch in row 1, column 4
    one = torch.tensor([[1]])
    with torch.no_grad():
        place = prompts(center, one, size)[0, 0] - prompts.point_embeddings.weight[0]
        torch.testing.assert_close(
            place, prompts.grid_positions(grid)[1 * 5 + 4], atol=1e-5, rtol=0
        )
        logits, _ = sam.predict_masks(tokens, grid, size, center, one, torch.tensor([0]))
    assert logits.shape == (1, 3, 12, 20)


def test_the_best_mask_has_the_highest_predicted_iou() -> None:
    logits = torch.arange(6.0).view(2, 3, 1, 1).expand(2, 3, 4, 5)
    iou = torch.tensor([[0.2, 0.1, 0.9], [0.8, 0.8, -0.3]])
    mask, best = best_mask(MaskPrediction(logits, iou))
    assert mask.shape == (2, 4, 5)
    assert mask[:, 0, 0].tolist() == [2, 3]
    assert best.tolist() == pytest.approx([0.9, 0.8])


def test_a_single_mask_decoder_gives_one_mask() -> None:
    sam = small(multimask_outputs=1)
    found = predict(sam, tokens_of(sam, 2), POINTS, LABELS, [0, 1, 1])
    assert found.logits.shape == (3, 1, 16, 16)
    assert found.predicted_iou.shape == (3, 1)


def loss_of(prediction: MaskPrediction, target: Tensor) -> Tensor:
    targets = target.expand_as(prediction.logits)
    return (
        F.binary_cross_entropy_with_logits(prediction.logits.float(), targets)
        + prediction.predicted_iou.float().sub(1).square().mean()
    )


@pytest.mark.parametrize("bf16", [False, True])
def test_a_mask_can_be_learnt_on_frozen_tokens(bf16: bool) -> None:
    sam = small()
    tokens = tokens_of(sam, 1)
    target = torch.zeros(16, 16)
    target[3:9, 5:14] = 1
    points, labels, index = torch.tensor([[[18.0, 12.0]]]), torch.tensor([[1]]), torch.tensor([0])
    trained = [*sam.prompt_encoder.parameters(), *sam.mask_decoder.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=3e-3)
    losses = []
    for _ in range(60):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            prediction = sam.predict_masks(tokens, GRID, SIZE, points, labels, index)
            loss = loss_of(prediction, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 10
    logits, _ = best_mask(predict(sam, tokens, points, labels, [0]))
    assert torch.equal(logits[0] > 0, target > 0)


def test_gradients_reach_all_read_streams_and_the_image() -> None:
    sam = small()
    images = torch.rand(1, 3, *SIZE)
    prediction = sam.predict_masks(
        sam.encode(images), GRID, SIZE, POINTS[:1], LABELS[:1], torch.tensor([0])
    )
    loss_of(prediction, torch.zeros(16, 16)).backward()
    without = {name for name, parameter in sam.named_parameters() if parameter.grad is None}
    # SAM's single mask, which several masks are given instead of.
    unread = "mask_decoder.output_hypernetworks_mlps.0."
    assert without == {name for name, _ in sam.named_parameters() if name.startswith(unread)}
    assert sam.image_encoder.patch_embed.proj.weight.grad.abs().max() > 0


def test_bf16_does_not_round_positions() -> None:
    sam = small()
    tokens = tokens_of(sam, 2)
    exact = predict(sam, tokens, POINTS, LABELS, [0, 1, 1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = predict(sam, tokens, POINTS, LABELS, [0, 1, 1])
        places = sam.prompt_encoder.grid_positions((64, 64))
    assert torch.equal(places, sam.prompt_encoder.grid_positions((64, 64)))
    assert mixed.logits.dtype == torch.bfloat16
    spread = exact.logits.std()
    assert (mixed.logits - exact.logits).abs().max() < 0.1 * spread
    whole = small().bfloat16()
    assert (
        predict(whole, tokens.bfloat16(), POINTS, LABELS, [0, 1, 1]).logits - exact.logits
    ).abs().max() < 0.3 * spread


def test_a_frozen_model_passes_gradients_to_the_tokens() -> None:
    sam = small().requires_grad_(False)
    tokens = tokens_of(sam, 1).requires_grad_()
    prediction = sam.predict_masks(tokens, GRID, SIZE, POINTS[:1], LABELS[:1], torch.tensor([0]))
    prediction.logits.sum().backward()
    assert tokens.grad is not None
    assert (tokens.grad.abs().amax(dim=-1) > 0).all()
