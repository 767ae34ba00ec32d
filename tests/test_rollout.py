"""Rollouts against transformers' own `generate` and warpers, and against probabilities computed by brute force."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lit_atex.rollout import Sampling, TransformersEngine, check_rollouts, draw
from lit_atex.scoring import completion_hidden
from lit_atex.types import Rollouts, seeded

VOCAB, END = 50, 7
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.4,  # large enough for logits that differ, so that an argmax is never a matter of rounding
    "pad_token_id": END,  # pad equals end, on purpose
    "eos_token_id": END,
    "bos_token_id": 1,
}
RAGGED = [[3, 4, 5, 6, 8, 9, 10], [11], [12, 13, 14], [7, 7, 15], [16, 17, 18, 19, 20], [21, 22], [23, 24, 25, 26]]


def qwen3(**changes):
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=8, **changes)).eval()


def llama():
    torch.manual_seed(1)
    return LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True)).eval()


def sliding():  # the prompt and the completion are longer than the window
    return qwen3(use_sliding_window=True, sliding_window=4, max_window_layers=1)


def gpt2():  # absolute positions
    torch.manual_seed(2)
    sizes = {"vocab_size": VOCAB, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
    return GPT2LMHeadModel(GPT2Config(**sizes, initializer_range=0.4, eos_token_id=END, pad_token_id=END)).eval()


def lfm2():  # convolution states beside keys and values
    torch.manual_seed(3)
    return Lfm2ForCausalLM(Lfm2Config(**SHAPE, layer_types=["conv", "full_attention"])).eval()


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads gain nothing on two layers, and on a busy machine they wait for each other ten times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model():
    return qwen3()


def generators(problems, samples=1, seed=0, first=0):
    return [seeded(seed, "rollout", 0, f"p{p}", s) for p in range(first, first + problems) for s in range(samples)]


def generate(model, prompts=RAGGED, samples=1, end_ids=(END,), streams=None, **sampling):
    streams = generators(len(prompts), samples) if streams is None else streams
    return TransformersEngine().generate(model, prompts, samples, Sampling(**sampling), end_ids, streams)


def rows(rollouts: Rollouts) -> list[list[int]]:
    return [row[:n] for row, n in zip(rollouts.ids.tolist(), rollouts.lengths.tolist(), strict=True)]


def reference(model, prompts, end_ids, max_new_tokens):
    """Greedy decoding by transformers, one prompt at a time: no padding, no batch, nothing of ours."""
    found = []
    for prompt in prompts:
        inputs = torch.tensor([prompt])
        output = model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=list(end_ids) or None,
            pad_token_id=0,
        )
        found.append(output[0, len(prompt) :].tolist())
    return found


def common_end(model):
    """An id that ends some greedy completions early, some late and some never."""
    free = reference(model, RAGGED, (), 20)
    return max(range(VOCAB), key=lambda i: len({r.index(i) if i in r else 20 for r in free}))


# --- what is generated


@pytest.mark.slow
@pytest.mark.parametrize("build", [qwen3, llama, sliding, gpt2, lfm2])
def test_greedy_equals_transformers_token_for_token(build):
    model = build()
    end = common_end(model)
    expected = reference(model, RAGGED, (end,), 20)
    assert len({len(r) for r in expected}) > 2, "the test needs completions of different lengths"
    found = generate(model, end_ids=(end,), temperature=0.0, max_new_tokens=20)
    assert rows(found) == expected
    assert found.ended.tolist() == [r[-1] == end for r in expected]
    assert found.ids.shape[1] == max(map(len, expected))
    assert not found.ids[~found.mask].any()
    # Several samples of one prompt are copies of its cache.
    twice = generate(model, samples=2, end_ids=(end,), temperature=0.0, max_new_tokens=20)
    assert rows(twice) == [r for r in expected for _ in range(2)]


def test_several_end_ids(model):
    ends = {common_end(model), reference(model, RAGGED, (), 20)[1][2]}
    assert rows(generate(model, end_ids=ends, temperature=0.0, max_new_tokens=20)) == reference(model, RAGGED, ends, 20)


@pytest.mark.parametrize("build", [qwen3, llama, sliding, lfm2])
def test_a_rollout_does_not_depend_on_its_neighbours(build):
    model = build()
    options = {"max_new_tokens": 24, "temperature": 1.5}
    # End ids taken from what is sampled, so that rows leave the batch at different times.
    free = rows(generate(model, end_ids=(), **options))
    options["end_ids"] = {free[0][3], free[1][6], free[2][9]}
    together = rows(generate(model, **options))
    assert len({len(r) for r in together}) > 2
    streams = generators(len(RAGGED))
    alone = [rows(generate(model, [p], streams=[s], **options))[0] for p, s in zip(RAGGED, streams, strict=True)]
    assert together == alone
    backwards = generate(model, RAGGED[::-1], streams=generators(len(RAGGED))[::-1], **options)
    assert rows(backwards)[::-1] == together


def test_samples_share_a_prefill_but_not_a_draw(model):
    options = {"max_new_tokens": 16, "temperature": 1.5}
    shared = generate(model, RAGGED[:3], samples=4, streams=generators(3, 4), **options)
    repeated = [p for p in RAGGED[:3] for _ in range(4)]
    separate = generate(model, repeated, samples=1, streams=generators(3, 4), **options)
    assert rows(shared) == rows(separate)
    assert len({tuple(r) for r in rows(shared)}) > 6


def test_same_seed_same_rollouts_and_the_global_generators_are_left_alone(model):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, second = generate(model, max_new_tokens=8), generate(model, max_new_tokens=8)
    other = generate(model, streams=generators(len(RAGGED), seed=1), max_new_tokens=8)
    assert rows(first) == rows(second) != rows(other)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])


def test_a_longer_limit_extends_the_same_rollout(model):
    short, long = rows(generate(model, max_new_tokens=5)), rows(generate(model, max_new_tokens=15))
    assert [r[:5] for r in long] == short


def test_the_end_token_is_part_of_the_rollout_and_cut_rows_have_not_ended(model):
    assert model.config.pad_token_id == END
    found = generate(model, samples=8, max_new_tokens=24, temperature=1.5)
    ended = found.ended.tolist()
    assert {True, False} == set(ended)
    for row, end in zip(rows(found), ended, strict=True):
        assert row.count(END) == end
        assert (row[-1] == END) == end
        assert end or len(row) == 24
    assert found.mask.sum().item() == found.lengths.sum().item()


def test_rows_that_wait_to_be_dropped_stay_as_they_ended(model):
    # Of 24 rows the first to end stay in the batch, fed with zeros; here 0 also ends a rollout.
    prompts, options = [*RAGGED * 3, *RAGGED[:3]], {"max_new_tokens": 20, "temperature": 1.5}
    ends = {0, common_end(model)}
    found = generate(model, prompts, end_ids=ends, **options)
    assert len(found.lengths.unique()) > 4
    assert not found.ids[~found.mask].any()
    streams = generators(len(prompts))
    for prompt, stream, row in zip(prompts, streams, rows(found), strict=True):
        assert rows(generate(model, [prompt], end_ids=ends, streams=[stream], **options)) == [row]


def test_without_end_ids_every_row_is_cut(model):
    found = generate(model, end_ids=(), max_new_tokens=6)
    assert found.lengths.tolist() == [6] * len(RAGGED)
    assert not found.ended.any()


def test_one_new_token(model):
    assert rows(generate(model, temperature=0.0, max_new_tokens=1)) == reference(model, RAGGED, (END,), 1)


# --- what a token is drawn from

LOGITS = torch.randn(4, 23, generator=torch.Generator().manual_seed(3)) * 1.5
FILTERS = [
    {},
    {"temperature": 0.6},
    {"top_k": 5},
    {"top_p": 0.7},
    {"min_p": 0.1},
    {"temperature": 1.3, "top_k": 12, "top_p": 0.8, "min_p": 0.1},
    {"top_k": 1},
    {"top_p": 1e-6},
    {"min_p": 1.0},
    {"top_k": 1000},
]


def warped(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """Probabilities after transformers' own warpers, in its own order."""
    chain = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        chain.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        chain.append(TopPLogitsWarper(top_p))
    if min_p:
        chain.append(MinPLogitsWarper(min_p))
    return chain(torch.zeros(len(logits), 1, dtype=torch.int64), logits).double().softmax(1)


def brute(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """The same by plain Python over one row."""
    weights = [math.exp(x / temperature) for x in logits.tolist()]
    order = sorted(range(len(weights)), key=lambda i: -weights[i])
    order = order[: top_k or None]
    total, kept, mass = sum(weights[i] for i in order), [], 0.0
    for i in order:
        if mass >= top_p:
            break
        kept.append(i)
        mass += weights[i] / total
    kept = [i for i in kept if weights[i] >= min_p * weights[order[0]]]
    total = sum(weights[i] for i in kept)
    return [weights[i] / total if i in kept else 0.0 for i in range(len(weights))]


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_draws_follow_the_filtered_distribution(filters):
    draws = 20_000
    uniforms = torch.from_numpy(seeded(5, "test").random(draws))
    probabilities = warped(LOGITS, **filters)
    for row, expected in zip(LOGITS, probabilities, strict=True):
        assert brute(row, **filters) == pytest.approx(expected.tolist(), abs=1e-6)
        counts = draw(row.expand(draws, -1), uniforms, Sampling(**filters)).bincount(minlength=len(row))
        support = expected > 0
        assert counts[~support].sum() == 0
        if support.sum() > 1:
            observed, wanted = counts[support].numpy(), (expected[support] * draws).numpy()
            assert stats.chisquare(observed, wanted, sum_check=False).pvalue > 1e-4


@pytest.mark.parametrize("vocab", [1, 2, 127, 128, 129, 5000])
def test_a_draw_is_the_first_index_whose_cumulative_probability_exceeds_the_number(vocab):
    logits = torch.randn(1, vocab, generator=torch.Generator().manual_seed(vocab)) * 2
    cumulative = np.cumsum(logits.double().softmax(1)[0].numpy())
    # Away from the borders, where rounding decides; one number in the middle of every index's interval.
    middles = (np.concatenate([[0.0], cumulative[:-1]]) + cumulative) / 2
    found = draw(logits.expand(vocab, -1), torch.from_numpy(middles), Sampling())
    assert found.tolist() == list(range(vocab))


def test_rare_ids_of_a_wide_vocabulary_are_drawn_as_often_as_they_should():
    # Half the mass on id 0 and the rest spread over 151,935 ids of 3e-6 each: float32 sums would be off by a multiple.
    logits = torch.zeros(1, 151_936)
    logits[0, 0] = math.log(151_935)
    index = np.array([1, 2, 77, 128, 12_345, 100_000, 151_934, 151_935])
    uniforms = 0.5 + 0.5 * (index - 0.5) / 151_935
    found = draw(logits.expand(len(index), -1), torch.from_numpy(uniforms), Sampling())
    assert found.tolist() == index.tolist()


@pytest.mark.parametrize("uniform", [0.0, math.nextafter(0.0, 1.0), 0.5, math.nextafter(1.0, 0.0)])
@pytest.mark.parametrize("vocab", [3, 128, 300, 1000])
def test_an_id_of_probability_zero_is_never_drawn(uniform, vocab):
    noise = torch.Generator().manual_seed(vocab)
    for _ in range(30):
        logits = torch.randn(vocab, generator=noise) * 3
        logits[torch.rand(vocab, generator=noise) < 0.8] = -torch.inf
        logits[0] = logits[-1] = -torch.inf  # where the two edges would fall
        logits[1] = logits[1].nan_to_num(neginf=0.0)
        found = draw(logits[None], torch.tensor([uniform], dtype=torch.float64), Sampling())
        assert logits[found].isfinite().all()
        filtered = draw(logits[None], torch.tensor([uniform], dtype=torch.float64), Sampling(top_p=0.9, min_p=0.05))
        assert warped(logits[None], top_p=0.9, min_p=0.05)[0, filtered] > 0


def test_the_edges_of_the_uniform_number_are_the_first_and_the_last_possible_id():
    logits = torch.full((1, 400), -torch.inf)
    logits[0, [131, 200, 290]] = torch.tensor([0.0, 1.0, 2.0])
    edges = torch.tensor([0.0, math.nextafter(1.0, 0.0)], dtype=torch.float64)
    assert draw(logits.expand(2, -1), edges, Sampling()).tolist() == [131, 290]


def test_a_number_on_a_border_belongs_to_the_next_id():
    uniforms = torch.tensor([0.0, 0.25, math.nextafter(0.5, 0.0), 0.5, 0.75], dtype=torch.float64)
    assert draw(torch.zeros(5, 4), uniforms, Sampling()).tolist() == [0, 1, 1, 2, 3]


def test_ids_that_tie_at_the_border_are_all_kept():
    logits = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0]]).expand(1000, -1)
    uniforms = torch.linspace(0, 0.999, 1000, dtype=torch.float64)
    for filters in ({"top_k": 2}, {"top_p": 0.6}):
        assert draw(logits, uniforms, Sampling(**filters)).unique().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("filters", [{}, {"temperature": 0.7, "top_k": 8, "top_p": 0.9}], ids=str)
def test_first_tokens_of_a_model_follow_its_probabilities(model, filters):
    samples = 4000
    found = generate(model, RAGGED[:1], samples=samples, max_new_tokens=1, **filters)
    with torch.no_grad():
        expected = warped(model(torch.tensor(RAGGED[:1])).logits[:, -1], **filters)[0].numpy() * samples
    observed = found.ids[:, 0].bincount(minlength=VOCAB).numpy()
    common = expected >= 5
    observed = np.append(observed[common], observed[~common].sum())
    expected = np.append(expected[common], expected[~common].sum())
    if expected[-1] == 0:
        assert observed[-1] == 0
        observed, expected = observed[:-1], expected[:-1]
    assert stats.chisquare(observed, expected, sum_check=False).pvalue > 1e-4


# --- what is left behind


def test_modes_and_gradients_are_left_as_they_were(model):
    model.train()
    model.model.layers[0].eval()
    model.lm_head.weight.requires_grad_(False)
    before = [(m.training, *(p.requires_grad for p in m.parameters(recurse=False))) for m in model.modules()]
    try:
        found = generate(model, max_new_tokens=4)
        after = [(m.training, *(p.requires_grad for p in m.parameters(recurse=False))) for m in model.modules()]
        assert before == after
        with pytest.raises(FloatingPointError, match="not finite"):
            generate(Broken(model), max_new_tokens=4)
        assert model.training
        assert not model.model.layers[0].training
        assert torch.is_grad_enabled()
        assert all(p.grad is None for p in model.parameters())
        # Tensors made under inference_mode could not enter a graph.
        assert not any(t.is_inference() for t in found)
        model(found.ids).logits.sum().backward()
        assert any(p.grad is not None for p in model.parameters())
    finally:
        model.zero_grad()
        model.lm_head.weight.requires_grad_(True)
        model.eval()


def test_dropout_is_off_and_gradient_checkpointing_does_not_break_the_cache():
    plain = rows(generate(qwen3(), max_new_tokens=12))
    model = qwen3(attention_dropout=0.5).train()
    model.activation_checkpointing_enable()
    assert rows(generate(model, max_new_tokens=12)) == plain
    assert model.is_activation_checkpointing
    assert model.training


def test_weights_get_gradients_after_rollouts_in_the_same_autocast_block(model):
    linear = model.model.layers[0].mlp.up_proj.weight
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = generate(model, max_new_tokens=4)
        model(found.ids).logits.float().logsumexp(-1).sum().backward()
    assert linear.grad is not None
    assert linear.grad.abs().sum() > 0
    model.zero_grad()


def test_bfloat16_weights():
    found = generate(qwen3().bfloat16(), max_new_tokens=8, samples=2)
    assert found.ids.dtype == torch.int64
    assert len(found.ids) == 2 * len(RAGGED)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")  # from within peft
def test_lora_model_equals_its_merged_self():
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(4)
    model = get_peft_model(qwen3(), LoraConfig(r=4, target_modules=["q_proj", "down_proj"], lora_dropout=0.5))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.train()
    greedy = rows(generate(model, temperature=0.0, max_new_tokens=12))
    sampled = rows(generate(model, samples=2, max_new_tokens=12))
    assert model.training
    merged = model.merge_and_unload().eval()
    assert greedy == reference(merged, RAGGED, (END,), 12)
    assert greedy != reference(qwen3(), RAGGED, (END,), 12)
    assert sampled == rows(generate(merged, samples=2, max_new_tokens=12))


# --- what is refused


class Broken(torch.nn.Module):
    """A model whose logits become NaN in the second row once the completion has begun."""

    def __init__(self, model):
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, **inputs):
        output = self.model(**inputs)
        if inputs["input_ids"].shape[1] == 1:
            output.logits[1] = torch.nan
        return output


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {}, {"top_p": 0.9}, {"top_k": 3, "min_p": 0.1}], ids=str)
def test_logits_that_are_not_finite_are_an_error(model, options):
    with pytest.raises(FloatingPointError, match=r"not finite at completion token 1 of rollouts \[1\]"):
        generate(Broken(model), end_ids=(), max_new_tokens=4, **options)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", -1.0),
        ("temperature", 1e-6),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("top_p", math.nan),
        ("top_k", -1),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("max_new_tokens", 0),
    ],
)
def test_sampling_names_the_key_and_the_mend(key, value):
    with pytest.raises(ValueError, match=rf"sampling\.{key}=.*: set"):
        Sampling(**{key: value})


def test_longrope_stays_where_a_row_does_not_depend_on_its_neighbours():
    factors = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [3.0, 5.0, 7.0, 9.0]}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, **factors}
    torch.manual_seed(0)
    model = Phi3ForCausalLM(Phi3Config(**SHAPE, original_max_position_embeddings=16, rope_parameters=rope)).eval()
    fits = generate(model, [[3] * 4, [4] * 2], max_new_tokens=12, temperature=0.0)
    assert len(completion_hidden(model, [[3] * 4, [4] * 2], fits)) == fits.lengths.sum()
    with pytest.raises(
        ValueError, match=r"13 exceed .* 16 tokens \(original_max_position_embeddings; .*LongRoPE.*lower"
    ):
        generate(model, [[3] * 4, [4] * 2], max_new_tokens=13)
    with pytest.raises(ValueError, match=r"context is 16 \(original_max_position_embeddings.*: lower model\.prompts"):
        completion_hidden(model, [[3] * 4, [4] * 5], fits)


def test_requests_that_do_not_fit_are_refused(model):
    with pytest.raises(
        ValueError, match=r"sampling\.max_new_tokens=60 .* 64 tokens \(max_position_embeddings\): lower"
    ):
        generate(model, max_new_tokens=60)
    assert generate(model, max_new_tokens=57, temperature=0.0).ids.shape[1] <= 57  # 7 + 57 = 64 fits
    with pytest.raises(ValueError, match="at least one token"):
        generate(model, [[1], []])
    with pytest.raises(ValueError, match="at least one prompt"):
        generate(model, [])
    with pytest.raises(ValueError, match="samples=0"):
        generate(model, samples=0)
    with pytest.raises(ValueError, match="3 were given for 7 prompts x 2 samples"):
        generate(model, samples=2, streams=generators(3))


ROLLOUTS = Rollouts(torch.tensor([[5, 7, 0], [8, 9, 49]]), torch.tensor([2, 3]), torch.tensor([True, False]))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"ids": ROLLOUTS.ids.int()}, r"torch\.int32 \[2, 3\]"),
        ({"ids": ROLLOUTS.ids[:1]}, r"torch\.int64 \[1, 3\]"),
        ({"ids": ROLLOUTS.ids[0]}, r"torch\.int64 \[3\] on cpu, torch\.int64 \[2\]"),
        ({"ids": ROLLOUTS.ids[:, :0]}, r"torch\.int64 \[2, 0\]"),
        ({"ids": ROLLOUTS.ids.tolist()}, "a Rollouts"),
        ({"ids": ROLLOUTS.ids + 1}, "lengths from 2 to 3 in 3 columns, ids from 0 to 50"),
        ({"ids": ROLLOUTS.ids - 9}, "ids from -4 to 40"),
        ({"lengths": torch.tensor([2.0, 3.0])}, "torch.float32"),
        ({"lengths": torch.tensor([2, 4])}, "lengths from 2 to 4 in 3 columns"),
        ({"lengths": torch.tensor([-1, 3])}, "lengths from -1 to 3"),
        ({"ended": ROLLOUTS.lengths}, r"on cpu, torch\.int64 \[2\] on cpu\.$"),
    ],
)
def test_what_an_engine_returns_is_looked_at(model, changed, told):
    check_rollouts(ROLLOUTS, 2, model, "Mine")
    check_rollouts(ROLLOUTS._replace(ids=torch.tensor([[5, 7, 999], [8, 9, 49]])), 2, model, "Mine")  # any padding
    with pytest.raises(ValueError, match=rf"model\.engine: Mine\.generate must return Rollouts.* of 2 rows.*{told}"):
        check_rollouts(ROLLOUTS._replace(**changed), 2, model, "Mine")
    with pytest.raises(ValueError, match=r"model\.engine: Mine.* of 3 rows"):
        check_rollouts(ROLLOUTS, 3, model, "Mine")
    with pytest.raises(ValueError, match="returned a list"):
        check_rollouts([[5, 7], [8, 9, 49]], 2, model, "Mine")
