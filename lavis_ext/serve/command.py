"""``python -m lavis_ext.serve``: the page, on this machine alone unless ``--host`` opens it."""

import argparse
import socket
from collections.abc import Sequence
from importlib.util import find_spec

from lavis_ext.ask.arguments import add_model_arguments, pipeline_of, print_note
from lavis_ext.common.errors import UserError, command

NEEDED = ("starlette", "uvicorn", "python_multipart")
LOCAL = "127.0.0.1"
PORT = 7860


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Serve the page until Ctrl-C."""
    arguments = _parser().parse_args(argv)
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise UserError(
            f"The page needs {', '.join(missing)}, which isn't installed: "
            "pip install 'lavis_ext[serve]'."
        )
    # Before the model is loaded, so that a port in use is known at once.
    listening = _listening(arguments.host, arguments.port)
    import uvicorn

    from lavis_ext.serve.app import application

    with listening:
        app = application(pipeline_of(arguments), hosts=_hosts(arguments.host))
        if arguments.host != LOCAL:
            print_note(f"whoever reaches {arguments.host} can use the page; it has no password.")
        port = listening.getsockname()[1]
        print(f"http://{arguments.host}:{port} (Ctrl-C ends it)", flush=True)
        config = uvicorn.Config(app, log_level="warning", server_header=False)
        uvicorn.Server(config).run(sockets=[listening])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lavis_ext.serve",
        description="Serve a page on this machine where one drops a picture and asks.",
    )
    add_model_arguments(parser)
    parser.add_argument(
        "--host",
        default=LOCAL,
        help="address to listen at (%(default)s, which only this machine reaches)",
    )
    parser.add_argument(
        "--port", type=int, default=PORT, help="port (%(default)s); 0 takes a free one"
    )
    return parser


def _hosts(host: str) -> tuple[str, ...]:
    """Names of this page: of this machine, or any if others may reach it."""
    return (LOCAL, "localhost") if host in (LOCAL, "localhost") else ("*",)


def _listening(host: str, port: int) -> socket.socket:
    """A socket that is bound. Raises UserError if it can't be."""
    try:
        return socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"--host {host} --port {port}: can't listen there ({reason}); name another port."
        ) from None
