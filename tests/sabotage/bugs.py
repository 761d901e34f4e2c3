"""The bugs: one line of the kernel half or of the daemon each, changed as by a slip."""

from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
_PACKAGE = Path("src/pagein")


@dataclass(frozen=True)
class Bug:
    """Replace `right`, which stands once in `file` (below src/pagein), by `wrong`."""

    name: str
    file: str
    right: str
    wrong: str

    def plant(self, top: Path) -> None:
        """Change the file of the checkout at `top`. Raises ValueError if it does not fit."""
        path = top / _PACKAGE / self.file
        text = path.read_text()
        if text.count(self.right) != 1:
            raise ValueError(
                f"{self.name}: {self.right!r} is in {self.file} {text.count(self.right)} times"
            )
        path.write_text(text.replace(self.right, self.wrong))


_ONDEMAND = "cachefiles/ondemand.py"
_REQUESTS = "cachefiles/requests.py"
_DEVICE = "cachefiles/device.py"
_OPENFILES = "cachefiles/openfiles.py"
_LOOP = "daemon/loop.py"

BUGS = (
    # ---- ids, and who may answer what
    Bug(
        "msg_id used again at once",
        _REQUESTS,
        "self._next_id = (taken + 1) % ID_LIMIT",
        "self._next_id = 0",
    ),
    Bug(
        "restore keeps the old object_id",
        _ONDEMAND,
        "        self._next_object_id = self._next_object_id % _OBJECT_ID_LIMIT + 1\n"
        "        self.objects[obj.ondemand_id] = obj",
        "        pass\n        self.objects[obj.ondemand_id] = obj",
    ),
    Bug(
        "copen of an OPEN nobody has read",
        _ONDEMAND,
        "or request.object.ondemand_id == NEVER_OPENED",
        "or False",
    ),
    Bug(
        "stale copen completes a READ",
        _ONDEMAND,
        "or not answers(Answer.COPEN, request.opcode)",
        "or False",
    ),
    Bug(
        "CREAD completes an OPEN",
        _ONDEMAND,
        "or not answers(Answer.CREAD, request.opcode)",
        "or False",
    ),
    Bug(
        "CREAD on another object's fd",
        _ONDEMAND,
        "or request.object is not obj\n",
        "or False\n",
    ),
    Bug(
        "copen of a closed fd succeeds",
        _ONDEMAND,
        "self._fail_open(request, errno.EBADFD)",
        "self.complete(request)",
    ),
    # ---- delivery
    Bug("not round robin", _REQUESTS, "self._cursor = request.msg_id + 1", "self._cursor = 0"),
    Bug(
        "a small buffer not refused",
        _ONDEMAND,
        "if size < request.message_len:",
        "if False:",
    ),
    Bug("poll busy while reopening", "protocol/states.py", '!= "no"', '!= ""'),
    Bug(
        "no OPEN for a READ of a closed object",
        _ONDEMAND,
        "obj.worker = asyncio.get_running_loop().create_task(self._reopen(obj))",
        "pass",
    ),
    Bug(
        "a live object opened twice",
        _ONDEMAND,
        "if obj.live_id is not None:\n            self.complete(request, errno.EEXIST)",
        "if False:\n            self.complete(request, errno.EEXIST)",
    ),
    Bug(
        "CLOSE not delivered",
        _ONDEMAND,
        "if obj.state is ObjectState.OPEN and not self.dead:",
        "if False and not self.dead:",
    ),
    Bug(
        "restore forgets what was delivered",
        _REQUESTS,
        "            request.event(RequestEvent.RESTORE)\n            self._place(request)",
        "            request.event(RequestEvent.RESTORE)\n            pass",
    ),
    # ---- readers
    Bug(
        "no second look after CREAD",
        "fscache.py",
        "if not cookie.file.present.covers(asked.off, asked.off + PAGE_SIZE):",
        "if False:",
    ),
    Bug(
        "a reader of more than SERVE brought is answered",
        "cachefiles/serving.py",
        "if covered and request.at_once is not None:",
        "if request.at_once is not None:",
    ),
    Bug(
        "SERVE does not complete its READ",
        "cachefiles/serving.py",
        "            self.file.complete(self._request)",
        "            pass",
    ),
    Bug(
        "a message is given to who waited before a restore",
        "cachefiles/ondemand.py",
        "self.restored += 1",
        "pass",
    ),
    Bug(
        "a message that came with an answer is lost",
        "daemon/poller.py",
        "            coming = self._round(coming)",
        "            coming = b''",
    ),
    Bug(
        "a killed reader's request stays",
        _ONDEMAND,
        "            late.cancel()\n            self.complete(request, errno.EIO)",
        "            late.cancel()\n            pass",
    ),
    Bug(
        "a dead cache goes on asking",
        _ONDEMAND,
        "if self.dead or obj.state is ObjectState.DROPPING:",
        "if obj.state is ObjectState.DROPPING:",
    ),
    # ---- the device and the anonymous fd
    Bug(
        "opened twice",
        _DEVICE,
        "if self.session is not None:\n            raise",
        "if False:\n            raise",
    ),
    Bug(
        "alignment not checked",
        "cachefiles/anonymous.py",
        "if offset % PAGE_SIZE:\n            raise error(errno.ENOBUFS)",
        "if offset % 512:\n            raise error(errno.ENOBUFS)",
    ),
    Bug(
        "ondemand mode forgotten by a failed bind",
        _DEVICE,
        "session.ondemand_mode = True  # sticky",
        "pass  # sticky",
    ),
    Bug(
        "a bad size leaves the OPEN",
        _ONDEMAND,
        "self._fail_open(request, problem.errno or errno.EINVAL)",
        "pass",
    ),
    # ---- text and names
    Bug(
        "newline first is a command",
        "protocol/commands.py",
        "if newline and not line:",
        "if False and not line:",
    ),
    Bug(
        "object name padded wrongly",
        "cachefiles/namei.py",
        "pad = -len(key) % 3",
        "pad = len(key) % 3",
    ),
    Bug(
        "a dirty cache file believed",
        "cachefiles/xattr.py",
        "and self.content != _CONTENT_DIRTY",
        "and True",
    ),
    # ---- room, and what makes some
    Bug(
        "culling ends at the cull mark",
        "protocol/space.py",
        "return culling and not self.runs(files, blocks)",
        "return False",
    ),
    Bug(
        "writes below the stop mark",
        "cachefiles/backing.py",
        "self._check_room(fd, len(data))",
        "pass",
    ),
    Bug(
        "cull takes what is being looked up",
        _DEVICE,
        "for obj in self.files | self.looking_up:",
        "for obj in self.files:",
    ),
    Bug(
        "cull acts on any directory",
        "cachefiles/culling.py",
        'if parts[0] not in (b".", namei.CACHE_DIR, namei.GRAVEYARD_DIR):',
        "if False:",
    ),
    Bug(
        "the last used is culled first",
        "culler/idle.py",
        "key=lambda file: (file.used, file.path)",
        "key=lambda file: (-file.used, file.path)",
    ),
    Bug(
        "a file culled while it is opened",
        "cachefiles/inuse.py",
        "if not os.fstat(fd).st_nlink:",
        "if False:",
    ),
    # ---- the daemon
    Bug(
        "CLOEXEC forgotten",
        "daemon/poller.py",
        "os.set_inheritable(message.fd, False)",
        "pass",
    ),
    Bug(
        "nothing to read taken for the end",
        "daemon/poller.py",
        "            if not raw:\n                break",
        "            if not raw:\n                raise OSError(errno.EIO, '')",
    ),
    Bug(
        "a READ that failed not completed",
        _LOOP,
        "self._tally.failed_reads += 1  # the fill has logged it; the hole says it to the kernel",
        "return",
    ),
    Bug(
        "READs not rounded to pages",
        "daemon/ranges.py",
        "start = min(off // PAGE_SIZE * PAGE_SIZE, self._limit)",
        "start = min(off, self._limit)",
    ),
    Bug(
        "a refused OPEN not answered",
        _LOOP,
        "await self._copen(device, message, -errno_of(exc))\n            # After",
        "pass\n            # After",
    ),
    Bug(
        "fds stay open after CLOSE",
        _LOOP,
        "            with contextlib.suppress(OSError):\n                await anon.close()",
        "            with contextlib.suppress(OSError):\n                pass",
    ),
    Bug(
        "no restore of a bound cache",
        _LOOP,
        "await device.command(commands.restore())",
        "pass",
    ),
    Bug(
        "misaligned writes passed on",
        "daemon/filedevice.py",
        "if offset % PAGE_SIZE or len(data) % PAGE_SIZE:",
        "if False:",
    ),
    # ---- the queue, the fds, and what is left behind
    Bug(
        "READs of an object that is open again stay aside",
        _REQUESTS,
        "if readable(Opcode.READ, obj.state) != before:",
        "if readable(Opcode.READ, obj.state) < before:",
    ),
    Bug(
        "an answered request stays in the queue",
        _REQUESTS,
        "        del self.pending[request.msg_id]\n        self._set_aside(request.msg_id)",
        "        del self.pending[request.msg_id]\n        pass",
    ),
    Bug(
        "withdrawal forgets who reads",
        _ONDEMAND,
        "for request in self.requests.of(obj):",
        "for request in self.requests.of(obj)[1:]:",
    ),
    Bug(
        "a file replaced while it had no fd is read",
        _OPENFILES,
        "if (found.st_dev, found.st_ino) != self._identity:",
        "if found.st_dev != self._identity[0]:",
    ),
    Bug(
        "a file in use gives its fd away",
        _OPENFILES,
        "            self._pool.idle.pop(self, None)\n        return self.fd",
        "            pass\n        return self.fd",
    ),
    Bug(
        "idle files keep their fds",
        _OPENFILES,
        "and self.opened > self.limit and self.idle:",
        "and self.opened > 2 * self.limit and self.idle:",
    ),
    Bug(
        "what a failed write left is believed",
        "cachefiles/backing.py",
        "written -= written % PAGE_SIZE\n",
        "written -= 0\n",
    ),
    Bug(
        "events are kept while they are off",
        _ONDEMAND,
        "        if trace.on:\n            _trace_delivery(request)",
        "        if True:\n            _trace_delivery(request)",
    ),
)
