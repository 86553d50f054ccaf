"""A file system of a few MB for the rest of a process, to run out of space in."""

import ctypes
import os
import resource
from contextlib import suppress
from pathlib import Path

CLONE_NEWNS, CLONE_NEWUSER = 0x0002_0000, 0x1000_0000  # <linux/sched.h>
MS_PRIVATE_REC = 0x4_4000  # <linux/mount.h>: no other process sees the mount, and it ends with this process
PAGE = 4_096


def limit_space(folder: Path, megabytes: int, *, owner: int) -> None:
    """Mount a small file system at `folder`, in a mount namespace of this process.

    Where that is not permitted, limit the size of files to half of it instead (RLIMIT_FSIZE, as a quota does).
    """
    if not _mount(folder, megabytes, owner):
        limit_file_size(megabytes * 2**20 // 2)


def limit_file_size(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def fill_up(folder: Path) -> Path:
    """Write a file until there is no space left, or until the limit of a file's size; return the file."""
    path = folder / "filler"
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(PAGE))
    return path


def _mount(folder: Path, megabytes: int, owner: int) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "unshare"):
        return False
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(CLONE_NEWNS | (CLONE_NEWUSER if user else 0)):
        return False
    if user:  # in its own user namespace, this user may mount; the ids stay the same
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    options = f"size={megabytes}m,uid={owner},gid={owner if user == 0 else group}"
    libc.mount(b"none", b"/", None, MS_PRIVATE_REC, None)
    mounted = libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, options.encode())
    return bool(mounted == 0)
