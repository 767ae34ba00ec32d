"""The written-out decoding step against the model's own forward pass."""

from __future__ import annotations

import re

import pytest
import torch
from peft import LNTuningConfig, get_peft_model
from test_rollout import RAGGED, SHAPE, VOCAB, generate, generators, gpt2, lfm2, llama, qwen3, rows, sliding
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

from lit_atex import decode, products
from lit_atex.decode import LlamaDecoder, ModelDecoder, allotted, attention, compaction, decoder_for
from lit_atex.rollout import Sampling, evaluating, sample
from lit_atex.types import seeded


def qwen2():  # biases on queries, keys and values, and a window that is switched off
    torch.manual_seed(5)
    model = Qwen2ForCausalLM(Qwen2Config(**SHAPE, sliding_window=4)).eval()
    for name, parameter in model.named_parameters():
        if "bias" in name:
            nn.init.normal_(parameter)
    return model


def mistral():
    torch.manual_seed(6)
    return MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=None)).eval()


def scaled_rope():
    torch.manual_seed(7)
    rope = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = LlamaConfig(**SHAPE, attention_bias=True, rope_parameters=rope | {"original_max_position_embeddings": 16})
    return LlamaForCausalLM(config).eval()


def growing_rope():
    config = LlamaConfig(**SHAPE, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("same_length", [True, False])
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("build", [qwen3, llama, qwen2, mistral, scaled_rope])
def test_logits_are_those_of_the_model(build, packed, samples, same_length, monkeypatch):
    monkeypatch.setattr(products, "PACKED", 1 if packed else 10**9)
    monkeypatch.setattr(products, "PATIENCE", 2)
    model = build()
    prompts = [p[:2] for p in RAGGED if len(p) > 1] if same_length else RAGGED
    ours, theirs = decoder_for(model), ModelDecoder(model)
    assert isinstance(ours, LlamaDecoder)
    numbers = seeded(0, "test")
    with evaluating(model):
        logits = [d.read(prompts, samples, 12) for d in (ours, theirs)]
        for step in range(12):
            torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-5 * float(logits[1].abs().max()))
            if step in (3, 7):  # rows leave, and others take their places
                count = len(logits[0])
                kept = torch.from_numpy(numbers.permutation(count)[: count - 2])
                for d in (ours, theirs):
                    d.keep(kept)
            token = torch.from_numpy(numbers.integers(0, VOCAB, len(logits[0]) - 2 * (step in (3, 7))))
            logits = [d.step(token) for d in (ours, theirs)]


@pytest.mark.parametrize("how", ["bfloat16", "float16", "autocast"])
@pytest.mark.parametrize("build", [qwen3, llama, qwen2])
def test_in_half_precision_logits_are_those_of_the_model_but_for_rounding(build, how):
    """Against the model in float32: our step is about as far from it as the model's own, step after step."""
    exact, model = build(), build()
    if how != "autocast":
        model = model.to(getattr(torch, how))
    decoders = [decoder_for(model), ModelDecoder(model), ModelDecoder(exact)]
    assert isinstance(decoders[0], LlamaDecoder)
    numbers, token, gaps = seeded(0, "test"), None, []
    for step in range(12):
        logits = []
        for i, decoder in enumerate(decoders):
            with evaluating(decoder.model), torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast" and i < 2):
                found = decoder.step(token) if step else decoder.read(RAGGED, 2, 12)
            logits.append(found.float())
        token = torch.from_numpy(numbers.integers(0, VOCAB, len(logits[0])))
        gaps.append([(x - logits[2]).norm() / logits[2].norm() for x in logits[:2]])
    ours, theirs = torch.tensor(gaps).mean(0).tolist()
    assert 0 < theirs < 0.1
    assert ours < 1.5 * theirs


@pytest.mark.filterwarnings("ignore")  # PEFT's, of tied weights
def test_a_norm_that_an_adapter_has_taken_over_runs_by_the_adapter():
    """PEFT's layer for tuned norms passes attributes on to what it wraps."""
    torch.manual_seed(3)
    model = get_peft_model(llama(), LNTuningConfig(target_modules=["input_layernorm"])).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, 1.0, 0.5)
    ours, theirs = decoder_for(model), ModelDecoder(model)
    assert isinstance(ours, LlamaDecoder)
    with evaluating(model):
        for decoder in (ours, theirs):
            decoder.read(RAGGED, 1, 4)
        token = torch.arange(len(RAGGED))
        torch.testing.assert_close(ours.step(token), theirs.step(token), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("build", [gpt2, lfm2, sliding, growing_rope])
def test_other_models_run_by_their_own_forward_pass(build):
    assert isinstance(decoder_for(build()), ModelDecoder)


def test_a_model_that_somebody_hooks_into_runs_by_its_own_forward_pass():
    model = qwen3()
    calls = []
    handle = model.model.layers[0].mlp.register_forward_hook(lambda *args: calls.append(1))
    assert isinstance(decoder_for(model), ModelDecoder)
    generate(model, max_new_tokens=3, end_ids=())
    assert len(calls) == 3
    handle.remove()
    assert isinstance(decoder_for(model), LlamaDecoder)


@pytest.mark.parametrize("by_products", [True, False])
@pytest.mark.parametrize("padded", [True, False])
def test_attention_is_that_of_the_float64_formula_by_products_and_by_the_fused_kernel(by_products, padded):
    draws = torch.Generator().manual_seed(0)
    key = torch.randn(16, 2, 8, 40, generator=draws).transpose(2, 3)[:, :, :31]  # a part of what is allocated
    value = torch.randn(16, 2, 40, 8, generator=draws)[:, :, :31]
    query = torch.randn(16, 2, 3, 8, generator=draws)
    bias = torch.zeros(16, 1, 1, 31)
    bias[::2, ..., :7] = -torch.inf
    found = attention(query, key, value, bias if padded else None, 0.4, by_products)
    scores = 0.4 * query.double() @ key.double().transpose(2, 3) + (bias if padded else 0)
    torch.testing.assert_close(found.double(), scores.softmax(3) @ value.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [15, 16])
def test_rows_that_leave_take_their_keys_along_however_these_lie(rows):
    model, prompts = qwen3(), (RAGGED * rows)[:rows]
    decoder = LlamaDecoder(model)
    with torch.no_grad():
        token = decoder.read(prompts, 1, 8).argmax(1)
        decoder.step(token)
        kept = torch.tensor([rows - 1, 1, 0])
        decoder.keep(kept)
        found = decoder.step(token[kept])
        for row, logits in zip(kept.tolist(), found):
            ids = torch.tensor([[*prompts[row], *[int(token[row])] * 2]])
            torch.testing.assert_close(logits, model(input_ids=ids).logits[0, -1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("samples", [1, 4])
def test_a_cache_that_has_grown_gives_the_logits_of_one_made_for_all_tokens(samples, monkeypatch):
    model, numbers, decoders = qwen3(), seeded(0, "test"), []
    with torch.no_grad():
        for first in (3, 10**9):
            monkeypatch.setattr(decode, "FIRST", first)
            decoders.append(decoder_for(model))
            left = len(decoders[-1].read(RAGGED, samples, 40))
        monkeypatch.setattr(decode, "FIRST", 3)
        held = set()
        for step in range(40):
            if step in (2, 3, 11, 30):
                kept = torch.from_numpy(numbers.permutation(left)[: max(1, left * 2 // 3)])
                left = len(kept)
                for decoder in decoders:
                    decoder.keep(kept)
            token = torch.from_numpy(numbers.integers(0, VOCAB, left))
            found, whole = (decoder.step(token) for decoder in decoders)
            torch.testing.assert_close(found, whole, rtol=1e-6, atol=1e-6 * float(whole.abs().max()))
            held.add(decoders[0]._keys.shape[3])
    assert len(held) == 5  # 3, 5, 10, 20 and 40 tokens, after the prompt


@pytest.mark.slow
@pytest.mark.parametrize("room", [300, 38_912])
@pytest.mark.parametrize("copies", [1, 8])
def test_a_cache_has_memory_for_little_more_than_the_rows_that_run_have_filled(room, copies):
    """Within a factor of four, and of `FIRST` tokens a row; a long limit that is not reached costs nothing."""
    model, numbers = qwen3(), seeded(0, "test")
    decoder, steps = LlamaDecoder(model), min(room, 620)
    heads, width = model.config.num_key_value_heads, model.config.head_dim
    with torch.no_grad():
        left = len(decoder.read(RAGGED, copies, room))
        for new in range(1, steps):
            if left > 1 and new % 20 == 0:
                left -= 1
                decoder.keep(torch.from_numpy(numbers.permutation(left + 1)[:left]))
            decoder.step(torch.from_numpy(numbers.integers(0, VOCAB, left)))
            held = sum(x.untyped_storage().nbytes() for x in (decoder._keys, decoder._values))
            row = 2 * len(decoder._layers) * heads * width * 4
            assert held < row * 2 * left * (max(map(len, RAGGED)) + 2 * max(new, decode.FIRST))


def test_a_cache_is_made_for_a_share_of_the_limit_and_copied_less_often_than_it_is_long():
    assert [allotted(0, room) for room in (2, 128, 510, 512, 2048, 38_912)] == [2, 128, 510, 256, 256, 304]
    for room in (1, 300, 777, 38_912, 99_999):
        sizes = [allotted(0, room)]
        while sizes[-1] < room:
            sizes.append(allotted(sizes[-1] + 1, room))
            assert sizes[-2] < sizes[-1] <= 2 * sizes[-2]
        assert sizes[-1] == room
        assert sum(sizes[:-1]) <= room + len(sizes)


def test_compaction_fills_the_places_of_the_ended_rows_and_moves_no_other():
    running = torch.tensor([True, False, True, True, False, False, True, True])
    assert compaction(running, 5).tolist() == [0, 6, 2, 3, 7]
    assert compaction(torch.ones(3, dtype=torch.bool), 3).tolist() == [0, 1, 2]
    assert compaction(torch.tensor([False, True]), 1).tolist() == [1]


@pytest.mark.parametrize("build", [qwen3, lfm2])
def test_how_often_the_host_looks_decides_nothing(build):
    model, prompts = build(), RAGGED * 3
    sampling = Sampling(temperature=1.5, max_new_tokens=20)
    uniforms = torch.stack([torch.from_numpy(g.random(20)) for g in generators(len(prompts))])
    found = []
    with evaluating(model):
        for every in (1, 4, 16, 50):
            decoder = decoder_for(model)
            logits = decoder.read(prompts, 1, 20)
            found.append(sample(decoder, logits, uniforms, sampling, {0, 5, 9, 17}, every))
    assert len(set(found[0].lengths.tolist())) > 4
    assert all(rows(f) == rows(found[0]) and f.ended.equal(found[0].ended) for f in found)


@pytest.mark.parametrize("every", [1, 4])
def test_logits_that_are_not_finite_are_found_with_the_token_at_which_they_were(every):
    model, greedy = qwen3(), Sampling(temperature=0.0, max_new_tokens=6)
    first = rows(generate(model, temperature=0.0, max_new_tokens=1))
    broken = next(row[0] for row in first if not any(row[0] in p for p in RAGGED))  # fed, but in no prompt
    model.model.embed_tokens.weight.data[broken] = torch.nan
    hit = [i for i, row in enumerate(first) if row == [broken]]
    decoder = decoder_for(model)
    with (
        evaluating(model),
        pytest.raises(FloatingPointError, match=re.escape(f"not finite at completion token 1 of rollouts {hit}")),
    ):
        sample(decoder, decoder.read(RAGGED, 1, 6), torch.zeros(len(RAGGED), 6).double(), greedy, set(), every)
