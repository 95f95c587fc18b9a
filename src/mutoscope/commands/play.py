"""mutoscope play: the page on which worlds are played and generation is watched."""

import socket
from contextlib import closing

import mutoscope.commands.common as common
from mutoscope.errors import UserError, reason

INSTALL = "The page needs fastapi, uvicorn and websockets; install them with: pip install 'mutoscope[playground]'"
ANY_PORT = 0
BACKLOG = 2048  # as uvicorn's own


def play(
    model: str | None = None,
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8321,
    token: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    active_sessions: int = 8,
    loaded_models: int = 4,
    compile: bool = False,
) -> common.Report:
    """Serve a page on which worlds are played and generation is watched, until Ctrl-C.

    The page offers MODEL first and all bundled models. Other programs use the same server: /v1/models, /v1/videos and
    /v1/realtime/video (see docs/playground.md).

    Args:
        model: bundled name or model folder that the page opens with (default: a bundled world)
        host: address to listen on; any other than this machine's own needs the token that is printed
        port: of the server; 0: any free one
        token: what clients must show (default: none on this machine itself, else a new one)
        device: where the models run
        threads: processor threads of a model (default: 1; a second one gives small models a tenth)
        active_sessions: people who generate in turns; further ones wait
        loaded_models: models kept in memory
        compile: compile a model's steps when it is first used, which takes minutes once and is kept for the next time
    """
    common.check_range("--port", port, low=0, high=65535)
    common.check_range("--threads", threads, low=1, high=4096)
    common.check_range("--active-sessions", active_sessions, low=1, high=1000)
    common.check_range("--loaded-models", loaded_models, low=1, high=100)
    if not host:
        raise UserError("--host must name an address: 127.0.0.1 for this machine alone, 0.0.0.0 for all.")
    try:
        import fastapi  # noqa: F401
        import uvicorn
        import websockets  # noqa: F401
    except ImportError:
        raise UserError(INSTALL) from None
    import torch

    from mutoscope.playground.app import Server, create_app
    from mutoscope.playground.guard import Guard
    from mutoscope.playground.limits import Limits
    from mutoscope.playground.messages import MAX_TEXT
    from mutoscope.playground.shelf import Shelf, served_folders

    common.parse_device(device)
    limits = Limits(active_sessions=active_sessions, loaded_models=loaded_models)
    folders = served_folders([] if model is None else [model])
    shelf = Shelf(folders, loaded_models, limits.unused_seconds, device, compile=compile)
    guard = Guard.of(host, token)
    torch.set_num_threads(threads or 1)
    with closing(listening(host, port)) as listener:
        address = address_of(host, listener.getsockname()[1], guard.token)
        print(f"Mutoscope plays at {address}\nCtrl-C ends it.", flush=True)
        config = uvicorn.Config(
            create_app(Server(shelf, guard, limits, opening=shelf.names[0])),
            log_level="warning",
            ws="websockets-sansio",
            ws_max_size=4 * MAX_TEXT,
            timeout_graceful_shutdown=2,
            server_header=False,
        )
        uvicorn.Server(config).run(sockets=[listener])
    return {"address": address}


def listening(host: str, port: int) -> socket.socket:
    """A socket at which clients may call already. Raises UserError where the address cannot be used."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.listen(BACKLOG)  # whoever reads the printed address may call before the server answers
    except (OSError, UnicodeError) as error:
        bound.close()
        where = f"{host}:{port}"
        raise UserError(f"Nothing can listen at {where} ({reason(error)}): choose another --host or --port.") from None
    return bound


def address_of(host: str, port: int, token: str | None) -> str:
    """What to type into a browser."""
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/" + ("" if token is None else f"?token={token}")


def summary(report: common.Report) -> str:
    return f"{report['address']} has ended"
