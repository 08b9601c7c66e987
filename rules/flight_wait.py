"""Who waits for whom: every rank's first unfinished operation, and which of its members hold it up.

A rank stands at its *front*: the first operation, in its own order of enqueueing, that it has not seen complete. It
waits there for members that have not enqueued the operation, and for those that have but stand at an earlier front.
Whoever waits for nobody, while others wait for it, is a root.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from rankscope.rules.flight import GroupKey, Operation, Progress, RankFlight


@dataclass(slots=True)
class Stuck:
    """One operation that does not end, with its members by what they do about it."""

    group: GroupKey
    description: str
    #: What waiting ranks have enqueued.
    operation: Operation
    #: Ranks whose front it is.
    waiting: list[int] = field(default_factory=list)
    #: Members that have not enqueued it.
    absent: list[int] = field(default_factory=list)
    #: Members that have enqueued it and stand at an earlier operation.
    held: list[int] = field(default_factory=list)
    #: Members that saw it complete: the waiting ones are behind alone.
    past: list[int] = field(default_factory=list)
    #: Members without a dump.
    unseen: list[int] = field(default_factory=list)

    @property
    def missing(self) -> list[int]:
        """For whom the waiting ranks wait; those without a dump only where nobody else explains it."""
        return self.absent + self.held or ([] if self.past else self.unseen)


class Flights:
    """The dumps of one job side by side."""

    def __init__(self, dumps: Sequence[RankFlight]) -> None:
        self.by_rank = {dump.rank: dump for dump in sorted(dumps, key=lambda each: each.rank)}
        full: dict[str, set[GroupKey]] = {}
        for dump in dumps:
            for key in dump.groups:
                if key.ranks:
                    full.setdefault(key.name, set()).add(key)
        #: The whole key of a name that some rank lists without members.
        self._whole = {name: next(iter(keys)) for name, keys in full.items() if len(keys) == 1}
        self.descriptions: dict[GroupKey, str] = {}
        for dump in dumps:
            for key, description in dump.groups.items():
                self.descriptions[self.key(key)] = self.descriptions.get(self.key(key)) or description
        largest = max((rank for key in self.descriptions for rank in key.ranks), default=-1)
        self.world = tuple(range(max(largest, *self.by_rank, -1) + 1))
        #: Ranks of the job without a dump.
        self.missing = tuple(rank for rank in self.world if rank not in self.by_rank)
        self.collectives: dict[GroupKey, dict[int, list[Operation]]] = {}
        self.messages: dict[int, list[Operation]] = {rank: [] for rank in self.by_rank}
        for rank, dump in self.by_rank.items():
            for operation in dump.operations:
                if operation.point_to_point:
                    self.messages[rank].append(operation)
                else:
                    self.collectives.setdefault(self.key(operation.group), {}).setdefault(rank, []).append(operation)
        mixed = {self.key(each.group) for messages in self.messages.values() for each in messages}
        self._progress = {
            (self.key(key), rank): progress
            for rank, dump in self.by_rank.items()
            for key, progress in dump.status.items()
            # What counts sends too cannot be compared between ranks.
            if self.key(key) not in mixed
        }
        self.enqueued = self._enqueued()
        self.completed = self._completed()
        self.fronts = {rank: self._front(rank) for rank in self.by_rank}

    def key(self, key: GroupKey) -> GroupKey:
        """A group under the name and members that all ranks know it by."""
        return key if key.ranks else self._whole.get(key.name, key)

    def members(self, key: GroupKey) -> tuple[int, ...]:
        """Global ranks of a group: as listed, else the world for the default group, else whoever used it."""
        if key.ranks:
            return key.ranks
        if self.descriptions.get(key, "").startswith("default") or (key.name == "0" and not self.descriptions.get(key)):
            return self.world
        return tuple(sorted(self.collectives.get(key, {})))

    def _enqueued(self) -> dict[tuple[GroupKey, int], int]:
        found: dict[tuple[GroupKey, int], int] = {}
        for key, by_rank in self.collectives.items():
            for rank, operations in by_rank.items():
                found[key, rank] = max(operation.sequence for operation in operations)
        for place, progress in self._progress.items():
            if progress.enqueued is not None and progress.enqueued >= 0:
                found[place] = max(found.get(place, -1), progress.enqueued)
        return found

    def _completed(self) -> dict[tuple[GroupKey, int], int]:
        found: dict[tuple[GroupKey, int], int] = {}
        for place, progress in self._progress.items():
            if progress.completed is not None and progress.completed >= 0:
                found[place] = progress.completed
        for key, by_rank in self.collectives.items():
            for rank, operations in by_rank.items():
                ended = [operation.sequence for operation in operations if operation.completed]
                if ended:
                    found[key, rank] = max(found.get((key, rank), -1), *ended)
                # A group's collectives end in order: what comes before the first that has not ended has.
                going = [operation.sequence for operation in operations if not operation.completed]
                if going and _tells_completion(self.by_rank[rank]):
                    found[key, rank] = max(found.get((key, rank), -1), min(going) - 1)
        for rank, dump in self.by_rank.items():
            if not _tells_completion(dump):
                for key, by_rank in self.collectives.items():
                    if rank in by_rank:
                        # A collective that everybody has enqueued is taken as done.
                        all_in = [self.enqueued.get((key, member), -1) for member in self.members(key)]
                        found[key, rank] = min(all_in, default=-1)
        return found

    def _front(self, rank: int) -> Operation | None:
        dump = self.by_rank[rank]
        told = _tells_completion(dump)
        unfinished = [
            operation
            for operation in dump.operations
            if not operation.completed
            and (
                # Where nothing ever completes, a message says nothing of where its rank stands.
                told
                if operation.point_to_point
                else operation.sequence > self.completed.get((self.key(operation.group), rank), -1)
            )
        ]
        return min(unfinished, key=lambda operation: operation.order, default=None)

    def ahead(self, rank: int) -> int:
        """Operations that a rank enqueued after its front."""
        front = self.fronts[rank]
        if front is None:
            return 0
        return sum(operation.order > front.order for operation in self.by_rank[rank].operations)

    def _batch(self, front: Operation) -> list[Operation]:
        """The messages that were given out together with a front, or the front alone."""
        if not front.point_to_point:
            return [front]
        return [
            each
            for each in self.messages[front.rank]
            if each.group == front.group
            and each.sequence == front.sequence
            and not each.completed
            and (each.peer is not None or each is front)
        ] or [front]

    def stuck(self) -> list[Stuck]:
        """Every operation that is some rank's front."""
        found: dict[tuple[GroupKey, int, int, int], Stuck] = {}
        for rank, front in self.fronts.items():
            for operation in self._batch(front) if front is not None else ():
                key = self.key(operation.group)
                # Both sides of a message stand at the same one.
                one, other = sorted((rank, rank if operation.peer is None else operation.peer))
                place = (key, -1, one, other) if operation.point_to_point else (key, operation.sequence, -1, -1)
                stuck = found.get(place)
                if stuck is None:
                    stuck = found[place] = Stuck(key, self.descriptions.get(key, ""), operation)
                    self._sort_members(stuck)
                stuck.waiting.append(rank)
        for stuck in found.values():
            for group in (stuck.absent, stuck.held):
                group[:] = [rank for rank in group if rank not in stuck.waiting]
        return list(found.values())

    def _sort_members(self, stuck: Stuck) -> None:
        front = stuck.operation
        if front.point_to_point:
            self._sort_peer(stuck)
            return
        for member in self.members(stuck.group):
            if member not in self.by_rank:
                stuck.unseen.append(member)
                continue
            place = (stuck.group, member)
            if self.completed.get(place, -1) >= front.sequence:
                stuck.past.append(member)
            elif self.enqueued.get(place, -1) < front.sequence:
                stuck.absent.append(member)
            elif (own := self.fronts[member]) is not None and self._before(own, place, front.sequence):
                stuck.held.append(member)

    def _before(self, own: Operation, place: tuple[GroupKey, int], sequence: int) -> bool:
        """Whether a rank's front lies before its part of a collective."""
        if self.key(own.group) == place[0] and not own.point_to_point:
            return own.sequence < sequence
        orders = [
            each.order for each in self.collectives.get(place[0], {}).get(place[1], ()) if each.sequence == sequence
        ]
        return bool(orders) and own.order < orders[0]

    def _sort_peer(self, stuck: Stuck) -> None:
        front, peer = stuck.operation, stuck.operation.peer
        if peer is None:
            return
        if peer not in self.by_rank:
            stuck.unseen.append(peer)
            return
        opposite = [
            each
            for each in self.messages[peer]
            if each.peer == front.rank and each.name != front.name and not each.completed
        ]
        own = self.fronts[peer]
        if not opposite:
            stuck.absent.append(peer)
        elif own is not None and own.order < opposite[0].order:
            stuck.held.append(peer)


def _tells_completion(dump: RankFlight) -> bool:
    """Whether anything in a dump says that operations complete."""
    return any(operation.completed for operation in dump.operations) or any(
        _known(progress) for progress in dump.status.values()
    )


def _known(progress: Progress) -> bool:
    return progress.completed is not None and progress.completed >= 0


@dataclass(frozen=True, slots=True)
class Root:
    """Ranks that hold up others and wait for nobody outside themselves."""

    ranks: tuple[int, ...]
    #: Ranks that wait for them, over however many others; themselves not counted.
    waiting: frozenset[int]
    #: They wait for each other.
    cycle: bool


def roots(stuck: Iterable[Stuck]) -> list[Root]:
    """The ends of all chains of waiting, those that hold up most first."""
    # One node an operation keeps the graph small: all who wait in it wait for the same members.
    after: dict[tuple[str, int], list[tuple[str, int]]] = {}
    for place, each in enumerate(stuck):
        after[("operation", place)] = [("rank", rank) for rank in each.missing]
        for rank in each.waiting:
            after.setdefault(("rank", rank), []).append(("operation", place))
        for rank in each.missing:
            after.setdefault(("rank", rank), [])
    before: dict[tuple[str, int], list[tuple[str, int]]] = {node: [] for node in after}
    for node, nexts in after.items():
        for other in nexts:
            before[other].append(node)
    found = []
    for component in _components(after):
        inside = set(component)
        if any(other not in inside for node in component for other in after[node]):
            continue
        ranks = tuple(sorted(number for kind, number in component if kind == "rank"))
        waiting = {number for kind, number in _reach(component, before) if kind == "rank"} - set(ranks)
        if not ranks:
            # An operation that all its members are in: they hold up each other, or the device does.
            continue
        if waiting or len(ranks) > 1:
            found.append(Root(ranks, frozenset(waiting), cycle=len(ranks) > 1))
    return sorted(found, key=lambda root: (-len(root.waiting), root.ranks))


def upstream(ranks: Iterable[int], stuck: Sequence[Stuck]) -> set[int]:
    """Ranks that wait, directly or not, for one of these."""
    waits: dict[int, list[Stuck]] = {}
    for each in stuck:
        for rank in each.missing:
            waits.setdefault(rank, []).append(each)
    seen: set[int] = set()
    todo = list(ranks)
    known = set(todo)
    while todo:
        for each in waits.get(todo.pop(), ()):
            fresh = set(each.waiting) - seen
            seen |= fresh
            todo += [rank for rank in fresh if rank not in known]
    return seen - known


def _reach(
    nodes: Iterable[tuple[str, int]], edges: Mapping[tuple[str, int], Sequence[tuple[str, int]]]
) -> set[tuple[str, int]]:
    seen = set(nodes)
    todo = list(seen)
    while todo:
        for other in edges[todo.pop()]:
            if other not in seen:
                seen.add(other)
                todo.append(other)
    return seen


def _components(after: Mapping[tuple[str, int], Sequence[tuple[str, int]]]) -> list[list[tuple[str, int]]]:
    """Strongly connected components (Tarjan's, without recursion: a job has thousands of ranks)."""
    index: dict[tuple[str, int], int] = {}
    low: dict[tuple[str, int], int] = {}
    stack: list[tuple[str, int]] = []
    on_stack: set[tuple[str, int]] = set()
    found: list[list[tuple[str, int]]] = []
    for start in after:
        if start in index:
            continue
        work = [(start, iter(after[start]))]
        index[start] = low[start] = len(index)
        stack.append(start)
        on_stack.add(start)
        while work:
            node, nexts = work[-1]
            for other in nexts:
                if other not in index:
                    index[other] = low[other] = len(index)
                    stack.append(other)
                    on_stack.add(other)
                    work.append((other, iter(after[other])))
                    break
                if other in on_stack:
                    low[node] = min(low[node], index[other])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    component: list[tuple[str, int]] = []
                    while not component or component[-1] != node:
                        component.append(stack.pop())
                        on_stack.discard(component[-1])
                    found.append(component)
    return found
