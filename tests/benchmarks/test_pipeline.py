"""The benchmark of answering compares ways with the same answers."""

from pathlib import Path

import pytest

from benchmarks import pipeline

pytestmark = pytest.mark.beyond_core


def test_every_way_answers_alike_and_the_stages_add_up(tmp_path: Path) -> None:
    given = pipeline.parse_arguments([str(tmp_path), "--small", "--rounds", "1", "--captions", "4"])
    found = pipeline.measure(given)
    here = [way for way in pipeline.LIBRARYS if pipeline.computed_here(way)]
    assert list(found) == ["one image", "two images"]
    for pipelines in found.values():
        for ways in pipelines.values():
            ours = ways[pipeline.OURS]
            theirs = [ways[way] for way in pipeline.WAYS if way in ways]
            assert theirs
            assert all(each.answers == ours.answers for each in theirs)
            assert all(each.captions == ours.captions for each in theirs)
            assert all(len(texts) == 4 for texts in ours.captions)
            for each in (ways[way] for way in here):
                (stages,) = each.stages
                assert set(stages) == set(pipeline.STAGES)
                assert 0.8 * each.seconds[0] < sum(stages.values()) <= each.seconds[0]
    lines = pipeline.tables(found).splitlines()
    rows = [line for line in lines if line.startswith("| one image | LAVIS's pipeline")]
    assert len(rows) == 2 + 2 * len(here), "LAVIS's ways, and the library's with their stages"
    assert "2 of 2; 8 of 8" in rows[2]


def test_pipelines_share_what_they_have_in_common() -> None:
    models = pipeline.make_models(small=True, captions=2)
    lavis, masked = models[pipeline.LAVIS], models[pipeline.MASKED]
    for part in ("blip", "captioner", "reader"):
        own, others = (getattr(model, part).parameters() for model in (lavis, masked))
        assert [p.data_ptr() for p in own] == [p.data_ptr() for p in others]
    tower, vision = lavis._towers["captioner"], masked.captioner.blip.vision_model
    assert next(tower.vision.parameters()).data_ptr() == next(vision.parameters()).data_ptr()


def test_a_ratio_is_the_median_over_rounds_with_its_range() -> None:
    slower, faster = pipeline.Timed([2.0, 4.0, 9.0]), pipeline.Timed([1.0, 1.0, 3.0])
    assert pipeline.ratio(slower, faster) == "3.00 (2.00 to 4.00)"


def test_answers_that_differ_are_counted() -> None:
    found = pipeline.Timed(answers=["red", "no"], captions=[["a", "b"], ["c"]])
    reference = pipeline.Timed(answers=["red", "yes"], captions=[["a", "x"], ["c"]])
    assert pipeline.equal(found, reference) == "1 of 2; 2 of 3"
