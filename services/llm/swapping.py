"""What is swapped into an engine, and how it refuses. Needs neither vLLM nor torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from millrace.services.errors import SwapRefusedError
from millrace.services.pipeline.bundle import Identity


@dataclass(frozen=True, slots=True)
class DraftFile:
    """A draft on disk. While an engine holds it the folder stays: a load that fails goes back to it."""

    folder: Path  # as Hugging Face lays it out: config.json and model.safetensors, whole
    sha256: str  # of model.safetensors
    identity: Identity  # of the state that it was made from; its name is told to vLLM as the version of the weights


def refuse_older(new: Identity, held: Identity) -> None:
    """Raises: SwapRefusedError where a draft is not newer than the one that is held."""
    if new.branch == held.branch and new.place <= held.place:
        raise SwapRefusedError(f"Draft {new.name} is not newer than {held.name}, which the engine has and keeps.")
