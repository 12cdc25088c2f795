"""Check that compatible versions of LAVIS, torch and torchvision are installed."""

import importlib
import re
from importlib import metadata
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement

from lavis_ext.common.errors import UserError

LAVIS_VERSION = "1.0.2"
# --no-deps: LAVIS pins releases of transformers and timm that don't support current torch.
INSTALL_LAVIS = f"pip install --no-deps salesforce-lavis=={LAVIS_VERSION}"
INSTALL_TORCH = "pip install --upgrade --force-reinstall torch torchvision"


class InstallationError(UserError, ImportError):
    """Raised for a missing or wrong LAVIS, or for incompatible torch and torchvision."""


def find_lavis() -> ModuleSpec:
    """Find the installed LAVIS without importing it.

    Raises InstallationError if it is missing or of another version than ``LAVIS_VERSION``.
    """
    spec = find_spec("lavis")
    version = _version("salesforce-lavis")
    # A folder that happens to be named lavis is found too, as a namespace package.
    if spec is None or spec.origin is None or version is None:
        raise InstallationError(
            f"LAVIS is not installed (the package salesforce-lavis). Install it: {INSTALL_LAVIS}"
        )
    if version != LAVIS_VERSION:
        raise InstallationError(
            f"salesforce-lavis {version} is installed, but this library requires "
            f"{LAVIS_VERSION}. Install it: {INSTALL_LAVIS}"
        )
    return spec


def import_torchvision() -> None:
    """Import torchvision. Raises InstallationError if it isn't compatible with torch."""
    torch, torchvision = _version("torch"), _version("torchvision")
    if torch and torchvision:
        check_torch_fits(torch, torchvision, metadata.requires("torchvision") or [])
    try:
        importlib.import_module("torchvision")
    except (RuntimeError, AttributeError, ImportError, OSError) as error:
        # If only one of torch and torchvision is a CUDA build, their versions match, but loading
        # torchvision's operators fails.
        raise InstallationError(
            f"torchvision {_build('torchvision')} can't be imported with torch "
            f"{_build('torch')} ({error}). Install both from the same index: {INSTALL_TORCH}"
        ) from error


def check_torch_fits(torch: str, torchvision: str, requirements: list[str]) -> None:
    """Raise InstallationError if this torchvision doesn't support the version ``torch``.

    ``requirements`` are the ``Requires-Dist`` entries of torchvision's metadata, which name the
    torch release that its operators were compiled against or, in newer ones, the lowest.
    """
    for requirement in map(Requirement, requirements):
        if requirement.name == "torch" and not requirement.specifier.contains(torch, True):
            raise InstallationError(
                f"torch {torch} and torchvision {torchvision} are incompatible: this "
                f"torchvision requires torch{requirement.specifier}. Install a matching pair: "
                f"{INSTALL_TORCH}"
            )


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _build(package: str) -> str:
    """A package's version with its build tag, as in ``2.9.0+cpu``, without importing it."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return "(not installed)"
    written = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    found = re.search(r"^__version__\s*=\s*['\"](.+)['\"]", written, re.MULTILINE)
    return found.group(1) if found else str(_version(package))
