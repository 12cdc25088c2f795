"""What must be installed before LAVIS can be used, and the sentence for each way it is not."""

import importlib
import re
from importlib import metadata
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement

from lavis_ext.common.errors import UserError

LAVIS_VERSION = "1.0.2"
# LAVIS pins releases of transformers and timm that no current torch goes with, hence --no-deps.
INSTALL_LAVIS = f"pip install --no-deps salesforce-lavis=={LAVIS_VERSION}"
INSTALL_TORCH = "pip install --upgrade --force-reinstall torch torchvision"


class InstallationError(UserError, ImportError):
    """LAVIS is missing or of another version, or torch and torchvision do not fit together."""


def find_lavis() -> ModuleSpec:
    """Where LAVIS is installed; nothing of it is imported.

    Raises InstallationError if it is missing or of another version than ``LAVIS_VERSION``.
    """
    spec = find_spec("lavis")
    version = _version("salesforce-lavis")
    # A folder that happens to be named lavis is found as well, without an initialiser.
    if spec is None or spec.origin is None or version is None:
        raise InstallationError(
            f"LAVIS is not installed (the package salesforce-lavis). Install it: {INSTALL_LAVIS}"
        )
    if version != LAVIS_VERSION:
        raise InstallationError(
            f"salesforce-lavis {version} is installed; this library works with {LAVIS_VERSION} "
            f"only. Install that: {INSTALL_LAVIS}"
        )
    return spec


def import_torchvision() -> None:
    """Import torchvision, or raise InstallationError if it does not fit the installed torch."""
    torch, torchvision = _version("torch"), _version("torchvision")
    if torch and torchvision:
        check_torch_fits(torch, torchvision, metadata.requires("torchvision") or [])
    try:
        importlib.import_module("torchvision")
    except (RuntimeError, AttributeError, ImportError, OSError) as error:
        # A torchvision compiled for CUDA beside a torch that is not (or the reverse) has a fitting
        # version, and fails when it loads its operators.
        raise InstallationError(
            f"torchvision {_build('torchvision')} cannot be imported beside torch "
            f"{_build('torch')} ({error}). Install both from one index: {INSTALL_TORCH}"
        ) from error


def check_torch_fits(torch: str, torchvision: str, requirements: list[str]) -> None:
    """Raise InstallationError if the version ``torch`` is none that this torchvision asks for.

    ``requirements`` are the ``Requires-Dist`` entries of torchvision's metadata, which name the one
    release of torch that its operators were compiled against or, lately, the lowest.
    """
    for requirement in map(Requirement, requirements):
        if requirement.name == "torch" and not requirement.specifier.contains(torch, True):
            raise InstallationError(
                f"torch {torch} and torchvision {torchvision} do not fit together: this "
                f"torchvision is made for torch{requirement.specifier}. Install a pair: "
                f"{INSTALL_TORCH}"
            )


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _build(package: str) -> str:
    """The package's version with its build tag, as in ``2.9.0+cpu``; it is not imported."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return "(not installed)"
    written = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    found = re.search(r"^__version__\s*=\s*['\"](.+)['\"]", written, re.MULTILINE)
    return found.group(1) if found else str(_version(package))
