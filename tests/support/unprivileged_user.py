"""Work as a user without privileges, for whom the permissions of files hold; root passes them all."""

import os
import shutil
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65_534


def as_nobody(work: Callable[[], None], prepare: Callable[[], None] = lambda: None) -> None:
    """Run `work` in a forked process of the user nobody, if this one is root's; it must not raise.

    `prepare` runs in that process before, with the privileges of this one.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: pytest may have threads
        pid = os.fork()
    if pid:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        return
    try:
        prepare()
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        work()
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
        os._exit(1)
    os._exit(0)


@contextmanager
def public_folder() -> Iterator[Path]:
    """Make a folder that belongs to the user of as_nobody(); pytest's own folders are closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="dgx-public-"))
    try:
        give_to_nobody(folder)
        yield folder
    finally:
        for path in [folder, *folder.rglob("*")]:
            if path.is_dir():
                path.chmod(0o700)
        shutil.rmtree(folder)


def give_to_nobody(path: Path) -> None:
    if os.geteuid() == 0:
        os.chown(path, NOBODY, NOBODY)
