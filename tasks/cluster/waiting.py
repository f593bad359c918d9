"""Items that wait for a worker, in groups that share work: read a bounded number ahead, drawn group by group."""

from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")


@dataclass(eq=False)
class Ticket(Generic[ItemT]):
    """One item on its way, and what has happened to it."""

    item: ItemT
    group: Hashable = field(default_factory=object)
    """Items with equal groups share work. Without a word about it, an item is a group of its own."""
    attempts: int = 0
    """How often a worker was given the item and did not give it back unbegun."""
    deaths: int = 0
    losses: int = 0


@dataclass(eq=False)
class _Group(Generic[ItemT]):
    """What waits of a group. It is forgotten when nothing waits and nobody draws from it."""

    key: Hashable
    tickets: deque[Ticket[ItemT]] = field(default_factory=deque)
    num_drawers: int = 0


@dataclass(eq=False)
class _Drawer(Generic[ItemT]):
    """A worker at a group, and how many items it has drawn there in a row."""

    group: _Group[ItemT]
    num_drawn: int = 0


class WaitingItems(Generic[ItemT]):
    """What has been read and is not yet sent, at most `read_ahead` items, and what came back.

    A worker draws from one group until nothing of it waits, then from the next that nobody draws from, in the order of
    the groups' first items; if there is none, it shares the largest. Nobody draws more than `read_ahead` items from one
    group in a row, so an endless group does not keep the others waiting.
    """

    def __init__(
        self, items: Iterable[ItemT], read_ahead: int, affinity: Callable[[ItemT], Hashable | None] | None = None
    ) -> None:
        self._intake = iter(items)
        self._read_ahead = max(1, read_ahead)
        self._affinity = affinity
        self._groups: dict[Hashable, _Group[ItemT]] = {}
        self._free: deque[_Group[ItemT]] = deque()
        self._drawers: dict[int, _Drawer[ItemT]] = {}
        self._num_waiting = 0
        self.exhausted = False
        """Nothing is left to read."""

    def __len__(self) -> int:
        return self._num_waiting

    def read(self) -> None:
        """Fills up what is read ahead."""
        room = self._read_ahead - self._num_waiting
        if room <= 0 or self.exhausted:
            return
        fresh = list(islice(self._intake, room))
        self.exhausted = len(fresh) < room
        for item in fresh:
            ticket = self._new_ticket(item)
            self._group_of(ticket, self._free.append).tickets.append(ticket)
        self._num_waiting += len(fresh)

    def draw(self, worker: int) -> Ticket[ItemT]:
        """The next item for this worker. Something has to be waiting."""
        drawer = self._drawers.get(worker)
        if drawer is None or not drawer.group.tickets or drawer.num_drawn >= self._read_ahead:
            drawer = self._next_group(worker)
        drawer.num_drawn += 1
        self._num_waiting -= 1
        return drawer.group.tickets.popleft()

    def put_back(self, ticket: Ticket[ItemT]) -> None:
        """An item that was drawn waits again, before all others of its group."""
        self._group_of(ticket, self._free.appendleft).tickets.appendleft(ticket)
        self._num_waiting += 1

    def leave(self, worker: int) -> None:
        """A worker draws no more for now; the rest of its group is the next to be drawn."""
        self._leave(worker, self._free.appendleft)

    def clear(self) -> None:
        """Forgets what waits, and reads nothing more."""
        self._groups.clear()
        self._free.clear()
        self._drawers.clear()
        self._num_waiting = 0
        self.exhausted = True

    def _new_ticket(self, item: ItemT) -> Ticket[ItemT]:
        key = self._affinity(item) if self._affinity else None
        return Ticket(item) if key is None else Ticket(item, key)

    def _group_of(self, ticket: Ticket[ItemT], add_free: Callable[[_Group[ItemT]], None]) -> _Group[ItemT]:
        group = self._groups.get(ticket.group)
        if group is None:
            group = self._groups[ticket.group] = _Group(ticket.group)
            add_free(group)
        return group

    def _next_group(self, worker: int) -> _Drawer[ItemT]:
        self._leave(worker, self._free.append)
        if self._free:
            group = self._free.popleft()
        else:
            group = max((drawer.group for drawer in self._drawers.values()), key=lambda group: len(group.tickets))
        group.num_drawers += 1
        drawer = self._drawers[worker] = _Drawer(group)
        return drawer

    def _leave(self, worker: int, add_free: Callable[[_Group[ItemT]], None]) -> None:
        drawer = self._drawers.pop(worker, None)
        if drawer is None:
            return
        group = drawer.group
        group.num_drawers -= 1
        if group.num_drawers:
            return
        if group.tickets:
            add_free(group)
        else:
            del self._groups[group.key]
