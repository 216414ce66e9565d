"""A uniform sample of everything seen, in bounded memory: Algorithm R, item by item.

Vitter, "Random Sampling with a Reservoir", ACM TOMS 11(1), 1985, Algorithm R.

Differs from the paper: items are deleted. A deleted item's slot stays empty until an item draws it, and what was seen stays
counted. So every item that was not deleted is in the reservoir with the same probability M / n. (Public replay buffers draw
for a whole batch with the count before it, and let an item of the batch overwrite another: not uniform.)

| symbol | name | |
|---|---|---|
| M | ``size`` | slots |
| n | ``seen`` | items offered so far |
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from millrace.learners.protocol import Array, Value

Slots = NDArray[np.int64]


class Reservoir:
    """Rows in slots, one tensor a column; the columns begin with the first rows.

    >>> draws = np.random.Generator(np.random.PCG64(0))
    >>> reservoir = Reservoir(2)
    >>> for at in range(5):
    ...     reservoir.add({"x": torch.tensor([[at]])}, None, draws)
    >>> reservoir.seen, len(reservoir)
    (5, 2)
    """

    def __init__(self, size: int) -> None:
        self.size = size  # M, >= 1
        self.seen = 0  # n
        self.columns: dict[str, Tensor] = {}  # name -> (M, ...)
        self.keys = np.full(size, None, dtype=object)  # (M,) bytes | None, the records' keys
        self.full = np.zeros(size, dtype=bool)  # (M,) slots that hold a row

    def __len__(self) -> int:
        return int(np.count_nonzero(self.full))

    def add(self, rows: dict[str, Tensor], keys: Array | None, draws: np.random.Generator) -> None:
        """Offer rows in order; of several that draw one slot the last stays."""
        place = np.arange(self.seen, self.seen + len(next(iter(rows.values()))))
        slots = draws.integers(0, place + 1)
        if self.seen < self.size:
            slots = np.where(place < self.size, place, slots)
        last_of_slot = {slot: at for at, slot in enumerate(slots.tolist()) if slot < self.size}
        self.seen += len(place)
        if last_of_slot:
            self._write(np.array(list(last_of_slot)), rows, keys, np.array(list(last_of_slot.values())))

    def _write(self, slots: Slots, rows: dict[str, Tensor], keys: Array | None, row_numbers: Slots) -> None:
        device = next(iter(rows.values())).device
        slot_tensor, row_tensor = torch.from_numpy(slots).to(device), torch.from_numpy(row_numbers).to(device)
        for name, values in rows.items():
            if name not in self.columns:
                self.columns[name] = values.new_zeros((self.size, *values.shape[1:]))
            self.columns[name].index_copy_(0, slot_tensor, values.index_select(0, row_tensor))
        self.keys[slots] = None if keys is None else keys[row_numbers]
        self.full[slots] = True

    def draw(self, count: int, draws: np.random.Generator) -> dict[str, Tensor]:
        """Up to ``count`` different rows, uniformly; no columns where there are no rows."""
        count_held = len(self)
        if not count_held:
            return {}
        slots = count_held if count_held == min(self.seen, self.size) else np.flatnonzero(self.full)
        chosen = torch.from_numpy(draws.choice(slots, min(count, count_held), replace=False))
        chosen = chosen.to(next(iter(self.columns.values())).device)
        return {name: column.index_select(0, chosen) for name, column in self.columns.items()}

    def remove(self, slots: NDArray[np.bool_]) -> int:
        """Empty the slots of a mask (M,), overwriting what they held; how many held a row."""
        emptied = slots & self.full
        for column in self.columns.values():
            column[emptied] = 0
        self.keys[emptied] = None
        self.full[emptied] = False
        return int(emptied.sum())

    def widen(self, name: str, width: int) -> None:
        """Let a column of vectors be at least ``width`` wide, with zeros where rows are older."""
        column = self.columns.get(name)
        if column is not None and column.shape[1] < width:
            self.columns[name] = torch.cat([column, column.new_zeros(self.size, width - column.shape[1])], 1)

    def state(self) -> dict[str, Value]:
        """A copy of everything up to the last slot ever used."""
        used = min(self.seen, self.size)
        columns = {f"buffer.{name}": column[:used].cpu().numpy().copy() for name, column in self.columns.items()}
        return columns | {
            "buffer.keys": self.keys[:used].copy(),
            "buffer.full": self.full[:used].copy(),
            "buffer.seen": self.seen,
        }

    def load(self, state: dict[str, Value], device: str = "cpu") -> None:
        """Become the reservoir that gave ``state``."""
        self.seen, used = state["buffer.seen"], len(state["buffer.full"])
        self.keys, self.full, self.columns = np.full(self.size, None, dtype=object), np.zeros(self.size, dtype=bool), {}
        self.keys[:used], self.full[:used] = state["buffer.keys"], state["buffer.full"]
        for key in sorted(set(state) - {"buffer.seen", "buffer.keys", "buffer.full"}):
            if key.startswith("buffer."):
                stored = torch.tensor(state[key])
                column = stored.new_zeros((self.size, *stored.shape[1:]))
                column[:used] = stored
                self.columns[key.removeprefix("buffer.")] = column.to(device)
