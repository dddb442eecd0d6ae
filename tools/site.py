"""``damfs site``: write the configuration of a site cache, and ask a running one whether it does what it must.

Rules: ``setup`` writes files and starts nothing; ``check`` writes nothing anywhere, and asks for what no library has.
"""

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from cache import durable
from manifest.errors import ConfigurationError, Conflict, UsageError
from tools.context import Context
from tools.options import command
from tools.output import plural
from tools.site_setup import AUTHORITIES, CONFIGURATION, UNIT, Site, render

SERVICE_USER = "www-data"
"""Whom nginx works as when it is started as root, on Debian."""

site_app = typer.Typer(help="The cache that the machines of a site share.", no_args_is_help=True, rich_markup_mode=None)


@site_app.command("setup")
@command()
def setup(
    context: Context,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the configuration is written; made if missing.")],
    listen: Annotated[
        list[str] | None,
        typer.Option("--listen", metavar="HOST:PORT", help="Where it listens. Else 0.0.0.0:8480."),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option("--folder", metavar="DIR", help="Where it keeps what it has. Else DIR/cache.")
    ] = None,
    size: Annotated[str, typer.Option("--size", help="How much it keeps: 2TB, or a share of the disk.")] = "80%",
    allow: Annotated[
        list[str] | None,
        typer.Option("--allow", metavar="CIDR", help="Who may ask: an address or a network."),
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option("--tls-cert", metavar="FILE", help="Its certificate (PEM): it then speaks TLS alone.")
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option("--tls-key", metavar="FILE", help="Its key (PEM). Else in --tls-cert.")
    ] = None,
    client_ca: Annotated[
        Path | None,
        typer.Option("--client-ca", metavar="FILE", help="Who may ask: whose certificate comes from here (PEM)."),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option("--store", metavar="URL", help="Where it reaches the store. Else where this machine does."),
    ] = None,
    store_ca: Annotated[
        Path, typer.Option("--store-ca", metavar="FILE", help="The authorities of a store on https:// (PEM).")
    ] = AUTHORITIES,
    user: Annotated[
        str | None,
        typer.Option("--user", help=f"Whom it works as when root starts it. Else {SERVICE_USER} if root sets it up."),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Write over an earlier configuration in DIR.")] = False,
) -> None:
    """Write the nginx configuration of a site cache for the library, and a systemd unit. Starts nothing.

    Who may ask must be said: what is cached is answered without the store's consent. docs/SITE-CACHE.md tells more.
    """
    home = folder.absolute()
    site = Site(
        folder=home,
        cache=(cache or home / "cache").absolute(),
        listen=tuple(listen or ("0.0.0.0:8480",)),
        size=size,
        allow=tuple(allow or ()),
        store=store,
        store_ca=store_ca,
        tls_cert=tls_cert,
        tls_key=tls_key,
        client_ca=client_ca,
        user=user or (SERVICE_USER if os.geteuid() == 0 else None),
    )
    if not context.library.url.startswith("s3:"):
        raise UsageError(f"a site cache stands before a library on s3://, and this one is {context.library.url}")
    files = render(site, context.library)
    _write(site, files, replace=replace)
    if context.json:
        context.output.result({"folder": str(home), "files": [str(home / name) for name in files]})
        return
    where = shlex.quote(str(home))
    scheme = "https" if tls_cert else "http"
    port = site.listen[0].rpartition(":")[2]
    context.output.say(
        f"wrote {home / CONFIGURATION} and {home / UNIT}. Next:",
        f"    nginx -t -c {where}/{CONFIGURATION}",
        f"    systemctl enable --now {where}/{UNIT}",
        f"    damfs site check {scheme}://<this machine>:{port}",
        f'and on the workstations, in config.toml: [site] url = "{scheme}://<this machine>:{port}"',
    )


def _write(site: Site, files: dict[str, str], *, replace: bool) -> None:
    there = [name for name in files if (site.folder / name).exists()]
    if there and not replace:
        raise Conflict(f"{site.folder / there[0]} is there already: give --replace to write over it")
    try:
        for path in (site.folder, site.folder / "temp", site.cache):
            path.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            durable.write(site.folder / name, text.encode())
            (site.folder / name).chmod(0o644)
    except OSError as error:
        raise ConfigurationError(f"{site.folder} cannot be written: {error.strerror}") from error


@site_app.command("check")
@command()
def check(
    context: Context,
    url: Annotated[
        str | None, typer.Argument(metavar="[URL]", help="The site cache. Else the one of the configuration.")
    ] = None,
    ca: Annotated[
        Path | None, typer.Option("--ca", metavar="FILE", help="The authorities of its certificate (PEM).")
    ] = None,
    cert: Annotated[
        Path | None, typer.Option("--cert", metavar="FILE", help="The certificate to be shown to it (PEM).")
    ] = None,
    cert_key: Annotated[
        Path | None, typer.Option("--cert-key", metavar="FILE", help="The key of that (PEM). Else in --cert.")
    ] = None,
) -> None:
    """Ask a running site cache whether it does what a site cache must, from this machine.

    A check that cannot be told from here says so and is no failure.
    """
    from cache.sources.site import SiteCache  # noqa: PLC0415 - urllib3 and obstore, see tools/context.py
    from tools.site_check import checks  # noqa: PLC0415

    settings = context.settings.site
    if settings.kind != "http" and url is None:
        raise UsageError("site.kind is s3: `damfs site check` is for HTTP caches; name one to check it")
    if url is None and settings.url is None:
        raise UsageError("which site cache? Give its URL, or set site.url")
    site = SiteCache(
        context.library,
        url or str(settings.url),
        ca=ca or settings.ca,
        cert=cert or settings.cert,
        key=cert_key or (None if cert else settings.key),
        connect_timeout_s=settings.connect_timeout_s,
    )
    findings = list(checks(site, context.library))
    failed = [finding for finding in findings if finding.error is not None]
    if context.json:
        told = [{"check": f.check, "ok": f.ok, "message": f.message} for f in findings]
        context.output.result({"url": site.url, "ok": not failed, "checks": told})
    else:
        words = {True: "ok", False: "FAILED", None: "not told"}
        context.output.table(("check", "", ""), ((f.check, words[f.ok], f.message) for f in findings))
    if failed and failed[0].error is not None:
        names = ", ".join(finding.check for finding in failed)
        raise type(failed[0].error)(f"{plural(len(failed), 'check')} of {site.url} failed: {names}")
