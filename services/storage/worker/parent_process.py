"""Stop a worker when the process that started it ends."""

import threading
from typing import IO

from .loop import Worker


def stop_at_end_of(stream: IO[bytes], worker: Worker) -> None:
    """Stop `worker` once `stream`, a pipe such as standard input, is at its end; return at once.

    The operating system closes the pipe when the process at its other end dies, however it dies.
    """

    def wait() -> None:
        while stream.read(1):
            pass
        worker.stop()

    threading.Thread(target=wait, name=f"parent of {worker.worker_id}", daemon=True).start()
