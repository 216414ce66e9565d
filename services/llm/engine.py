"""vLLM's engine as a replica has it: it speculates with a draft that can be swapped, and what it answers is captured.

One method is overridden, ``generate``, which every kind of request passes: chat, completions, streams, several choices, tools.
It asks the engine for more log probabilities than the caller did, and takes them and the counts of steps away again.

Source: vLLM 0.32, ``vllm/v1/engine/async_llm.py`` and ``vllm/entrypoints/launchers``.
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
import time
from argparse import Namespace
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing, redirect_stderr
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.exceptions import VLLMValidationError
from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.executor import Executor
from vllm.v1.metrics.prometheus import get_prometheus_registry

from millrace.learners.errors import ConfigError, MillraceError
from millrace.services.errors import SwapRefusedError
from millrace.services.llm.capture import Counts, Seen, Tap, temperature_of
from millrace.services.llm.swapping import DraftFile, refuse_older
from millrace.services.metrics.page import text_of
from millrace.streams.schema import Llm

log = logging.getLogger("millrace")

WORKER = "millrace.services.llm.in_worker.InWorker"  # by name, as vLLM's worker imports it
# Of vLLM's arguments those that millrace sets, or that would make records say something else, beside all that begin with spec.
OURS = {
    "api_key",
    "logprobs_mode",
    "max_logprobs",
    "model",
    "per_request_spec_decode_metrics",
    "served_model_name",
    "worker_extension_cls",
}
MOST_LOGPROBS = 20  # that a caller may ask for, as vLLM has it


class Capturing(AsyncLLM):  # type: ignore[misc]  # vLLM is not installed where types are checked
    """vLLM's engine with ``generate`` overridden."""

    tap: Tap
    most: int  # tokens of a request, prompt and answer, for which the draft can still propose
    sampling_works: bool  # above temperature 0

    async def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, **others: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        """As vLLM's own, whose answers it gives; what it saw of them is handed on once they have ended."""
        params = self._within(sampling_params, prompt)
        gathering = self.tap.begin(request_id, params, prompt, others.get("lora_request"))
        raised = params if gathering is None else self.tap.raised(params)
        try:
            async with aclosing(super().generate(prompt, raised, request_id, **others)) as outputs:
                async for output in outputs:
                    if params.max_tokens != sampling_params.max_tokens:
                        self.tap.counts.shortened += sum(choice.finish_reason == "length" for choice in output.outputs)
                    yield self.tap.told(gathering, params, output)
        finally:
            self.tap.end(gathering)

    def _within(self, asked: SamplingParams, prompt: Any) -> SamplingParams:
        """The same parameters, with no more tokens than the draft can take. Raises: VLLMValidationError, which is a 400."""
        if not self.sampling_works and temperature_of(asked) > 0.0:
            raise VLLMValidationError("This build of vLLM draws wrong tokens above temperature 0; ask with temperature 0.")
        tokens = prompt.get("prompt_token_ids") if isinstance(prompt, dict) else None
        room = self.most - len(tokens or ())
        if room < 1:
            raise VLLMValidationError(f"The prompt has {len(tokens or ())} tokens; target and draft together take {self.most}.")
        params = copy(asked)
        params.max_tokens = room if asked.max_tokens is None else min(asked.max_tokens, room)
        return params


@dataclass(slots=True)
class Engine:
    """One engine: its application, its draft, and what it counted."""

    client: Capturing
    app: Any  # vLLM's ASGI application
    tap: Tap
    held: DraftFile
    drain_s: float = 60.0  # that a swap waits for running requests, where kv_policy is "drain"
    _swaps: asyncio.Lock = field(default_factory=asyncio.Lock)
    _swapping: asyncio.Task[float] | None = None  # the last one
    _broken: str = ""  # why its draft is none; empty: it is whole

    @staticmethod
    async def start(llm: Llm, name: str, draft: DraftFile, seen: Seen, worker: str = WORKER) -> Engine:
        """An engine that answers as ``name``, and hands each completion that is captured to ``seen``, on the event loop.

        Raises: MillraceError where target, draft or memory do not allow it.
        """
        arguments = arguments_of(llm, name, draft.folder, worker)
        client = await asyncio.to_thread(_client, arguments, llm)
        client.tap, client.most = Tap(llm, seen, draft.identity), most_tokens(client, llm.k)
        with ExitStack() as undone:
            undone.callback(client.shutdown)
            _refuse(await client.collective_rpc("hold_draft", args=(str(draft.folder), draft.sha256)), draft)
            client.sampling_works = "wrong" not in await client.collective_rpc("probe_sampling", args=(True,))
            await client.update_weight_version(draft.identity.name)
            tasks = await client.get_supported_tasks()
            app = build_app(arguments, tasks, client.model_config)
            app.state.server = SimpleNamespace()  # vLLM tells its own server when an engine is dead; here the caller asks
            await init_app_state(client, app.state, arguments, tasks)
            for model in app.state.openai_serving_models.base_model_paths:
                model.model_path = name  # a place on this machine is nobody's business
            undone.pop_all()
        return Engine(client, app, client.tap, draft)

    @property
    def counts(self) -> Counts:
        """Of what was captured and what was not."""
        return self.tap.counts

    async def swap(self, draft: DraftFile, newer: bool = True) -> float:
        """Put another draft in place between two steps; where ``newer``, a newer one alone. Returns seconds that steps waited.

        Raises: SwapRefusedError; then the engine keeps what it has, or says that it is broken.
        """
        self._swapping = asyncio.create_task(self._swapped(draft, newer))
        return await asyncio.shield(self._swapping)  # who no longer waits does not stop it half way

    async def _swapped(self, draft: DraftFile, newer: bool) -> float:
        async with self._swaps:
            if newer:
                refuse_older(draft.identity, self.held.identity)
            if drains := self.tap.llm.kv_policy == "drain":
                await self._drain()
            try:
                return await self._loaded(draft)
            except EngineDeadError as error:
                raise MillraceError(f"The engine is dead; draft {draft.identity.name} is not loaded.") from error
            finally:
                if drains and not self.client.errored:
                    await self.client.resume_generation()

    async def _drain(self) -> None:
        """Let running requests end while new ones wait; who takes too long is swapped under, as if nothing was drained."""
        try:
            async with asyncio.timeout(self.drain_s):
                await self.client.pause_generation(mode="wait")
        except TimeoutError:
            log.warning("Requests still run after %g s; the draft is swapped under them.", self.drain_s)

    async def _loaded(self, draft: DraftFile) -> float:
        with self.tap.turning():
            began_s = time.perf_counter()
            answers = await self._asked("swap_draft", draft)
            seconds = time.perf_counter() - began_s
            whole = all(answer["held"] for answer in answers) and len({"refused" in answer for answer in answers}) == 1
            self._broken = "" if whole else f"The engine has no whole draft since {draft.identity.name} failed to load."
            _refuse(answers, draft)
            self.held, self.tap.draft = draft, draft.identity
            await self.client.update_weight_version(draft.identity.name)
            if self.tap.llm.kv_policy == "reset" and not await self.client.reset_prefix_cache(reset_running_requests=True):
                log.warning("vLLM did not drop what it computed of prompts with the draft before %s.", draft.identity.name)
        return seconds

    async def _asked(self, method: str, draft: DraftFile) -> list[dict[str, Any]]:
        """What each worker answers. Raises: SwapRefusedError where one raised, which vLLM hands on as a bare Exception."""
        try:
            return list(await self.client.collective_rpc(method, args=(str(draft.folder), draft.sha256)))
        except EngineDeadError:
            raise
        except Exception as error:
            self._broken = f"Nobody knows which draft the engine has since {draft.identity.name} failed to load."
            raise SwapRefusedError(f"Draft {draft.identity.name} is refused: {error}") from error

    def check(self) -> None:
        """Raises: MillraceError where the engine is dead, or has no whole draft."""
        if self.client.errored or self._broken:
            raise MillraceError(self._broken or "The engine is dead: one of its processes has ended.")

    def series(self) -> str:
        """vLLM's own series of this process, as Prometheus reads them."""
        return text_of(get_prometheus_registry())

    async def close(self) -> None:
        """End the engine's processes."""
        if (listening := self.client.output_handler) is not None:
            listening.cancel()  # else it takes the end for a failure, and says so
        await asyncio.to_thread(self.client.shutdown)


def _client(arguments: Namespace, llm: Llm) -> Capturing:
    """Raises: MillraceError where vLLM does not start."""
    try:
        settings = AsyncEngineArgs.from_cli_args(arguments)
        config = settings.create_engine_config()
        client = Capturing(config, Executor.get_class(config), log_stats=True, log_requests=False)
    except (ValueError, RuntimeError, OSError, NotImplementedError) as error:
        raise MillraceError(f"vLLM does not start with target {llm.target} and its draft: {error}") from error
    if client.output_processor.tokenizer is not None:
        client.output_processor.tokenizer = decoding_once(client.output_processor.tokenizer)
    return client


def decoding_once(tokenizer: Any) -> Any:
    """The same tokenizer, which decodes each token by itself once: vLLM asks for the text of every likeliest token."""
    faster, decode, texts = copy(tokenizer), tokenizer.decode, dict[int, str]()

    def once(ids: Any, *more: Any, **others: Any) -> Any:
        if more or others or not isinstance(ids, list) or len(ids) != 1:
            return decode(ids, *more, **others)
        if (text := texts.get(ids[0])) is None:
            text = texts[ids[0]] = decode(ids)
        return text

    faster.decode = once
    return faster


def _refuse(answers: list[dict[str, Any]], draft: DraftFile) -> None:
    """Raises: SwapRefusedError where a worker refused."""
    for answer in answers:
        if "refused" in answer:
            raise SwapRefusedError(f"Draft {draft.identity.name} is refused: {answer['refused']}.")


def most_tokens(client: AsyncLLM, k: int) -> int:
    """Tokens of prompt and answer for which a draft proposes: a step looks at those before, those drafted, and as many again.

    Beyond it vLLM would propose token 0 to every request of the batch.
    """
    settings = client.vllm_config
    contexts = (settings.model_config.max_model_len, settings.speculative_config.draft_model_config.max_model_len)
    return int(min(contexts)) - 2 * k


def arguments_of(llm: Llm, name: str, draft: Path, worker: str) -> Namespace:
    """What vLLM's command line would make of it. Raises: ConfigError where ``llm.options`` has what it does not take."""
    speculation = {
        "method": "draft_model",
        "model": str(draft),
        "num_speculative_tokens": llm.k,
        "draft_sample_method": llm.draft_sampling,
    }
    ours = {
        "--model": llm.target,
        "--served-model-name": name,
        "--speculative-config": json.dumps(speculation),
        "--max-logprobs": str(max(MOST_LOGPROBS, llm.top)),
        "--per-request-spec-decode-metrics": "detailed",
        "--worker-extension-cls": worker,
    }
    words, parser = [text for pair in ours.items() for text in pair], make_arg_parser(FlexibleArgumentParser())
    plain: Namespace = parser.parse_args(words)
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            arguments: Namespace = parser.parse_args([*words, *llm.options])
            validate_parsed_serve_args(arguments)
    except (SystemExit, TypeError, ValueError) as error:
        last = said.getvalue().strip().rpartition("\n")[2] or str(error)
        raise ConfigError(f"llm.options = {list(llm.options)}: vLLM does not take them: {last}") from error
    for key in sorted(key for key in vars(plain) if key in OURS or key.startswith("spec")):
        if getattr(arguments, key) != getattr(plain, key):
            raise ConfigError(f"llm.options = {list(llm.options)}: {key} is not to be written; millrace sets it.")
    return arguments
