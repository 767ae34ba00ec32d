"""The vLLM engine against a stand-in that does what vLLM promises with the calls that the engine makes.

vLLM itself needs a GPU, and has not been run here: what these tests cannot see is whether its promises have changed.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from peft import IA3Config, LNTuningConfig, LoraConfig, get_peft_model
from test_rollout import END, RAGGED, generators, llama, qwen3
from transformers import AutoConfig, AutoModelForCausalLM

from lit_atex.rollout import Sampling, TransformersEngine
from lit_atex.vllm_engine import VllmEngine, weights


class Params(SimpleNamespace):
    """vllm.SamplingParams: takes these names and no others."""

    def __init__(self, *, temperature, max_tokens, top_p, top_k, min_p, detokenize, ignore_eos, stop_token_ids, seed):
        super().__init__(temperature=temperature, max_tokens=max_tokens, ignore_eos=ignore_eos, seed=seed)
        self.stop_token_ids = stop_token_ids


class LLM:
    """vllm.LLM: an architecture from a folder, weights by `load_weights`, one list of ids per request."""

    made: ClassVar[list[LLM]] = []
    lost: ClassVar[set[str]] = set()

    def __init__(self, *, model, load_format, skip_tokenizer_init, distributed_executor_backend, dtype, **options):
        assert (load_format, skip_tokenizer_init) == ("dummy", True)
        assert [path.name for path in Path(model).iterdir()] == ["config.json"]
        config = AutoConfig.from_pretrained(model)
        assert len(config.architectures) == 1  # else vLLM takes the model without its head
        assert config.architectures[0].endswith("ForCausalLM")
        assert not torch.is_autocast_enabled("cpu")
        torch.manual_seed(0)  # as vLLM does, in the process of its user
        self.model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
        self.options, self.loads, self.resets, self.seeds = options, 0, 0, []
        runner = SimpleNamespace(model_runner=SimpleNamespace(model=self))
        self.llm_engine = SimpleNamespace(model_executor=SimpleNamespace(driver_worker=runner))
        LLM.made.append(self)

    def load_weights(self, weights):
        own = dict(self.model.named_parameters())
        given = dict(weights)
        assert set(given) == set(own)
        with torch.no_grad():
            for name, value in given.items():
                own[name].copy_(value)
        self.loads += 1
        return set(given) - self.lost

    def named_parameters(self):
        return self.model.named_parameters()

    def reset_prefix_cache(self):
        self.resets += 1

    def generate(self, prompts, sampling_params, use_tqdm):
        assert len(prompts) == len(sampling_params)
        return [self._one(p["prompt_token_ids"], params) for p, params in zip(prompts, sampling_params)]

    @torch.no_grad()
    def _one(self, prompt, params):
        assert params.ignore_eos
        self.seeds.append(params.seed)
        ids, draws = list(prompt), np.random.default_rng(params.seed)
        for _ in range(params.max_tokens):
            logits = self.model(torch.tensor([ids])).logits[0, -1].float()
            share = logits.softmax(0).double().numpy()
            ids.append(
                int(logits.argmax())
                if params.temperature == 0
                else int(draws.choice(len(share), p=share / share.sum()))
            )
            if ids[-1] in params.stop_token_ids:
                break
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(ids[len(prompt) :]))])


@pytest.fixture(autouse=True)
def vllm(monkeypatch):
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, Params
    monkeypatch.setitem(sys.modules, "vllm", module)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "unset")  # so that what the engine sets is taken back
        monkeypatch.delenv(name)
    LLM.made = []


def adapted():
    torch.manual_seed(3)
    model = get_peft_model(llama(), LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False))
    return model.eval()


def greedy(engine, model):
    return engine.generate(model, RAGGED, 1, Sampling(temperature=0, max_new_tokens=12), [END], generators(len(RAGGED)))


@pytest.mark.parametrize("build", [qwen3, llama, adapted])
def test_greedy_tokens_are_those_of_the_other_engine_also_after_a_step(build):
    model, engine = build(), VllmEngine(dtype="float32")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05, fused=True)
    seen = []
    for _ in range(2):
        found, expected = greedy(engine, model), greedy(TransformersEngine(), model)
        for mine, theirs in zip(found, expected):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
        seen.append(found.ids.tolist())
        model(torch.tensor(RAGGED[:1]), labels=torch.tensor(RAGGED[:1])).loss.backward()
        optimizer.step()
    assert seen[0] != seen[1]  # else the second round would not show that weights are refreshed
    (llm,) = LLM.made
    assert (llm.loads, llm.resets) == (2, 2)


def test_reading_the_weights_changes_none_and_adds_what_adapters_add():
    model = adapted()
    before = {name: p.clone() for name, p in model.named_parameters()}
    found = {name: value.clone() for name, value in weights(model)}
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    merged = dict(model.merge_and_unload().named_parameters())
    assert set(found) == set(merged)
    for name, value in merged.items():
        torch.testing.assert_close(found[name], value)


def tuned(**words):
    return lambda: LoraConfig(r=2, target_modules=["q_proj", "down_proj"], **words)


@pytest.mark.filterwarnings("ignore")  # PEFT's, of tied weights
@pytest.mark.parametrize("make", [tuned(use_rslora=True), tuned(modules_to_save=["lm_head"])], ids=["rslora", "saved"])
def test_adapters_that_add_to_a_weight_are_those_that_peft_merges(make):
    torch.manual_seed(3)
    model = get_peft_model(llama(), make())
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    found = {name: value.clone() for name, value in weights(model)}
    merged = dict(model.merge_and_unload().named_parameters())
    assert set(found) == set(merged)
    for name, value in merged.items():
        torch.testing.assert_close(found[name], value)


@pytest.mark.filterwarnings("ignore")  # PEFT's, of what it may not be able to merge
@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (tuned(use_dora=True), r"lora\.layer, a variant"),
        (tuned(lora_bias=True), r"lora\.layer, a variant"),
        (lambda: LoraConfig(target_modules=["q_proj"], alora_invocation_tokens=[3, 4]), r"lora\.layer, a variant"),
        (tuned(trainable_token_indices=[1, 2]), "trainable_tokens"),
        (lambda: IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]), "ia3"),
        (lambda: LNTuningConfig(target_modules=["input_layernorm"]), "ln_tuning"),
    ],
)
def test_other_adapters_are_refused_before_vllm_starts(make, kind):
    model = get_peft_model(llama(), make())
    LLM.made.clear()
    with pytest.raises(ValueError, match=rf"VllmEngine takes over plain LoRA alone.*\({kind}"):
        greedy(VllmEngine(dtype="float32"), model)
    assert not LLM.made


def test_each_sample_has_a_seed_of_its_own_and_the_same_again():
    model, engine, sampling = qwen3(), VllmEngine(), Sampling(max_new_tokens=6)
    first = engine.generate(model, RAGGED, 3, sampling, [END], generators(21))
    second = engine.generate(model, RAGGED, 3, sampling, [END], generators(21))
    assert torch.equal(first.ids, second.ids)
    seeds = LLM.made[0].seeds
    assert len(set(seeds[:21])) == 21
    assert seeds[:21] == seeds[21:]
    for ids, length, ended in zip(*(x.tolist() for x in first)):
        assert END not in ids[: length - 1]
        assert ended == (ids[length - 1] == END)
        assert ended or length == 6


def test_the_copy_has_the_type_and_the_share_of_memory_that_were_asked_for():
    engine = VllmEngine(gpu_memory_utilization=0.5, max_model_len=40)
    greedy(engine, qwen3())
    (llm,) = LLM.made
    assert llm.model.dtype == torch.bfloat16
    assert llm.options == {"gpu_memory_utilization": 0.5, "max_model_len": 40, "enforce_eager": False}
    greedy(VllmEngine(), qwen3())
    assert LLM.made[1].options["max_model_len"] == 64  # the model's own


def test_without_vllm_the_way_to_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ValueError, match=r"lit-atex\[vllm\]"):
        greedy(VllmEngine(), qwen3())


def test_a_weight_that_does_not_arrive_is_an_error(monkeypatch):
    monkeypatch.setattr(LLM, "lost", {"model.norm.weight"})
    with pytest.raises(ValueError, match=r"Qwen3ForCausalLM lacks: \['model.norm.weight'\]"):
        greedy(VllmEngine(), qwen3())


def test_the_trainings_precision_and_random_numbers_are_left_alone():
    model = adapted()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        greedy(VllmEngine(), model)
    assert torch.equal(torch.rand(3), expected)


def test_a_completion_that_would_not_fit_is_refused():
    longest = max(map(len, RAGGED)) + 12
    greedy(VllmEngine(max_model_len=longest), qwen3())
    with pytest.raises(ValueError, match=r"max_model_len"):
        greedy(VllmEngine(max_model_len=longest - 1), qwen3())


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"one device"):
        greedy(VllmEngine(), qwen3())


@pytest.mark.parametrize(("key", "value"), [("max_model_len", 1), ("dtype", "blfoat16")])
def test_other_mistakes_name_their_key(key, value):
    with pytest.raises(ValueError, match=rf"model\.engine\.init_args\.{key}"):
        VllmEngine(**{key: value})


@pytest.mark.parametrize("share", [0.0, 1.0, math.nan])
def test_a_share_of_memory_that_is_none(share):
    with pytest.raises(ValueError, match=r"model\.engine\.init_args\.gpu_memory_utilization"):
        VllmEngine(share)
