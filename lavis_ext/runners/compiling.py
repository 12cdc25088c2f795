"""``run.compile``: programs made of a model by ``torch.compile``."""

import os
import shutil
from typing import Any

from lavis_ext.common.errors import UserError


def compile_model(model: Any, backend: str) -> None:
    """Compile what training passes, on its first batches, with a backend of ``torch.compile``.

    Raises UserError for a model that doesn't say what can be compiled, and where inductor would
    find no C++ compiler in the middle of the first step.
    """
    if not hasattr(model, "compile_parts"):
        raise UserError(
            f"run.compile: {type(model).__name__} has no `compile_parts`; leave run.compile out."
        )
    compilers = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++"]
    if backend == "inductor" and not any(map(shutil.which, compilers)):
        raise UserError(
            f"run.compile: inductor needs a C++ compiler, and finds no {' or '.join(compilers)}. "
            "Install one, or name it in the environment variable CXX, or leave run.compile out."
        )
    model.compile_parts(backend)
