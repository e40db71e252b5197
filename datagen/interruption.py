"""Ctrl-C as a wish to stop soon, not at once: the batch in hand is finished, and a second one is obeyed immediately."""

import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_signals(announce: Callable[[], None]) -> Generator[Callable[[], bool]]:
    """Within the block, the first SIGINT or SIGTERM calls `announce` and turns the yielded question to True.

    The next signal does what it did before the block. Outside the main thread Python lets nobody handle signals: there
    the answer stays False.
    """
    received = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield received.is_set
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def receive(number: int, frame: FrameType | None) -> None:
        del number, frame
        restore()
        received.set()
        announce()

    for number in _SIGNALS:
        signal.signal(number, receive)
    try:
        yield received.is_set
    finally:
        restore()
