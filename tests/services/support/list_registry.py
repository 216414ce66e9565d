"""A model registry in memory that can fail at any call and be moved by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from millrace.services.errors import MirrorError
from millrace.services.registry.export import opened
from millrace.services.registry.lineage import VERSION, Listed


@dataclass
class ListRegistry:
    """A registry in memory; ``down_after`` calls it cannot be reached, after having done what it was asked or before."""

    listed: list[Listed] = field(default_factory=list)
    named: dict[str, str] = field(default_factory=dict)
    scores: list[Mapping[str, float]] = field(default_factory=list)
    down_after: int = 10**9
    done_first: bool = False

    def _called(self, done: bool) -> None:
        if done == self.done_first:
            self.down_after -= 1
            if self.down_after < 0:
                raise MirrorError("down")

    def versions(self) -> list[Listed]:
        self._called(self.done_first)
        return list(self.listed)

    def aliases(self) -> dict[str, str]:
        self._called(self.done_first)
        return dict(self.named)

    def register(self, folder: Path, tags: Mapping[str, str], metrics: Mapping[str, float]) -> str:
        self._called(False)
        assert opened(folder).identity.version == tags[VERSION]
        self.listed.append(Listed(str(len(self.listed) + 1), dict(tags)))
        self.scores.append(metrics)
        self._called(True)
        return self.listed[-1].number

    def tag(self, number: str, tags: Mapping[str, str]) -> None:
        self._called(False)
        at = int(number) - 1
        self.listed[at] = replace(self.listed[at], tags=dict(self.listed[at].tags) | dict(tags))
        self._called(True)

    def name(self, alias: str, number: str | None) -> None:
        self._called(False)
        self.named.pop(alias, None)
        self.named |= {} if number is None else {alias: number}
        self._called(True)

    def by_hand(self, alias: str) -> str | None:
        """Which version of ours an alias names there."""
        tags = {version.number: version.tags[VERSION] for version in self.listed}
        return tags.get(self.named.get(alias, ""))
