"""A run that is pushed to the hub and pulled from it answers the same."""

import json
import os
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import save_file
from torch import zeros

from lavis_ext.ask import command as ask
from lavis_ext.checkpoints.trained_weights import TrainedWeights
from lavis_ext.common.errors import UserError
from lavis_ext.config.loader import Config
from lavis_ext.hub.push import main
from lavis_ext.runners.launch import started
from tests.conftest import MINI_IMAGES, PROJECT
from tests.hub.stand_in import Hub, Repository, hub_stand_in

BEST = "fusion_encoder_best.safetensors"
MINI_TRAIN = PROJECT / "projects" / "pnp-vqa" / "train" / "mini_train.yaml"


@pytest.fixture(scope="module")
def run(
    mini_gqa: Path, configured: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a run that trained the miniature's fusion for a few steps."""
    cfg = configured(
        f"datasets.gqa_fusion.mini_gqa.root={mini_gqa}",
        f"datasets.gqa_fusion.mini_gqa.images={MINI_IMAGES}",
        f"run.output_dir={tmp_path_factory.mktemp('output')}",
        "run.small_train_size=4",
        "run.max_steps=3",
        "run.warmup_steps=0",
        "run.num_workers=0",
        "run.device=cpu",
        cfg_path=MINI_TRAIN,
    )
    with started(cfg, ["train", "val", "testdev"]) as runner:
        runner.train()
    return runner.output_dir


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A stand-in for the hub, with the token of the user ``me`` and an empty cache."""
    with hub_stand_in() as stand_in:
        use(stand_in.url, monkeypatch, tmp_path)
        yield stand_in


def use(url: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Direct the hub's client to ``url``; it reads its environment on import."""
    constants = "huggingface_hub.constants"
    monkeypatch.setattr(f"{constants}.ENDPOINT", url)
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(f"{constants}.HF_HUB_CACHE", str(folder / "cache"))
    monkeypatch.setattr(f"{constants}.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(f"{constants}.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(f"{constants}.HF_TOKEN_PATH", str(folder / "token"))
    monkeypatch.setenv("HF_TOKEN", "hf_me")


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The error with which the command ends."""
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, arguments)))
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err.splitlines()[-1]


def answers(weights: str, picture: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """All that the pipeline says about the picture."""
    capsys.readouterr()
    ask.main([str(picture), "what color is the circle?", "--weights", weights, "--json"])
    out = capsys.readouterr().out
    found = json.loads(out[out.index("[\n") :])  # after what an earlier run's log prints
    for each in found:
        del each["picture"]
    return found


def files_of(hub: Hub, name: str, branch: str = "main") -> dict[str, bytes]:
    return hub.repositories[name].files(branch)[1]


def test_a_pushed_run_is_loaded_by_its_name_and_answers_the_same(
    run: Path,
    hub: Hub,
    mini_gqa: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    main([str(run), "me/shapes"])
    out = capsys.readouterr().out
    commit = hub.repositories["me/shapes"].branches["main"]
    assert f"use it: model.fusion_weights=me/shapes@{commit}" in out
    files = files_of(hub, "me/shapes")
    assert files.keys() == {"model.safetensors", "config.yaml", "metrics.json", "README.md"}
    assert files["model.safetensors"] == (run / BEST).read_bytes()
    picture = next((mini_gqa / "images").iterdir())
    here = answers(str(run / BEST), picture, capsys)
    for name in ("me/shapes", f"me/shapes@{commit}"):
        assert answers(name, picture, capsys) == here
    hub.asked.clear()
    assert answers("me/shapes", picture, capsys) == here
    assert hub.asked == []  # the cache has it


def test_the_card_is_made_of_the_run(run: Path, hub: Hub) -> None:
    main([str(run), "me/shapes", "--license", "mit"])
    card = ModelCard(files_of(hub, "me/shapes")["README.md"].decode())
    assert card.data.license == "mit"
    assert card.data.pipeline_tag == "visual-question-answering"
    scores = json.loads((run / "testdev_scores.json").read_text())["metrics"]["accuracy"]
    results = {(e.dataset_split, e.metric_type): e.metric_value for e in card.data.eval_results}
    assert results["testdev", "accuracy"] == scores["value"]
    interval = f"{scores['low']:.4f} to {scores['high']:.4f}"
    assert f"| accuracy | {scores['value']:.4f} | {interval} | {scores['count']} |" in card.text
    environment = json.loads((run / "environment.json").read_text())
    assert shlex.join(environment["command"]) in card.text
    assert f"| torch | {environment['packages']['torch']} |" in card.text
    assert "| train | train, a sample (4 of `run.sample_by`: images) |" in card.text
    assert "`packaged:miniature/efficient_sam.safetensors`, part of lavis_ext" in card.text
    config = yaml.safe_load(card.text.partition("```yaml\n")[2].partition("```")[0])
    assert config["run"]["max_steps"] == 3
    assert config == yaml.safe_load(files_of(hub, "me/shapes")["config.yaml"])


def test_nothing_is_asked_of_the_hub_in_a_dry_run(
    run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(run), "me/shapes", "--dry-run"])
    out = capsys.readouterr().out
    assert "model.safetensors: 4.5" in out
    assert "library_name: lavis_ext" in out
    assert "license" not in ModelCard(out[out.index("---") :]).data.to_dict()
    assert hub.asked == []


def test_a_second_push_is_a_second_commit_and_a_branch_leaves_main_alone(
    run: Path, hub: Hub
) -> None:
    main([str(run), "me/shapes"])
    first = hub.repositories["me/shapes"].branches["main"]
    main([str(run / BEST), "me/shapes", "--revision", "other", "--license", "mit"])
    branches = hub.repositories["me/shapes"].branches
    assert branches["main"] == first != branches["other"]
    assert "license" not in files_of(hub, "me/shapes")["README.md"].decode()
    assert "license: mit" in files_of(hub, "me/shapes", "other")["README.md"].decode()


def test_an_evaluation_of_the_weights_is_on_the_card_and_another_is_refused(
    run: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = tmp_path / "evaluated"
    evaluation.mkdir()
    config = {
        "model": {"fusion_weights": os.path.relpath(run / BEST)},
        "run": {"task": "answering"},
    }
    (evaluation / "config.yaml").write_text(yaml.safe_dump(config))
    assert "only finished runs" in refused(capsys, run, "me/shapes", "--evaluation", evaluation)
    (evaluation / "metrics.json").write_text('{"testdev": {"answer_accuracy": 0.625}}')
    main([str(run), "me/shapes", "--evaluation", str(evaluation)])
    card = files_of(hub, "me/shapes")["README.md"].decode()
    assert "**testdev**, task `answering`, run `evaluated`" in card
    assert "| answer_accuracy | 0.6250 |" in card
    assert "evaluated_metrics.json" in files_of(hub, "me/shapes")
    other = shutil.copy(run / BEST, tmp_path / "other.safetensors")
    hub.asked.clear()
    assert "evaluated" in refused(capsys, other, "me/shapes", "--evaluation", evaluation)
    assert "no config.yaml" in refused(capsys, run, "me/shapes", "--evaluation", tmp_path)
    assert hub.asked == []


def test_sources_that_are_no_weights_are_refused(
    run: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"weight": zeros(3)}, tmp_path / "plain.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes((run / BEST).read_bytes()[:-1])
    for source, said in (
        (tmp_path, "has no *_best.safetensors"),
        (tmp_path / "none", "there is no file or folder"),
        (tmp_path / "plain.safetensors", "no trained weights of lavis_ext"),
        (tmp_path / "damaged.safetensors", "damaged.safetensors"),
    ):
        assert said in refused(capsys, source, "me/shapes")
    for name in ("shapes", "me/a/b", "me/..", "me/sha pes"):
        assert "REPO_ID" in refused(capsys, run, name)
    assert hub.asked == []


def test_what_the_hub_refuses_is_a_sentence_and_changes_nothing(
    run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.repositories["you/theirs"] = Repository()
    assert "may not write to you/theirs" in refused(capsys, run, "you/theirs")
    assert "may not write to you/new" in refused(capsys, run, "you/new")
    assert "license" in refused(capsys, run, "me/shapes", "--license", "nonsense")
    hub.repositories["me/public"] = Repository()
    assert "is public" in refused(capsys, run, "me/public", "--private")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "doesn't accept the token" in refused(capsys, run, "me/shapes")
    monkeypatch.delenv("HF_TOKEN")
    assert "There is no token" in refused(capsys, run, "me/shapes")
    assert all(not repository.commits for repository in hub.repositories.values())


def test_a_private_repository_is_its_owners(
    run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    main([str(run), "me/secret", "--private"])
    monkeypatch.setenv("HF_TOKEN", "hf_you")
    with pytest.raises(UserError, match="me/secret"):
        TrainedWeights.load("me/secret", key="model.fusion_weights")
    monkeypatch.setenv("HF_TOKEN", "hf_me")
    assert TrainedWeights.load("me/secret", key="model.fusion_weights").step == 3


def test_without_a_network_nothing_is_lost(
    run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with hub_stand_in() as gone:
        url = gone.url
    use(url, monkeypatch, tmp_path)
    before = sorted(path.name for path in run.iterdir())
    assert f"{url} can't be reached" in refused(capsys, run, "me/shapes")
    assert sorted(path.name for path in run.iterdir()) == before
    with pytest.raises(UserError, match="the Hugging Face hub did not provide it"):
        TrainedWeights.load("me/shapes", key="model.fusion_weights")


def test_a_repository_without_the_weights_is_named_in_the_error(hub: Hub) -> None:
    hub.repositories["me/empty"] = Repository()
    with pytest.raises(UserError, match=r"'me/empty' .* has none of model\.safetensors"):
        TrainedWeights.load("me/empty", key="model.fusion_weights")
    with pytest.raises(UserError, match="'me/none' is not a local file"):
        TrainedWeights.load("me/none", key="model.fusion_weights")


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("metrics.json", '{"testdev": 1}', "metrics.json isn't what this version writes"),
        ("metrics.json", '{"val": {"loss": "low"}}', "metrics.json isn't what this version writes"),
        ("testdev_scores.json", '{"metrics": []}', "testdev_scores.json isn't what this version"),
        (
            "testdev_scores.json",
            '{"accuracy": {"value": 1, "of": 2}}',
            "testdev_scores.json isn't what this version",
        ),
        ("config.yaml", "run: [1]", "its section 'run' is no mapping"),
        ("config.yaml", None, "config.yaml is missing"),
    ],
)
def test_a_run_of_another_version_is_refused_before_the_hub_is_asked(
    run: Path,
    hub: Hub,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    file: str,
    text: str | None,
    said: str,
) -> None:
    copied = shutil.copytree(run, tmp_path / "run")
    if text is None:
        (copied / file).unlink()
    else:
        (copied / file).write_text(text)
    error = refused(capsys, copied, "me/shapes")
    assert said in error
    assert "--evaluation: " not in error
    assert hub.asked == []


def test_a_token_with_other_letters_and_a_hub_that_is_ill_are_told_apart(
    run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_me\u00fc")
    assert "has letters that no token has" in refused(capsys, run, "me/shapes")
    monkeypatch.setenv("HF_TOKEN", "hf_me")
    monkeypatch.setattr(hub, "answer", lambda *_: (429, {}, b"slow down"))
    assert "can't answer now. Nothing was published." in refused(capsys, run, "me/shapes")
