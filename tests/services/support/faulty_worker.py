"""What runs inside vLLM's worker, and can be told to fail there. vLLM imports it by name."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from millrace.services.llm.in_worker import InWorker


class FaultyWorker(InWorker):
    """Sampling can be had as vLLM ships it; a load that was checked can fail inside vLLM all the same."""

    shipped: Any = None
    fails: int = 0  # loads that fail
    raises: bool = False  # whether the next swap raises what nobody foresaw

    def probe_sampling(self, mend: bool) -> str:
        from vllm.v1.sample import rejection_sampler

        self.shipped = rejection_sampler.expand_batch_to_tokens
        return super().probe_sampling(mend)

    def ship_sampling(self) -> None:
        """The function as vLLM ships it."""
        from vllm.v1.sample import rejection_sampler

        rejection_sampler.expand_batch_to_tokens = self.shipped

    def fail_loads(self, count: int) -> None:
        """So many loads from now on get a tensor of a wrong shape, behind the checks."""
        self.fails = count

    def raise_at_next_swap(self) -> None:
        """As a fault in vLLM itself would."""
        self.raises = True

    def swap_draft(self, folder: str, digest: str) -> dict[str, Any]:
        if self.raises:
            self.raises = False
            raise EOFError("nobody foresaw this")
        return super().swap_draft(folder, digest)

    def load_draft(self, tensors: dict[str, Tensor]) -> None:
        if self.fails:
            self.fails -= 1
            name = next(name for name in tensors if name.endswith("down_proj.weight"))
            tensors = {**tensors, name: tensors[name][:-1]}
        super().load_draft(tensors)
