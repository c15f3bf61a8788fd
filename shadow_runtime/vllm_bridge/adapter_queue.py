"""vLLM's waiting queue with one lane for each adapter, so that closed adapters' requests are not even looked at.

Runs in: engine core.

vLLM pops every waiting request that it may not start and puts it back, in every step. Here the requests of adapters
whose turn it is not stay in their lanes: peeking finds the first request of the open lanes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from vllm.v1.core.sched.request_queue import RequestQueue, SchedulingPolicy, create_request_queue

if TYPE_CHECKING:
    from vllm.v1.request import Request

BASE_LANE = 0
"""Lane of requests without an adapter; never closed. Adapter ids start at 1."""


def lane_of(request: Request) -> int:
    """Return the id of a request's adapter, or BASE_LANE."""
    return BASE_LANE if request.lora_request is None else request.lora_request.lora_int_id


class AdapterQueue(RequestQueue):
    """Waiting requests in the order of vLLM's policy, seen through the lanes that are open.

    Peeking, popping and truth see open lanes; length, iteration and removal see all. Invariants: no lane is empty;
    with all lanes open the order is that of vLLM's own queue. Engine-core thread only.
    """

    def __init__(self, policy: SchedulingPolicy) -> None:
        self._policy = policy
        self._lanes: dict[int, RequestQueue] = {}
        # Arrival order over all lanes, for first come first served; a priority queue's requests compare themselves.
        self._places: dict[str, int] = {}
        self._front, self._back = 0, 0
        self._open: frozenset[int] | None = None
        self._starting: set[int] = set()
        self._first: int | None = None

    @property
    def is_restricted(self) -> bool:
        """Whether some lanes may be closed."""
        return self._open is not None

    def restrict(self, opened: frozenset[int], starting: Iterable[int] = ()) -> None:
        """Close every adapter's lane but these; a starting one's first request goes before all others."""
        self._open, self._starting, self._first = opened, set(starting), None

    def open_all(self) -> None:
        """Let every adapter start requests."""
        self._open, self._starting, self._first = None, set(), None

    def is_open(self, lane: int) -> bool:
        """Whether requests of a lane may start."""
        return self._open is None or lane == BASE_LANE or lane in self._open

    def requests_of(self, lane: int) -> Iterable[Request]:
        """Return an adapter's waiting requests, in no particular order under the priority policy."""
        queue: Any = self._lanes.get(lane, ())
        return getattr(queue, "_heap", queue)

    def num_requests_of(self, lane: int) -> int:
        """Return how many requests of an adapter wait."""
        return len(self._lanes.get(lane, ()))

    def _sort_key(self, request: Request) -> Any:
        if self._policy is SchedulingPolicy.FCFS:
            return self._places[request.request_id]
        return request

    def _find_first(self) -> int | None:
        """Return the lane whose head is next, None when no open lane has a request."""
        if self._first is None:
            lanes = self._lanes if self._open is None else (BASE_LANE, *self._open)
            heads = {
                lane: self._lanes[lane].peek_request() for lane in lanes if lane in self._lanes
            }
            self._first = min(
                heads,
                key=lambda lane: (lane not in self._starting, self._sort_key(heads[lane])),
                default=None,
            )
        return self._first

    def _enter(self, request: Request) -> RequestQueue:
        self._first = None
        lane = lane_of(request)
        if lane not in self._lanes:
            self._lanes[lane] = create_request_queue(self._policy)
        return self._lanes[lane]

    def _leave(self, lane: int) -> None:
        self._first = None
        if not self._lanes[lane]:
            del self._lanes[lane]

    def add_request(self, request: Request) -> None:
        """Append a request."""
        self._places[request.request_id] = self._back
        self._back += 1
        self._enter(request).add_request(request)

    def prepend_request(self, request: Request) -> None:
        """Put a request in front of all others (first come first served), or in its place (priority)."""
        self._front -= 1
        self._places[request.request_id] = self._front
        self._enter(request).prepend_request(request)

    def prepend_requests(self, requests: Iterable[Request]) -> None:
        """Put requests in front one after the other, so that the last comes first, as vLLM's queue does."""
        for request in requests:
            self.prepend_request(request)

    def peek_request(self) -> Request:
        """Return the next request of the open lanes; IndexError without one."""
        lane = self._find_first()
        if lane is None:
            raise IndexError("peek from an empty queue")
        return self._lanes[lane].peek_request()

    def pop_request(self) -> Request:
        """Take the next request of the open lanes; IndexError without one."""
        lane = self._find_first()
        if lane is None:
            raise IndexError("pop from an empty queue")
        request = self._lanes[lane].pop_request()
        del self._places[request.request_id]
        self._starting.discard(lane)
        self._leave(lane)
        return request

    def remove_request(self, request: Request) -> None:
        """Take one request out."""
        self.remove_requests([request])

    def remove_requests(self, requests: Iterable[Request]) -> None:
        """Take requests out; those that are not here are ignored."""
        here = {r for r in requests if self._places.pop(r.request_id, None) is not None}
        for lane in {lane_of(request) for request in here}:
            self._lanes[lane].remove_requests(here)
            self._leave(lane)

    def __bool__(self) -> bool:
        return self._find_first() is not None

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Request]:
        waiting = (request for lane in self._lanes for request in self.requests_of(lane))
        return iter(sorted(waiting, key=self._sort_key))
