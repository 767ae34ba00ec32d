"""What a model must do: those that do pass, whatever they are, and the others are refused with the reason."""

import pytest
import torch
import transformers
from fakes import two_layer_model
from packaging.version import Version
from test_decode import mistral, qwen2
from test_rollout import gpt2, lfm2, llama, qwen3, sliding
from transformers import AutoConfig, AutoModelForCausalLM

from lit_atex.checks import check_head, check_rows
from lit_atex.frozen import freeze_unread

SMALL = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 4, "pad_token_id": 0, "initializer_range": 0.4}
STATES = {
    "mamba": {},
    "mamba2": {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 2, "chunk_size": 8},
    "minimax": {
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 2,
        "block_size": 4,
    },
    "rwkv": {"attention_hidden_size": 32},
}


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("build", [two_layer_model, llama, qwen2, qwen3, mistral, sliding, gpt2, lfm2])
def test_a_model_that_will_do(build, half):
    model = build().bfloat16() if half else build()
    model.train()
    check_head(model)
    check_rows(model)
    assert all(module.training for module in model.modules())


@pytest.mark.filterwarnings("ignore")  # of kernels that are not installed
@pytest.mark.parametrize("kind", STATES)
def test_a_model_whose_rows_cannot_be_chosen_is_refused(kind):
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL, **STATES[kind])).eval()
    check_head(model)
    if kind == "mamba2" and Version(transformers.__version__) >= Version("5.24"):  # its rows can be chosen since
        check_rows(model)
        return
    with pytest.raises(ValueError, match=r"^model\.engine: \w+ForCausalLM cannot be sampled from in this process.*\("):
        check_rows(model)


def test_a_model_that_sums_up_padding_is_refused():
    """Its attention is to every four positions of a row together, whichever of them are padding."""
    heads = {"num_attention_heads": 4, "head_dim": 16, "qk_rope_head_dim": 4, "q_lora_rank": 16, "index_head_dim": 8}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    config = AutoConfig.for_model("deepseek_v4", **SMALL, **heads, **experts, max_position_embeddings=64)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    check_head(model)
    with pytest.raises(ValueError, match=r"^model\.engine: DeepseekV4ForCausalLM cannot be sampled from.*logits"):
        check_rows(model)


def test_a_model_whose_logits_depend_on_its_neighbours_is_refused():
    model = two_layer_model()
    forward = model.forward

    def mixed(*args, **words):
        output = forward(*args, **words)
        output.logits = output.logits + output.logits.roll(1, 0)
        return output

    model.forward = mixed
    with pytest.raises(ValueError, match="its logits are others"):
        check_rows(model)


@pytest.mark.parametrize(
    ("decoder", "kind"),
    [
        (lambda model: None, "NoneType"),
        (lambda model: model.lm_head, "Linear"),
        (lambda model: model, "Qwen3ForCausalLM"),
    ],
)
def test_a_model_without_a_decoder_is_refused_and_not_warned_of(decoder, kind, caplog):
    """ModernBertDecoder calls its head the decoder, Llama4 all of itself."""
    model = two_layer_model()
    found = decoder(model)
    model.get_decoder = lambda: found
    freeze_unread(model)
    assert not caplog.text
    with pytest.raises(ValueError, match=rf"its get_decoder\(\) is {kind}, and not a decoder that gives hidden states"):
        check_head(model)
