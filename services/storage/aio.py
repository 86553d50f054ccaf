"""The functions for async callers. The work is done in threads of the event loop, by the same code as everywhere else.

A watch takes no thread: the reader that all watches of a storage share hands its states to the event loop.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import closing, suppress
from functools import partial
from typing import Final, TypeVar

from sqlalchemy.orm import Session

from .defaults import TRANSACTION_ATTEMPTS
from .engine import Storage, get_storage
from .models import Generation
from .watching import Delivery, Watch, read_generation, unpack, validate_timeout

__all__ = ["run_in_transaction", "wait_for_generation", "watch_generation"]

# At the same time, for each event loop. Threads of Python take turns, so more of them would only delay the event loop.
CONCURRENT_CALLS: Final = 4

Result = TypeVar("Result")


async def run_in_transaction(
    fn: Callable[[Session], Result],
    *,
    attempts: int = TRANSACTION_ATTEMPTS,
    read_only: bool = False,
    storage: Storage | None = None,
) -> Result:
    """Return what `fn(session)` returns, once its transaction is committed; see Storage.run_in_transaction().

    `fn` is a plain function and runs in a thread. If the caller is cancelled, the transaction is rolled back unless it
    is being committed, and the CancelledError is raised once `fn` has returned and the transaction is over.
    """
    storage = storage or get_storage()
    is_cancelled = False

    def work(session: Session) -> Result:
        if is_cancelled:
            raise _RollBackError
        result = fn(session)
        if is_cancelled:
            raise _RollBackError
        return result

    def cancel() -> None:
        nonlocal is_cancelled
        is_cancelled = True

    return await _in_thread(partial(storage.run_in_transaction, work, attempts=attempts, read_only=read_only), cancel)


async def wait_for_generation(
    generation_id: str, *, timeout: float | None = None, storage: Storage | None = None
) -> Generation:
    """Return the generation once it is finished; see services.storage.wait_for_generation()."""
    async with asyncio.timeout(validate_timeout(timeout)):
        states = watch_generation(generation_id, storage=storage)
        try:
            async for generation in states:
                if generation.is_finished:
                    return generation
        finally:
            await states.aclose()
    raise LookupError(f"the generation {generation_id} was deleted while it was waited for")


async def watch_generation(generation_id: str, *, storage: Storage | None = None) -> AsyncGenerator[Generation]:
    """Yield the generation as it is now, and again after each change; see services.storage.watch_generation().

    Raises LookupError for an unknown id when the iteration begins.
    """
    storage = storage or get_storage()
    generation = await _in_thread(partial(read_generation, storage, generation_id))
    yield generation
    if generation.is_finished:
        return
    deliveries: asyncio.Queue[Delivery] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def deliver(delivery: Delivery) -> None:
        with suppress(RuntimeError):  # the event loop is closed
            loop.call_soon_threadsafe(deliveries.put_nowait, delivery)

    with closing(Watch(storage, generation, deliver)):
        while (state := unpack(await deliveries.get())) is not None:
            yield state
            if state.is_finished:
                return


class _RollBackError(Exception):
    """Rolls back the transaction of a caller that was cancelled."""


async def _in_thread(function: Callable[[], Result], cancel: Callable[[], None] = lambda: None) -> Result:
    """Return what `function` returns in a thread; when cancelled, call `cancel` and wait until the thread is done."""
    loop = asyncio.get_running_loop()
    async with _limit(loop):
        running = loop.run_in_executor(None, function)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            cancel()
            while not running.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([running])
            if not running.cancelled():
                running.exception()  # or asyncio would log that nobody has seen it
            raise


def _limit(loop: asyncio.AbstractEventLoop) -> asyncio.Semaphore:
    if loop not in _limits:
        for closed in [known for known in list(_limits) if known.is_closed()]:
            _limits.pop(closed, None)
    return _limits.setdefault(loop, asyncio.Semaphore(CONCURRENT_CALLS))


_limits: dict[asyncio.AbstractEventLoop, asyncio.Semaphore] = {}
