"""Hidden states of shared prompts and grouped rows against one plain forward pass per rollout."""

from __future__ import annotations

import pytest
import torch
from fakes import two_layer_model
from transformers import Lfm2Config, Lfm2ForCausalLM

from lit_atex import scoring
from lit_atex.scoring import completion_hidden
from lit_atex.types import Rollouts, seeded


def lfm2():  # convolution states beside keys and values: its prompts cannot be shared
    torch.manual_seed(3)
    sizes = {"vocab_size": 259, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    return Lfm2ForCausalLM(
        Lfm2Config(
            **sizes,
            num_hidden_layers=2,
            num_key_value_heads=2,
            max_position_embeddings=512,
            pad_token_id=0,
            layer_types=["conv", "full_attention"],
        )
    )


def sliding():
    return two_layer_model(use_sliding_window=True, sliding_window=4, max_window_layers=1)


def batch(samples: int, longest: int, problems: int = 5, seed: int = 0) -> tuple[list[list[int]], Rollouts]:
    numbers = seeded(seed, "test")
    prompts = [numbers.integers(1, 259, int(n)).tolist() for n in numbers.integers(1, 30, problems)]
    lengths = torch.from_numpy(numbers.integers(0, longest + 1, problems * samples))
    lengths[0] = longest
    ids = torch.from_numpy(numbers.integers(0, 259, (len(lengths), longest)))
    return [p for p in prompts for _ in range(samples)], Rollouts(ids, lengths, torch.ones_like(lengths).bool())


def one_by_one(model, prompts, rollouts) -> torch.Tensor:
    """No padding, no cache, no batch."""
    found = []
    for prompt, ids, n in zip(prompts, rollouts.ids, rollouts.lengths.tolist()):
        row = torch.cat([torch.tensor(prompt), ids[:n]])[None]
        hidden = model.get_decoder()(input_ids=row, use_cache=False).last_hidden_state[0]
        found.append(hidden[len(prompt) - 1 : len(prompt) - 1 + n])
    return torch.cat(found)


def gradients(model, hidden) -> list[torch.Tensor]:
    slope = torch.sin(torch.arange(hidden.numel(), dtype=hidden.dtype)).view_as(hidden)
    return list(torch.autograd.grad((hidden * slope).sum(), list(model.get_decoder().parameters())))


@pytest.mark.parametrize(("samples", "longest"), [(1, 12), (4, 12), (3, 1), (1, 400), (12, 100)])
@pytest.mark.parametrize("build", [two_layer_model, sliding, lfm2])
def test_states_and_gradients_are_those_of_each_row_alone(build, samples, longest):
    model = build()
    prompts, rollouts = batch(samples, longest)
    assert (len(scoring._groups(rollouts.lengths.tolist())) > 1) == (longest >= 100)
    got, want = completion_hidden(model, prompts, rollouts), one_by_one(model, prompts, rollouts)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(gradients(model, got), gradients(model, want), strict=True):
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


def fed(model) -> list[int]:
    """Tokens of each forward pass from here on."""
    counts: list[int] = []
    model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: counts.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    return counts


def test_a_prompt_is_read_once_for_all_its_samples():
    model, (prompts, rollouts) = two_layer_model(), batch(8, 10, problems=2)
    counts = fed(model)
    completion_hidden(model, prompts, rollouts)
    assert counts == [2 * max(map(len, prompts)), 16 * 9]
    # Not where checkpointing switches the cache off, and not where there is nothing to share.
    model.activation_checkpointing_enable()
    counts.clear()
    completion_hidden(model.train(), prompts, rollouts)
    assert counts == [16 * (max(map(len, prompts)) + 10)]
    counts.clear()
    completion_hidden(model.eval(), prompts[::8], Rollouts(*(x[::8] for x in rollouts)))
    assert counts == [2 * (max(map(len, prompts)) + 10)]


def test_a_problem_that_comes_twice_and_a_rollout_without_tokens():
    model = two_layer_model()
    prompts, rollouts = batch(2, 6, problems=2)
    prompts = [prompts[0], prompts[0], prompts[0], prompts[2]]  # runs of unequal length
    rollouts.lengths[1] = 0
    with torch.no_grad():
        got = completion_hidden(model, prompts, rollouts)
        torch.testing.assert_close(got, one_by_one(model, prompts, rollouts), rtol=1e-5, atol=1e-5)


def test_groups_leave_padding_out_and_hold_every_rollout_once():
    lengths = torch.tensor([500, 20, 480, 30, 25, 490] * 8)
    groups = scoring._groups(lengths.tolist())
    assert sorted(i for group in groups for i in group) == list(range(48))
    padded = sum(len(group) * max(int(lengths[i]) for i in group) for group in groups)
    assert padded < 1.05 * int(lengths.sum())
    assert scoring._groups([500] * 48) == [list(range(48))]
