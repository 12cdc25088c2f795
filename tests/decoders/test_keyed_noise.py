"""Keyed noise passes statistical tests, and depends only on its keys."""

import pytest
import torch
from scipy import stats

from lavis_ext.decoders.keyed_noise import fold_in, gumbel, text_keys, uniform

QUESTIONS = [f"{number:08d}" for number in range(40)]


def noise_keys(questions: list[str], seed: int = 0, columns: int = 1000) -> torch.Tensor:
    """One key for each (question, caption, column): [questions, 3, columns]."""
    captions = fold_in(text_keys(questions, seed)[:, None], torch.arange(3))
    return fold_in(captions[..., None], torch.arange(columns))


def test_folding_is_splitmix64() -> None:
    # The first outputs of the reference implementation for the seed 1234567.
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    ours = fold_in(torch.tensor(1234567), torch.arange(5)).tolist()
    assert [value % 2**64 for value in ours] == published


def test_noise_has_its_distribution() -> None:
    keys = noise_keys(QUESTIONS).flatten()
    assert stats.kstest(uniform(keys).numpy(), "uniform").pvalue > 0.001
    assert stats.kstest(gumbel(keys).numpy(), "gumbel_r").pvalue > 0.001


def test_noise_is_finite_at_both_ends() -> None:
    extremes = torch.tensor([0, -1])  # all bits 0 and all bits 1
    assert ((uniform(extremes) > 0) & (uniform(extremes) < 1)).all()
    assert gumbel(extremes).isfinite().all()


def test_neighboring_keys_are_independent() -> None:
    values = uniform(noise_keys(QUESTIONS))
    for before, after in (
        (values[:-1], values[1:]),  # question ids that differ in a digit
        (values[:, :-1], values[:, 1:]),
        (values[..., :-1], values[..., 1:]),
    ):
        correlation = torch.corrcoef(torch.stack([before.flatten(), after.flatten()]))[0, 1]
        assert abs(float(correlation)) < 4 / before.numel() ** 0.5
        # Independence beyond correlation: pairs fill the square evenly.
        cells = (before * 8).long() * 8 + (after * 8).long()
        assert stats.chisquare(torch.bincount(cells.flatten()).numpy()).pvalue > 0.001


def test_numbers_depend_on_seed_and_purpose() -> None:
    keys = torch.stack([text_keys(QUESTIONS, *labels) for labels in ((0, "a"), (1, "a"), (0, "b"))])
    assert keys.unique().numel() == keys.numel()


def test_the_batch_changes_nothing() -> None:
    whole = gumbel(noise_keys(QUESTIONS, columns=1001))
    order = torch.randperm(len(QUESTIONS), generator=torch.Generator().manual_seed(0)).tolist()
    shuffled = gumbel(noise_keys([QUESTIONS[row] for row in order], columns=1001))
    assert torch.equal(shuffled, whole[order])
    alone = gumbel(noise_keys(QUESTIONS[7:8], columns=1001))
    assert torch.equal(alone, whole[7:8])
    chosen = torch.tensor([3, 500, 1000])
    captions = fold_in(text_keys(QUESTIONS, 0)[:, None], torch.arange(3))
    assert torch.equal(gumbel(fold_in(captions[..., None], chosen)), whole[..., chosen])


def test_another_process_draws_the_same() -> None:
    # Written down once: nothing in it depends on the process, as Python's own hash() does.
    drawn = gumbel(fold_in(text_keys(["02930152"], 5, "words"), 3))
    assert drawn.item() == pytest.approx(1.7566403169065157, rel=1e-14)


def test_torch_s_own_state_is_neither_read_nor_moved() -> None:
    state = torch.get_rng_state()
    first = gumbel(text_keys(QUESTIONS))
    torch.manual_seed(1)
    assert torch.equal(gumbel(text_keys(QUESTIONS)), first)
    torch.set_rng_state(state)
    gumbel(text_keys(QUESTIONS))
    assert torch.equal(torch.get_rng_state(), state)
