"""The machine's certificates, read beside the imports instead of in between.

aiohttp makes two TLS contexts when it is imported, and each reads all certificates: together they
take as long as a tenth of all that this process imports. OpenSSL reads them without the
interpreter's lock.
"""

from __future__ import annotations

import contextlib
import ssl
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def read_beside() -> Iterator[None]:
    """Contexts made in the block get their default certificates from threads, by its end at last.

    Those that verify nothing need none, and get none.
    """
    threads: list[threading.Thread] = []
    read = ssl.SSLContext.set_default_verify_paths

    def put_off(context: ssl.SSLContext) -> None:
        if context.verify_mode != ssl.CERT_NONE:
            threads.append(threading.Thread(target=read, args=(context,)))
            threads[-1].start()

    ssl.SSLContext.set_default_verify_paths = put_off  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        ssl.SSLContext.set_default_verify_paths = read  # type: ignore[method-assign]
        for thread in threads:
            thread.join()
