"""What the system refused, told with what to do about it."""

from __future__ import annotations

import errno

from ernie_export.errors import ErnieExportError, UserError, WorkError

REMEDIES = {
    errno.ENOSPC: "Free some disk space, or choose another disk.",
    errno.EDQUOT: "Free some disk space, or choose another disk.",
    errno.EACCES: "Choose a place that you may read and write.",
    errno.EPERM: "Choose a place that you may read and write.",
    errno.EROFS: "Choose a place that you may read and write.",
    errno.EFBIG: "Raise the limit of file size (ulimit -f), or choose a disk that takes larger files.",
    errno.ENOMEM: "Raise the limit of memory (ulimit -v), or use a machine with more.",
    errno.EMFILE: "Raise the limit of open files (ulimit -n).",
}

#: What is wrong with a path that was given, and not with the machine.
MISTAKES = {
    errno.ENOTDIR: "Choose a path that runs through folders only.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.ELOOP: "Choose a path whose links do not lead in a circle.",
}


def told(error: OSError) -> ErnieExportError:
    what = error.strerror or str(error) or type(error).__name__
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in MISTAKES:
        return UserError(f"{where}{what}", MISTAKES[error.errno])
    return WorkError(f"{where}{what}", REMEDIES.get(error.errno or 0, "Run with --debug to see where."))
