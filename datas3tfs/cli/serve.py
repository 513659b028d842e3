"""`datas3tfs serve`: the HTTP API."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from datas3tfs import config
from datas3tfs.app.daemon import Readiness
from datas3tfs.cli.context import log_to, settings
from datas3tfs.cli.running import run

Addr = Annotated[
    str | None,
    typer.Option(help="Where to listen; port 0 takes a free one.", show_default="127.0.0.1:8765"),
]
TlsCert = Annotated[Path | None, typer.Option(help="The certificate and its chain (PEM).")]
TlsKey = Annotated[Path | None, typer.Option(help="Its key (PEM, mode 600).")]
Auth = Annotated[
    str | None,
    typer.Option(
        help="Who may use it: token (whoever has one), none (everybody), "
        "auto (token as soon as there are tokens, or others than this machine can connect).",
        show_default="auto",
    ),
]
AllowEndpoint = Annotated[
    list[str] | None,
    typer.Option(help="An S3 endpoint (host, host:port, or *) that may be registered; may be repeated."),
]
UrlLife = Annotated[
    int | None, typer.Option(help="Seconds that presigned URLs are valid.", show_default="86400")
]


def serve(
    ctx: typer.Context,
    addr: Addr = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    auth: Auth = None,
    allow_endpoint: AllowEndpoint = None,
    url_life: UrlLife = None,
    no_sweep: Annotated[bool, typer.Option("--no-sweep", help="Leave the sweeping to others.")] = False,
    log_file: Annotated[Path | None, typer.Option(help="Where log lines go instead of stderr.")] = None,
) -> None:
    """Answer the HTTP API until stopped by SIGTERM or Ctrl-C; print the URL when ready."""
    from datas3tfs.app.server import serve_api  # the web framework takes half a second to load

    chosen = settings(
        ctx,
        addr=addr,
        tls_cert=tls_cert,
        tls_key=tls_key,
        auth=auth,
        allow_endpoints=tuple(allow_endpoint) if allow_endpoint else None,
        url_life=url_life,
    )
    log_to(log_file, chosen.log_level)
    readiness = Readiness(None, config.notify_socket())
    run(lambda: serve_api(chosen, readiness, _show, sweeps=not no_sweep), stop_on=())


def _show(url: str) -> None:
    print(url, flush=True)
