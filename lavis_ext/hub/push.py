"""Publish a run's best weights: ``python -m lavis_ext push RUN_OR_WEIGHTS OWNER/NAME``.

The repository gets the weights, the run's config and metrics, and a model card made of the run.
Whoever sets ``model.fusion_weights`` (a model's ``weights_key``) to its name loads them.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf

from lavis_ext.checkpoints.trained_weights import ON_HUB
from lavis_ext.common.arguments import path_argument
from lavis_ext.common.errors import UserError, command, printable, shortened
from lavis_ext.common.files import size_in_words
from lavis_ext.config.command_line import add_imports_argument
from lavis_ext.config.loader import import_modules
from lavis_ext.hub.published import Published, is_on_this_machine, read_published
from lavis_ext.runners.run_folder import CONFIG

CARD = "README.md"
Answer = TypeVar("Answer")


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Publish weights on the hub, or print what would be published."""
    arguments = _parser().parse_args(argv)
    repository = _checked_name(arguments.repository)
    import_modules(arguments.imports)
    published = read_published(arguments.source, arguments.evaluation)
    files = files_to_push(published, repository, arguments.license)
    for name, content in files.items():
        size = content.stat().st_size if isinstance(content, Path) else len(content)
        print(printable(f"{name}: {size_in_words(size)}"))
    if local := [key for key, source in published.sources.items() if is_on_this_machine(source)]:
        print(
            f"note: {', '.join(local)} name files of this machine, which others must set to "
            "copies of their own."
        )
    if arguments.dry_run:
        print(f"\n{files[CARD].decode()}")
        return
    commit = push(files, repository, private=arguments.private, branch=arguments.revision)
    key = published.model_class.weights_key
    print(f"\npublished: {commit.commit_url}\nuse it: model.{key}={repository}@{commit.oid}")


def files_to_push(published: Published, repository: str, license_id: str | None) -> dict[str, Any]:
    """Paths or contents (bytes) of the files to publish, by name in the repository."""
    # Imported here because the hub's client takes 0.25 s.
    from lavis_ext.hub.card import model_card

    config = OmegaConf.to_yaml(OmegaConf.create(published.weights.config))
    card = model_card(published, repository, license_id)
    return {
        ON_HUB: published.path,
        CONFIG: config.encode(),
        **published.files,
        CARD: str(card).encode(),
    }


def push(
    files: dict[str, Any], repository: str, *, private: bool = False, branch: str | None = None
) -> Any:
    """Publish ``files`` in one commit of a new or existing repository.

    Returns huggingface_hub's ``CommitInfo``. Raises UserError if the hub refuses or can't be
    reached; a repository that was there is then as before.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    token = get_token()
    if token is not None and not token.isascii():
        raise UserError(
            "The token for the hub has letters that no token has; copy it again from the hub's "
            "settings into HF_TOKEN, or run `hf auth login`."
        )
    if token is None:
        raise UserError(
            "There is no token for the hub. Make one with the right to write in the hub's settings "
            "and run `hf auth login`, or set HF_TOKEN."
        )
    api = HfApi()
    asking = Asking(repository)
    asking(lambda: api.create_repo(repository, private=private or None, exist_ok=True))
    if private and not asking(lambda: api.model_info(repository)).private:
        raise UserError(
            f"--private: {repository} is there already and is public, and nothing was published. "
            "Choose another name, or make it private in its settings."
        )
    if branch is not None:
        asking(lambda: api.create_branch(repository, branch=branch, exist_ok=True))
    operations = [
        CommitOperationAdd(name, str(content) if isinstance(content, Path) else content)
        for name, content in files.items()
    ]
    return asking(
        lambda: api.create_commit(
            repository, operations, commit_message="Publish weights", revision=branch
        )
    )


class Asking:
    """Calls the hub about a repository, and turns its client's errors into UserErrors."""

    def __init__(self, repository: str) -> None:
        self._repository = repository

    def __call__(self, ask: Callable[[], Answer]) -> Answer:
        """The answer to ``ask``. Raises UserError."""
        try:
            return ask()
        except Exception as error:  # the hub's client raises a dozen unrelated types
            raise UserError(self._sentence(error)) from error

    def _sentence(self, error: Exception) -> str:
        from huggingface_hub import constants

        status = getattr(getattr(error, "response", None), "status_code", None)
        said = shortened(" ".join(str(error).split()) or type(error).__name__, 300)
        nothing = "Nothing was published."
        if status == 401:
            return f"The hub doesn't accept the token. {nothing} Run `hf auth login`. ({said})"
        if status == 403:
            return (
                f"The token may not write to {self._repository}. {nothing} Its owner must be you "
                f"or an organization of yours, and the token needs the right to write. ({said})"
            )
        if status == 429 or (status or 0) >= 500:
            return f"The hub can't answer now. {nothing} Push again in a few minutes. ({said})"
        if status is None and not isinstance(error, ValueError):
            return (
                f"The hub at {constants.ENDPOINT} can't be reached. {nothing} Push from a machine "
                f"with a network; the run's folder is all that it needs. ({said})"
            )
        return f"The hub rejected {self._repository}. {nothing} ({said})"


def _checked_name(repository: str) -> str:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UserError(f"REPO_ID: {shortened(str(error), 300)}") from None
    if repository.count("/") != 1:
        raise UserError(
            f"REPO_ID: '{repository}' has no owner; give OWNER/NAME, where OWNER is your name on "
            "the hub or an organization's."
        )
    return repository


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lavis_ext push",
        description="Publish a run's best weights on the Hugging Face hub, with a model card.",
    )
    parser.add_argument(
        "source",
        type=path_argument,
        metavar="RUN_OR_WEIGHTS",
        help="folder of a run, or file of weights",
    )
    parser.add_argument("repository", metavar="REPO_ID", help="OWNER/NAME, made if it isn't there")
    parser.add_argument("--private", action="store_true", help="only you and your organization")
    parser.add_argument("--revision", metavar="BRANCH", help="branch, made if it isn't there")
    parser.add_argument("--license", metavar="ID", help="the card's license, such as mit")
    parser.add_argument(
        "--evaluation",
        type=path_argument,
        nargs="+",
        default=[],
        metavar="RUN",
        help="folders of evaluations of these weights, whose metrics the card shows too",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the files and the card, publish nothing"
    )
    add_imports_argument(parser)
    return parser
