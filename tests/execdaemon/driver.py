"""What a user of /dev/cachefiles does, with nothing of pagein: the same program on either kernel.

    python driver.py DIRECTORY OPTIONS -- DAEMON...

Runs the daemon, whose cache is DIRECTORY/cache, mounts EROFS with `-o OPTIONS` on DIRECTORY/mnt as
soon as the cache is bound, prints a checksum of each file below as JSON, unmounts, ends the daemon.
"""

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

PATIENCE = 60.0


def main() -> None:
    directory, options, daemon = Path(sys.argv[1]), sys.argv[2], sys.argv[4:]
    target, cache = directory / "mnt", directory / "cache"
    for path in (target, cache):
        path.mkdir(parents=True, exist_ok=True)
    with subprocess.Popen(daemon) as process:
        try:
            give_up = time.monotonic() + PATIENCE
            while not (cache / "graveyard").exists():  # the last thing that bind makes
                if time.monotonic() > give_up or process.poll() is not None:
                    sys.exit("the daemon has not bound its cache")
                time.sleep(0.01)
            mount = ["mount", "-t", "erofs", "-o", options, "none", str(target)]
            # It is bound in a moment; before, there is no cache to mount from.
            while subprocess.run(mount, timeout=PATIENCE).returncode:
                if time.monotonic() > give_up or process.poll() is not None:
                    sys.exit("the image cannot be mounted")
                time.sleep(0.05)
            try:
                print(json.dumps(checksums(target)))
            finally:
                subprocess.run(["umount", str(target)], check=True, timeout=PATIENCE)
        finally:
            process.terminate()


def checksums(tree: Path) -> dict[str, str]:
    files = sorted(path for path in tree.rglob("*") if path.is_file())
    return {
        os.fspath(path.relative_to(tree)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


if __name__ == "__main__":
    main()
