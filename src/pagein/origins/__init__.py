"""Where bytes come from: local files and web servers that answer ranged requests.

Importing this package is cheap: aiohttp is imported when an http(s) source is first used.
"""

from pagein.origins.base import Origin, OriginError, redact
from pagein.origins.identity import Identity, open_origin, resolve

__all__ = ["Identity", "Origin", "OriginError", "open_origin", "redact", "resolve"]
