"""nginx as a plain cache in front of an S3 server that asks for no signature: the same for damfs and for the others.

What damfs ships (systemd/site-cache) passes nothing but what damfs asks for: curl, s3fs and rclone find nothing there.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from tests.harness import wait_until

NGINX = """
{user}
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxied;
    proxy_cache_path {folder}/cache levels=2 keys_zone=site:16m max_size=50g use_temp_path=off;
    upstream store {{ server {target}; keepalive 32; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://store;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host {target};
        }}
        location ~ /(chunks|recipes|changes|plain)/ {{
            proxy_pass http://store;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host {target};
            proxy_cache site;
            proxy_cache_key $uri;
            proxy_cache_lock on;
            proxy_cache_valid 200 365d;
        }}
    }}
}}
"""


@contextmanager
def cached(folder: Path, target: str) -> Iterator[str]:
    """Its URL; its files are in ``folder``, which is made. ``target`` is the URL of the server behind it."""
    folder.mkdir(mode=0o755)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    user = "user root;" if os.geteuid() == 0 else ""  # its workers have to come at its folder
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(user=user, folder=folder, target=urlsplit(target).netloc, port=port))
    with subprocess.Popen(["nginx", "-c", config], stdin=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: _listens(port), "nginx to listen", 30)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
