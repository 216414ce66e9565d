"""What runs inside vLLM's worker: a draft is checked whole and then loaded between two steps; sampling is probed and mended.

vLLM mixes this class into its worker, by name. A file is read once: what is hashed, checked and loaded are the same bytes. What
vLLM itself lets pass is refused before it is touched, since a file that lacks a layer is taken in silence, and a misshapen
tensor makes the next good load fail too. A head that is tied to the embedding is prepared anew: vLLM would go on with its copy.

Source: vLLM 0.32, ``vllm/model_executor/model_loader/reload``; vllm-project/vllm issue 55005 for sampling on a CPU.
"""

from __future__ import annotations

import json
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from millrace.learners.draft.folder import WEIGHTS

CONFIG = "config.json"
# What a config may say otherwise: by what release it was written, from where, and in which type its weights are stored.
OTHERWISE = {"dtype", "torch_dtype", "transformers_version", "_name_or_path", "name_or_path", "use_cache"}
FEW = 3  # names in a refusal
# What reading, checking and loading raise; the engine goes on, and the caller hears it.
FAILURES = (
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


class RefusedError(Exception):
    """Why a draft is not taken, in a sentence that begins small."""


class InWorker:
    """Added to vLLM's worker, which has ``get_draft_model``, ``vllm_config`` and ``device``."""

    def hold_draft(self, folder: str, digest: str) -> dict[str, Any]:
        """Load the first draft once more, from checked bytes, and compare later ones with it. Answers as ``swap_draft``."""
        began_s = time.monotonic()
        try:
            tensors = read_weights(Path(folder), digest)
            self.draft_config = read_config(Path(folder))
            self.draft_shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
            refuse_unfinite(tensors)
        except (RefusedError, *FAILURES) as error:
            return {"refused": told(error), "held": True}
        self.draft_held = folder, digest
        if problem := self.try_draft(tensors):
            return {"refused": f"vLLM does not load it into an engine that runs: {problem}", "held": False}
        return {"seconds": time.monotonic() - began_s, "held": True}

    def swap_draft(self, folder: str, digest: str) -> dict[str, Any]:
        """Check a draft and load it.

        Answers ``seconds``, or why it is ``refused``; and whether the engine has a whole draft, ``held``.
        """
        began_s = time.monotonic()
        try:
            tensors = read_weights(Path(folder), digest)
            refuse_other_config(read_config(Path(folder)), self.draft_config)
            refuse_other_shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()}, self.draft_shapes)
            refuse_unfinite(tensors)
        except (RefusedError, *FAILURES) as error:
            return {"refused": told(error), "held": True}
        if problem := self.try_draft(tensors):
            return {"refused": f"vLLM does not load it: {problem}", "held": self.went_back()}
        self.draft_held = folder, digest
        return {"seconds": time.monotonic() - began_s, "held": True}

    def try_draft(self, tensors: dict[str, Tensor]) -> str:
        """Load checked weights. Returns why vLLM does not, else nothing."""
        try:
            self.load_draft(tensors)
        except FAILURES as error:
            return told(error) + self.abandoned()
        return ""

    def abandoned(self) -> str:
        """Give up a load that failed. Returns why that failed too, else nothing."""
        try:
            self.abandon_load()
        except FAILURES as error:
            return f"; and it could not be undone: {told(error)}"
        return ""

    def load_draft(self, tensors: dict[str, Tensor]) -> None:
        """Load checked weights into the draft. Raises: what vLLM raises; then some layers wait for weights and hold none."""
        from vllm.config import set_current_vllm_config
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

        settings, draft = self.vllm_config, self.get_draft_model()  # type: ignore[attr-defined]  # of vLLM's worker
        with set_current_vllm_config(settings), torch.no_grad():
            initialize_layerwise_reload(draft)
            draft.load_weights(tensors.items())
            finalize_layerwise_reload(draft, settings.speculative_config.draft_model_config)
            for layer in tied(draft):  # a processor's kernels have a packed copy of the weights, which vLLM leaves as it was
                layer.quant_method.process_weights_after_loading(layer)

    def abandon_load(self) -> None:
        """Give layers that wait for weights those back that they had.

        vLLM would keep what came before the failure for the next load, which fails of it, and steps between die of it.
        """
        from vllm.config import set_current_vllm_config
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload
        from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

        settings, draft = self.vllm_config, self.get_draft_model()  # type: ignore[attr-defined]  # of vLLM's worker
        for waiting in filter(lambda state: state.can_load(), map(get_layerwise_info, draft.modules())):
            waiting.load_numel, waiting.loaded_weights = 0, []
        with set_current_vllm_config(settings), torch.no_grad():
            finalize_layerwise_reload(draft, settings.speculative_config.draft_model_config)

    def went_back(self) -> bool:
        """Load the last good draft again, since some layers have weights of another; whether the engine has it now."""
        folder, digest = self.draft_held
        try:
            return not self.try_draft(read_weights(Path(folder), digest))
        except (RefusedError, *FAILURES):
            return False  # the caller hears that there is no whole draft

    def probe_sampling(self, mend: bool) -> str:
        """Whether tokens are drawn at the temperature that was asked for: ``right``, ``mended`` or ``wrong``.

        vLLM 0.32 expands the temperatures of a batch into memory that it then does not read, where there is no Triton.
        """
        from vllm.v1.sample import rejection_sampler

        device = self.device  # type: ignore[attr-defined]  # of vLLM's worker
        if expands(rejection_sampler.expand_batch_to_tokens, device):
            return "right"
        if not mend:
            return "wrong"
        rejection_sampler.expand_batch_to_tokens = expand_batch_to_tokens
        return "mended" if expands(rejection_sampler.expand_batch_to_tokens, device) else "wrong"


def tied(draft: torch.nn.Module) -> list[Any]:
    """Layers that share their weight with another, as a head that is the embedding: no tensor of a file is theirs alone."""
    owners: dict[int, list[Any]] = {}
    for layer in draft.modules():
        weight = getattr(layer, "weight", None)
        if isinstance(weight, Tensor) and hasattr(layer, "quant_method"):
            owners.setdefault(id(weight), []).append(layer)
    return [layer for layers in owners.values() if len(layers) > 1 for layer in layers]


def told(error: BaseException) -> str:
    """What went wrong, in words."""
    return str(error) if isinstance(error, RefusedError) else f"{type(error).__name__}: {error}"


def read_weights(folder: Path, digest: str) -> dict[str, Tensor]:
    """The tensors of a draft's file, which has this sha256. Raises: RefusedError."""
    path = folder / WEIGHTS
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RefusedError(f"{path} cannot be read: {error.strerror}") from error
    if (actual := sha256(content).hexdigest()) != digest:
        raise RefusedError(f"{path} has sha256 {actual}, not {digest}; it was cut or changed on the way")
    try:
        return load(content)
    except (SafetensorError, ValueError) as error:
        raise RefusedError(f"{path} is no whole file of tensors: {error}") from error


def read_config(folder: Path) -> dict[str, Any]:
    """What a draft's config says of its architecture. Raises: RefusedError."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RefusedError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise RefusedError(f"{path} holds no object")
    return {key: value for key, value in config.items() if key not in OTHERWISE}


def refuse_other_config(config: dict[str, Any], held: dict[str, Any]) -> None:
    """Raises: RefusedError where the architecture or the vocabulary is another."""
    for key in sorted(config.keys() & held.keys()):
        if config[key] != held[key]:
            raise RefusedError(f"its config says {key} = {config[key]!r}, and the engine has a draft with {held[key]!r}")


def refuse_other_shapes(shapes: dict[str, tuple[int, ...]], held: dict[str, tuple[int, ...]]) -> None:
    """Raises: RefusedError where a tensor is missing, too much or of another shape."""
    for what, names in (("lacks", held.keys() - shapes.keys()), ("has beside what a draft has", shapes.keys() - held.keys())):
        if names:
            more = f" and {len(names) - FEW} more" if len(names) > FEW else ""
            raise RefusedError(f"it {what} {', '.join(sorted(names)[:FEW])}{more}")
    for name, shape in sorted(shapes.items()):
        if shape != held[name]:
            raise RefusedError(f"its {name} has shape {shape}, not {held[name]}")


def refuse_unfinite(tensors: dict[str, Tensor]) -> None:
    """Raises: RefusedError where a weight is none, or infinite."""
    for name, tensor in sorted(tensors.items()):
        if not bool(torch.isfinite(tensor).all()):
            raise RefusedError(f"its {name} has weights that are not finite")


def expand_batch_to_tokens(
    x: Tensor, cu_num_tokens: Tensor, num_tokens: int, replace_from: int = 0, replace_to: int = 0
) -> Tensor:
    """Each request's value (batch,) for each of its tokens (num_tokens,), as vLLM's function of this name is to give it.

    Shapes: ``cu_num_tokens`` (batch,) counts tokens up to and with each request. ``replace_from`` becomes ``replace_to``.
    """
    counts = torch.diff(cu_num_tokens, prepend=cu_num_tokens.new_zeros(1)).to(torch.int64)
    values = torch.where(x == replace_from, torch.full_like(x, replace_to), x) if replace_from != replace_to else x
    return torch.repeat_interleave(values, counts, output_size=num_tokens)


def expands(expand: Any, device: torch.device) -> bool:
    """Whether such a function expands values as it is to, where 0, which stands for greedy, becomes 1."""
    counts = torch.tensor([2, 3, 6], dtype=torch.int32, device=device)
    for first, last in ((0.75, 2.0), (0.5, 1.25)):  # memory that nobody wrote may hold what was there before, but not twice
        given = expand(torch.tensor([first, 0.0, last], device=device), counts, 6, replace_from=0, replace_to=1)
        if given.tolist() != [first, first, 1.0, last, last, last]:
            return False
    return True
