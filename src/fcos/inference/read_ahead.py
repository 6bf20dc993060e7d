"""Iterator that runs in a thread ahead of its consumer, with a bounded number of waiting items."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")
_WAKE_UP = 0.5  # seconds; on Windows, Ctrl-C does not interrupt a wait without a limit
_END = 1.0  # seconds to wait for the thread; it may be reading from a camera or a terminal


class ReadAhead(Generic[Item]):
    """Iterator that runs in a thread. The order stays; an error is raised after the items before it.

    Args:
        items: iterator to run. It is closed in its thread.
        size: largest number of waiting items.
        may_drop: whether a waiting item may be dropped for a newer one if `size` items are waiting, as for cameras.
    """

    def __init__(self, items: Iterator[Item], size: int, *, may_drop: Callable[[Item], bool] = lambda _: False):
        self._items = items
        self._size = size
        self._may_drop = may_drop
        self._waiting: deque[Item] = deque()
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._is_finished = self._is_closed = False
        # A daemon: it may wait forever for a camera or a terminal.
        self._thread = threading.Thread(target=self._run, daemon=True, name="fcos read ahead")
        self._thread.start()

    def is_ready(self) -> bool:
        """Return whether `take` returns at once."""
        return bool(self._waiting) or self._is_finished

    def take(self, limit: int) -> list[Item]:
        """Wait for an item and return it with those that are ready, at most `limit`; an empty list at the end."""
        with self._changed:
            while not self._waiting and not self._is_finished:
                self._changed.wait(_WAKE_UP)
            items = [self._waiting.popleft() for _ in range(min(limit, len(self._waiting)))]
            self._changed.notify_all()
        if not items and self._error is not None:
            raise self._error
        return items

    def close(self) -> None:
        """Stop the thread after its current item, and drop the waiting items."""
        with self._changed:
            self._is_closed = True
            self._waiting.clear()
            self._changed.notify_all()
        self._thread.join(_END)

    def _run(self) -> None:
        try:
            for item in self._items:
                if not self._put(item):
                    break
            close = getattr(self._items, "close", None)  # of a generator
            if close is not None:
                close()
        except BaseException as error:
            self._error = error
        with self._changed:
            self._is_finished = True
            self._changed.notify_all()

    def _put(self, item: Item) -> bool:
        """Append an item as soon as there is room; return False if the consumer is gone."""
        with self._changed:
            while len(self._waiting) >= self._size and not self._is_closed:
                if self._may_drop(self._waiting[0]):
                    self._waiting.popleft()
                else:
                    self._changed.wait()
            if not self._is_closed:
                self._waiting.append(item)
            self._changed.notify_all()
            return not self._is_closed
