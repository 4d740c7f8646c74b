"""What an actor does after a given list of answers: the engine's code behind an exhaustive search.

Rule: an actor is deterministic given the answers of its calls, so each list of answers is one `Node`, and the engine
runs once for each. To reach a node again, a fresh actor is given its answers again; that it makes the same calls is
asserted each time. Where an operation begins, nodes whose handles remember the same are one.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from simulated import Player
from simulation_actors import Actor, World, cast
from simulation_disk import Call

PLAYERS_MAX = 500  # actors kept alive at once, so that most nodes are reached by going on instead of from the start


class Node:
    """An actor after a list of answers: the call it makes next, and what it did before that."""

    __slots__ = ("actor", "answer", "call", "children", "events", "memory", "name", "opens", "parent", "player")

    def __init__(self, actor: int, parent: Node | None, answer: Any, player: Player, call: Call | None) -> None:
        self.actor, self.parent, self.answer, self.call = actor, parent, answer, call
        self.name = player.name
        self.events, self.opens = list(player.events), player.opens
        self.memory = player.memory if player.opens else None
        self.children: dict[Any, Node] = {}
        self.player: Player | None = player


class Nodes:
    """The nodes of a world's actors; `engine_runs` counts the actors that were started for them."""

    def __init__(self, world: World, *, merges: bool) -> None:
        self._world, self._merges = world, merges
        self.engine_runs = 0
        self.first = (
            1 if world.prepare else 0
        )  # the number of the first actor, and of the first that comes after a loss
        self.late = self.first + len(world.actors)
        self._calls: dict[Any, Call] = {}
        self._players: OrderedDict[int, Node] = OrderedDict()
        self._boundaries: dict[Any, Node] = {}

    def close(self) -> None:
        """Let go of the actors."""
        for node in self._players.values():
            if node.player is not None:
                node.player.kill()

    def roots(self, *, late: bool = False) -> tuple[Node, ...]:
        """Return each actor at its first call: of those that begin, or of those that come after a power loss."""
        actors, first = (self._world.after, self.late) if late else (self._world.actors, self.first)
        return tuple(self._root(actors, number, first) for number in range(len(actors)))

    def _root(self, actors: tuple[Actor, ...], number: int, first: int) -> Node:
        player = self._fresh(actors, number, first)
        node = Node(first + number, None, None, player, self._call(player, first + number))
        self._keep(node)
        return node

    def _fresh(self, actors: tuple[Actor, ...], number: int, first: int) -> Player:
        """Return a new player of one actor, at its first call."""
        player = cast(self._world, actors[number : number + 1], first=first + number)[0]
        player.start()
        self.engine_runs += 1
        return player

    def _call(self, player: Player, actor: int) -> Call | None:
        call = player.call
        return None if call is None else self._calls.setdefault((actor, *call.facts), call)

    def _keep(self, node: Node) -> None:
        """Remember that a player stands at this node; let go of the one that was remembered longest."""
        self._players[id(node)] = node
        if len(self._players) > PLAYERS_MAX:
            _, oldest = self._players.popitem(last=False)
            if oldest.player is not None:
                oldest.player.kill()
                oldest.player = None

    def child(self, node: Node, answer: Any) -> Node:
        """Return the node after this one's call was answered."""
        child = node.children.get(answer)
        if child is None:
            player = node.player or self._again(node)
            node.player = None
            self._players.pop(id(node), None)
            player.resume(answer)
            child = Node(node.actor, node, answer, player, self._call(player, node.actor))
            node.children[answer] = child
            if child.call is None:
                child.player = None
            else:
                self._keep(child)
        return child

    def _again(self, node: Node) -> Player:
        """Return a player that has been given the answers on the way to `node`, and has made the same calls."""
        path: list[Node] = []
        at: Node | None = node
        while at is not None:
            path.append(at)
            at = at.parent
        early = node.actor < self.late
        actors, first = (self._world.actors, self.first) if early else (self._world.after, self.late)
        player = self._fresh(actors, node.actor - first, first)
        for before, here in zip(path[::-1], path[-2::-1], strict=False):
            assert player.call is not None
            assert before.call is not None
            assert player.call.facts == before.call.facts, "an actor is not deterministic"
            player.resume(here.answer)
        return player

    def settled(self, child: Node) -> Node | None:
        """Return the one node that stands for all that go on in the same way; None for an actor at its end."""
        if child.call is None:
            return None
        if child.memory is None or not self._merges:
            return child
        same = self._boundaries.setdefault((child.actor, child.memory), child)
        assert same.call is child.call, "what an actor remembers does not decide what it does"
        return same
