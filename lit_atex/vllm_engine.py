"""Rollouts by vLLM in the training process, for a GPU: `pip install 'lit-atex[vllm]'`. Imported when first used.

It holds a copy of the student, made from its configuration alone and filled from the weights in memory each time. For
dense models that vLLM knows (what it derives from weights once, as for multi-head latent attention, would grow old), on
one device. Written for vLLM 0.22 to 0.31, and **never run on a GPU by us**: it is tested on a stand-in for vLLM.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Collection, Iterator, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from lit_atex.models import context_of, unwrap
from lit_atex.rollout import RolloutEngine, check_request
from lit_atex.sampling import Sampling
from lit_atex.types import Rollouts


class VllmEngine(RolloutEngine):
    """Samples with vLLM. Its kernels round otherwise than training does, and its random numbers are its own.

    So rollouts come from nearly the student's distribution, and a run is not that of another engine, nor the same bit
    for bit on other hardware. With min_p beside top_k or top_p, vLLM applies min_p first. It does not tell of logits
    that are not finite: the loss of that step does.
    """

    def __init__(
        self,
        gpu_memory_utilization: float = 0.3,
        max_model_len: int | None = None,
        dtype: str = "bfloat16",
        enforce_eager: bool = False,
    ) -> None:
        """Store how; vLLM is started by the first rollouts.

        Args:
            gpu_memory_utilization: Share of the device's memory for vLLM's weights and cache, in (0, 1); the rest is
                for training.
            max_model_len: Most tokens of prompt and completion, >= 2; None: the model's own context.
            dtype: Type of vLLM's weights and arithmetic, whatever that of the student is: "bfloat16", "float16" or
                "float32".
            enforce_eager: Do without CUDA graphs: slower, starts sooner, less memory.

        Raises:
            ValueError: If an argument is out of range.
        """
        if max_model_len is not None and max_model_len < 2:
            raise ValueError(f"model.engine.init_args.max_model_len must be at least 2, got {max_model_len}.")
        if dtype not in ("bfloat16", "float16", "float32"):
            where = "model.engine.init_args.dtype"
            raise ValueError(f"{where} must be bfloat16, float16 or float32, got {dtype!r}.")
        if not 0 < gpu_memory_utilization < 1:
            where = "model.engine.init_args.gpu_memory_utilization"
            raise ValueError(f"{where} must lie in (0, 1), got {gpu_memory_utilization}.")
        self.options: dict[str, Any] = {
            "gpu_memory_utilization": gpu_memory_utilization,
            "max_model_len": max_model_len,
            "dtype": dtype,
            "enforce_eager": enforce_eager,
        }
        self._llm: Any = None

    def generate(
        self,
        model: nn.Module,
        prompts: Sequence[Sequence[int]],
        samples: int,
        sampling: Sampling,
        end_ids: Collection[int],
        generators: Sequence[np.random.Generator],
    ) -> Rollouts:
        """See `RolloutEngine.generate`."""
        check_request(model, prompts, samples, sampling, generators)
        longest = max(map(len, prompts)) + sampling.max_new_tokens
        if (most := self.options["max_model_len"]) is not None and longest > most:
            where = "model.engine.init_args.max_model_len"
            raise ValueError(f"a prompt and its completion may have {longest} tokens, but {where} is {most}: raise it.")
        with torch.autocast(next(model.parameters()).device.type, enabled=False):
            outputs = self._sample(model, prompts, samples, sampling, end_ids, generators)
        completions = [list(output.outputs[0].token_ids) for output in outputs]
        return Rollouts.of(completions, end_ids, next(model.parameters()).device)

    def _sample(
        self,
        model: nn.Module,
        prompts: Sequence[Sequence[int]],
        samples: int,
        sampling: Sampling,
        end_ids: Collection[int],
        generators: Sequence[np.random.Generator],
    ) -> Any:
        """VLLM's outputs, one per rollout."""
        if self._llm is None:
            check_adapters(model)
            # Beyond the context it would turn every row of a LongRoPE model as the training never does.
            most = min(filter(None, (self.options["max_model_len"], context_of(model)[0])), default=None)
            self._llm = start(unwrap(model), self.options | {"max_model_len": most})
        # Each time: a fused optimizer changes weights without a trace in their version, and copying them is quick.
        copy = self._llm.llm_engine.model_executor.driver_worker.model_runner.model
        loaded = copy.load_weights(weights(model))
        if loaded is not None and (missing := {name for name, _ in copy.named_parameters()} - set(loaded)):
            raise ValueError(
                f"model.engine: vLLM has weights that {type(unwrap(model)).__name__} lacks: {sorted(missing)}."
            )
        self._llm.reset_prefix_cache()  # of the weights before
        from vllm import SamplingParams

        shared: dict[str, Any] = {"temperature": sampling.temperature, "max_tokens": sampling.max_new_tokens}
        shared |= {"top_p": sampling.top_p, "top_k": sampling.top_k, "min_p": sampling.min_p}
        # What ends a completion is said by end_ids alone, not by the model's configuration.
        shared |= {"detokenize": False, "ignore_eos": True, "stop_token_ids": sorted(end_ids)}
        params = [SamplingParams(**shared, seed=int(g.integers(2**31))) for g in generators]
        requests = [{"prompt_token_ids": list(prompt)} for prompt in prompts for _ in range(samples)]
        return self._llm.generate(requests, sampling_params=params, use_tqdm=False)


LORA = "peft.tuners.lora.layer"
"""Where PEFT keeps its layers of LoRA."""


def start(model: Any, options: dict[str, Any]) -> Any:
    """VLLM's engine in this process, with the model's architecture and no weights yet.

    Raises:
        ValueError: If vLLM is not installed, or the run has several processes.
    """
    try:
        from vllm import LLM
    except ImportError as error:
        message = "model.engine: VllmEngine needs vLLM (Linux with a GPU): `pip install 'lit-atex[vllm]'`."
        raise ValueError(message) from error
    if dist.is_initialized() and dist.get_world_size() > 1:
        # vLLM starts and measures its memory on all ranks together, but a rank may have nothing to sample.
        raise ValueError("model.engine: VllmEngine runs on one device so far; set trainer.devices: 1.")
    _announce(model.device)
    config = deepcopy(model.config)
    config.architectures = [type(model).__name__]  # a model read from GGUF names none
    # vLLM seeds this process's generators.
    with tempfile.TemporaryDirectory() as folder, isolate_rng():
        config.save_pretrained(folder)
        return LLM(
            model=folder,
            load_format="dummy",  # filled from memory at once
            skip_tokenizer_init=True,
            distributed_executor_backend="external_launcher",
            **options,
        )


def _announce(device: torch.device) -> None:
    """Tell vLLM, by the variables of torchrun, that there is one process."""
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": str(device.index or 0)}
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    if "MASTER_PORT" not in os.environ:
        with socket.create_server(("127.0.0.1", 0)) as free:
            os.environ["MASTER_PORT"] = str(free.getsockname()[1])


def check_adapters(model: nn.Module) -> None:
    """See that `weights` can add in what a model is adapted by.

    Raises:
        ValueError: If it is not plain LoRA: DoRA, IA3, tuned norms, layers that are quantised, and others.
    """
    for name, module in model.named_modules():
        kind = type(module).__module__
        more = bool(getattr(module, "lora_variant", None)) or any(getattr(module, "lora_bias", {}).values())
        if kind.startswith("peft.tuners.") and hasattr(module, "base_layer") and (more or kind != LORA):
            raise ValueError(
                f"model.engine: VllmEngine takes over plain LoRA alone, not that of {name} "
                f"({kind.removeprefix('peft.tuners.')}{', a variant of it' if more else ''}): merge it, or leave out "
                "model.engine."
            )


def weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Each weight by the name that it has in the base model, adapters added in.

    The sum is formed aside, one matrix at a time: merging into the model and taking out again would round its weights.
    """
    adapted = {name: module for name, module in model.named_modules() if hasattr(module, "get_delta_weight")}
    inside = tuple(f"{name}." for name in adapted)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            layer = adapted.get(name.rsplit(".base_layer.", 1)[0])
            if (layer is None and name.startswith(inside)) or ".original_module." in name:
                continue  # an adapter's own; what a module trained in full stands for
            value = parameter.detach()
            if layer is not None and name.endswith(".base_layer.weight"):
                for adapter in layer.active_adapters:
                    value = value + layer.get_delta_weight(adapter).to(value.dtype)
            name = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
            yield name.replace(".modules_to_save.default.", "."), value
