"""A proxy that can fail as networks and stores do.

It stands between damfs and a real server (S3, a site cache), so the faults are those of the wire and not of a mock:
``server.py`` passes requests on, ``faults.py`` says what may happen to one and who decides it.
"""

from tests.proxy.faults import FAULTS, NONE, Fault, Plan, Request, always, drawn, in_turn, kind_of, timed
from tests.proxy.server import Mode, Proxy, proxy

__all__ = [
    "FAULTS",
    "NONE",
    "Fault",
    "Mode",
    "Plan",
    "Proxy",
    "Request",
    "always",
    "drawn",
    "in_turn",
    "kind_of",
    "proxy",
    "timed",
]
