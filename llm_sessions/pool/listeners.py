"""Who listens to what: one table a session, and one for the listeners of all sessions of a pool."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from .._sync import LEAF, make_lock
from ..errors import ConfigurationError
from ..protocol.events import STATE_EVENTS, names_of

__all__ = ["Callback", "Listener", "ListenerTable", "Route"]

Callback = Callable[[Any], object]
Route: TypeAlias = "tuple[tuple[str, ListenerTable, Listener], ...]"

_MAX_ROUTES: Final = 1024  # event types that a table remembers; a server may invent them without end


class Listener:
    """One registration. `once` ones are taken by the first delivery that claims them."""

    __slots__ = ("callback", "internal", "once", "owner")

    def __init__(self, callback: Callback, once: bool, owner: object = None, internal: bool = False) -> None:
        self.callback: Callback = callback
        self.once: bool = once
        self.owner: object = owner
        self.internal: bool = internal


class ListenerTable:
    """Listeners by plain event name. Any thread changes it; dispatchers read it without a lock.

    The tuples in it are replaced, never changed, and `version` grows after every change: a reader that
    keeps what it looked up checks the version before each delivery.
    """

    def __init__(self) -> None:
        # Guards the changes. Rank 40.
        self._lock = make_lock("listeners", LEAF)
        self._by_name: dict[str, tuple[Listener, ...]] = {}
        self._routes: dict[object, Route] = {}  # by event type; forgotten with every change
        self.version: int = 0
        self.want_messages: bool = False  # some listen to messages, not only to state events

    def add(
        self,
        name: str,
        callback: Callback,
        *,
        once: bool = False,
        owner: object = None,
        internal: bool = False,
    ) -> None:
        """Register a callback; the same one may be registered several times.

        Args:
            name: The event.
            callback: What to call.
            once: Whether the first delivery takes it.
            owner: Whose it is, for those who take back only their own.
            internal: The library's own: a user who takes back all of an event does not mean it.

        Raises:
            ConfigurationError: If it is not callable.
        """
        check_callback(callback)
        with self._lock:
            self._replace(name, (*self._by_name.get(name, ()), Listener(callback, once, owner, internal)))
            self.version += 1

    def remove(self, name: str, callback: Callback | None, owner: object = None) -> bool:
        """Take back every registration of a callback, or of all with None; say whether there was one.

        Args:
            name: The event.
            callback: Which; None for all but internal ones.
            owner: Only this one's, internal or not; None for anybody's.

        Raises:
            ConfigurationError: If it is neither None nor callable.
        """
        if callback is not None:
            check_callback(callback)
        before = self.named(name)
        # Not under the lock: how callbacks compare is user code.
        gone = [
            one
            for one in before
            if (owner is None or one.owner is owner)
            and (not (one.internal and owner is None) if callback is None else one.callback == callback)
        ]
        with self._lock:
            now = self._by_name.get(name, ())
            kept = tuple(one for one in now if not any(one is other for other in gone))
            self._replace(name, kept)
            removed = len(kept) != len(now)
            if removed:
                self.version += 1
        return removed

    def remove_owned(self, owner: object) -> None:
        """Take back all that is this owner's."""
        with self._lock:
            names = list(self._by_name)
        for name in names:
            self.remove(name, None, owner)

    def claim(self, name: str, listener: Listener) -> bool:
        """Take a `once` listener for a delivery; False if another thread has had it or it was removed."""
        with self._lock:
            if not self.has(name, listener):
                return False
            self._replace(name, tuple(one for one in self.named(name) if one is not listener))
            self.version += 1
        return True

    def _replace(self, name: str, kept: tuple[Listener, ...]) -> None:
        if kept:
            self._by_name[name] = kept
        else:
            self._by_name.pop(name, None)
        self._routes = {}  # another dict: whoever computes a route at this moment keeps it in the old one
        self.want_messages = any(one not in STATE_EVENTS for one in self._by_name)

    def has(self, name: str, listener: Listener) -> bool:
        """Say whether a registration is still there: an earlier listener may have taken it back."""
        return any(one is listener for one in self.named(name))

    def route(self, event_type: object) -> Route:
        """Return the listeners that get a message with this `data.eventType`, in order."""
        routes = self._routes
        route = routes.get(event_type)
        if route is None:
            if len(routes) >= _MAX_ROUTES:
                routes.clear()
            route = routes[event_type] = tuple(
                (name, self, listener) for name in names_of(event_type) for listener in self.named(name)
            )
        return route

    def named(self, name: str) -> tuple[Listener, ...]:
        """Return the listeners of an event, in the order of their registration."""
        return self._by_name.get(name, ())


def check_callback(callback: object) -> None:
    """Refuse what cannot be called, and what would return a coroutine that nobody awaits.

    Raises:
        ConfigurationError: If it is not callable, or a coroutine function.
    """
    if not callable(callback):
        raise ConfigurationError("callback", f"must be callable, not {type(callback).__name__}")
    if any(map(inspect.iscoroutinefunction, (callback, type(callback).__call__))):
        raise ConfigurationError("callback", "must not be a coroutine function: nothing here awaits it")
