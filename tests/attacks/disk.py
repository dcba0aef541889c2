"""Stand-ins for the ``os`` that saerl_fast.durable calls: they note, refuse or interrupt any call that changes a disk."""

import errno
import os

CALLS = ("open", "write", "fsync", "link", "unlink", "rename", "replace", "mkdir")


class StandIn:
    """All of ``os``; around each call of CALLS come ``before`` and ``after``. A file is named by its path."""

    def __init__(self):
        self._paths = {}

    def __getattr__(self, name):
        real = getattr(os, name)
        return (lambda *arguments: self._call(name, real, arguments)) if name in CALLS else real

    def _call(self, name, real, arguments):
        path = self._paths.get(arguments[0], "") if name in ("write", "fsync") else str(arguments[-1])
        if name in ("open", "mkdir"):
            path = str(arguments[0])
        self.before(name, path, arguments)
        result = real(*arguments)
        if name == "open":
            self._paths[result] = path
        self.after(name, path, arguments)
        return result

    def before(self, name, path, arguments):
        pass

    def after(self, name, path, arguments):
        pass


class FullDisk(StandIn):
    """The n-th call fails for want of room; after half of the bytes, where it is a write."""

    def __init__(self, fails_at, code=errno.ENOSPC):
        super().__init__()
        self.left, self.code, self.failed = fails_at, code, None

    def before(self, name, path, arguments):
        if name in ("unlink", "rename", "replace") or (name == "open" and not arguments[1] & os.O_CREAT):
            return  # these take no room
        self.left -= 1
        if self.left < 0 and self.failed is None:
            self.failed = (name, path)
            if name == "write":
                os.write(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
            raise OSError(self.code, os.strerror(self.code), path)


class Events(StandIn):
    """Everything that happened to the disk, in order: (name, path, what else it takes to do it again)."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def after(self, name, path, arguments):
        if name == "open":
            if arguments[1] & os.O_CREAT:
                self.seen.append(("create", path, None))
        elif name == "write":
            self.seen.append(("write", path, bytes(arguments[1])))
        elif name in ("link", "rename", "replace"):
            self.seen.append((name, path, str(arguments[0])))
        else:
            self.seen.append((name, path, None))
