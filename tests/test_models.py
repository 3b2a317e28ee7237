"""Models: the lab's score is transformers' score, mean pooling in last-token form, the critic, saving and loading."""

import copy
import json

import pytest
import torch
from tiny import PROMPTS, TEXTS, hub_model, language_model, reward_model, saved_hub_model, tokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rlhf_lab.config import ModelConfig, PPOConfig, SamplingConfig
from rlhf_lab.errors import InputError
from rlhf_lab.models import (
    Critic,
    frozen_copy,
    head_of,
    hidden_states,
    load_language_model,
    load_reward_model,
    load_tokenizer,
    new_language_model,
    new_reward_model,
    save_model,
    sequence_scores,
)
from rlhf_lab.ppo import PPO
from rlhf_lab.text import encode_dialogues, pad_right


def ragged_batch() -> tuple[torch.Tensor, torch.Tensor]:
    dialogues = encode_dialogues(tokenizer(), [(p, t) for p in PROMPTS for t in TEXTS])
    return pad_right([d.ids for d in dialogues], tokenizer().pad_token_id)


# --- the reward model -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "pooling"),
    [("llama", "mean"), ("llama", "last"), ("gpt2", "last"), ("gpt-neox", "last"), ("qwen2", "last")],
)
def test_the_saved_reward_model_gives_the_same_scores_in_transformers_own_class(kind, pooling, tmp_path):
    language = language_model() if kind == "llama" else hub_model(kind)
    model = new_reward_model(language, pooling)
    save_model(model, tokenizer(), tmp_path)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=1).eval()
    ids, lengths = ragged_batch()
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    with torch.no_grad():
        ours = sequence_scores(model, ids, lengths)
        torch.testing.assert_close(theirs(ids, attention_mask=mask.long()).logits[:, 0], ours, atol=1e-5, rtol=0)
        torch.testing.assert_close(theirs(ids).logits[:, 0], ours, atol=1e-5, rtol=0)  # right padding needs no mask
    loaded, _ = load_reward_model(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(sequence_scores(loaded, ids, lengths), ours, atol=1e-6, rtol=0)
    assert ours.std() > 1e-3  # else all scores agree with everything


def test_transformers_own_tokenizer_and_template_lead_to_the_same_score(tmp_path):
    """What a user of the saved folder does, without the lab: apply_chat_template, then the classifier."""
    save_model(reward_model(), tokenizer(), tmp_path)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=1).eval()
    messages = [{"role": "user", "content": PROMPTS[0]}, {"role": "assistant", "content": TEXTS[0]}]
    batch = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(
        messages, tokenize=True, return_tensors="pt", return_dict=True
    )
    ids, lengths = pad_right([d.ids for d in encode_dialogues(tokenizer(), [(PROMPTS[0], TEXTS[0])])], 1)
    with torch.no_grad():
        score = theirs(input_ids=batch["input_ids"]).logits.item()
        assert score == pytest.approx(sequence_scores(reward_model(), ids, lengths).item(), abs=1e-5)


@torch.no_grad()
def test_mean_pooling_starts_as_the_mean_over_the_sequence():
    """The added block turns a state h into h plus, nearly, the mean of the (normalised) states so far."""
    model = reward_model(pooling="mean")
    ids, lengths = ragged_batch()
    states = {}
    block = model.model.layers[-1]
    hook = block.register_forward_hook(lambda module, args, out: states.update(into=args[0], out=out))
    hidden_states(model, ids)
    hook.remove()
    into, out = states["into"], states["out"] if torch.is_tensor(states["out"]) else states["out"][0]
    for row, length in enumerate(lengths.tolist()):
        mean = block.input_layernorm(into[row, :length]).mean(0)
        added = (out - into)[row, length - 1]
        assert (added - mean).norm() < 0.05 * mean.norm()


def test_the_reward_model_starts_from_the_language_model():
    language = language_model()
    model = new_reward_model(language, "mean")
    assert torch.equal(model.model.embed_tokens.weight, language.model.embed_tokens.weight)
    assert len(model.model.layers) == len(language.model.layers) + 1
    for own, theirs in zip(model.model.layers, language.model.layers, strict=False):
        assert torch.equal(own.mlp.up_proj.weight, theirs.mlp.up_proj.weight)
    heads = torch.cat([head_of(new_reward_model(language, "last", seed=s)).weight.detach() for s in range(40)])
    assert heads.std().item() == pytest.approx(17**-0.5, rel=0.1)  # N(0, 1/√(d + 1)), d = 16


def test_mean_pooling_needs_the_llama_architecture():
    with pytest.raises(InputError, match="pooling='last'"):
        new_reward_model(hub_model("gpt2"), "mean")


def test_a_seed_decides_the_random_weights_and_disturbs_nobody_else():
    config = ModelConfig(vocab_size=300, hidden_size=16, layers=1, heads=2, context=32)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    one, same, other = (new_language_model(config, tokenizer(), seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(one.lm_head.weight, same.lm_head.weight)
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)


# --- critic and reference ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["mean", "last"])
@torch.no_grad()
def test_the_critic_s_value_is_the_score_of_the_prefix(pooling):
    model = reward_model(pooling=pooling)
    critic = Critic(model)
    ids, lengths = ragged_batch()
    values = critic(ids)
    rows = torch.arange(len(ids))
    torch.testing.assert_close(values[rows, lengths - 1], sequence_scores(model, ids, lengths), atol=1e-5, rtol=0)
    torch.testing.assert_close(values[:, 4], sequence_scores(model, ids[:, :5], torch.full_like(lengths, 5)))


def test_training_the_critic_leaves_the_reward_model_alone():
    model = reward_model()
    critic = Critic(model)
    with torch.no_grad():
        head_of(critic.model).weight.zero_()
    assert head_of(model).weight.abs().sum() > 0
    assert all(p.requires_grad for p in critic.parameters())


def test_the_reference_is_frozen_and_its_own():
    model = language_model()
    copy = frozen_copy(model)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert copy.lm_head.weight.abs().sum() > 0
    assert not any(p.requires_grad for p in copy.parameters()) and not copy.training


# --- loading ----------------------------------------------------------------------------------------------------------


def test_what_is_saved_is_loaded(tmp_path):
    model = language_model()
    save_model(model, tokenizer(), tmp_path)
    loaded, own_tokenizer = load_language_model(tmp_path)
    ids, _ = ragged_batch()
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits)
    assert own_tokenizer.chat_template == tokenizer().chat_template and not loaded.training
    assert not list(tmp_path.glob("*.bin"))


@pytest.fixture
def folder(tmp_path):
    save_model(language_model(), tokenizer(), tmp_path)
    return tmp_path


def truncate_weights(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def garble_weights(folder):
    (folder / "model.safetensors").write_bytes(b"not safetensors at all")


def drop_a_weight(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def reshape_a_weight(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"] = torch.zeros(2, 2)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def pickle_the_weights(folder):
    (folder / "model.safetensors").unlink()
    torch.save(language_model().state_dict(), folder / "pytorch_model.bin")


def break_the_config(folder):
    (folder / "config.json").write_text("{")


def remove_the_config(folder):
    (folder / "config.json").unlink()


def remove_the_weights(folder):
    (folder / "model.safetensors").unlink()


def break_the_tokenizer(folder):
    (folder / "tokenizer.json").write_text('{"version": 1')


def demand_remote_code(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nraise SystemExit\n")


@pytest.mark.parametrize(
    "harm",
    [
        *(truncate_weights, garble_weights, drop_a_weight, reshape_a_weight, pickle_the_weights, break_the_config),
        *(remove_the_config, remove_the_weights, break_the_tokenizer, demand_remote_code),
    ],
)
def test_a_folder_that_cannot_be_loaded_gives_one_error_that_names_it(folder, harm):
    harm(folder)
    with pytest.raises(InputError) as raised:
        load_language_model(folder)
    message = str(raised.value)
    assert str(folder) in message and "\n" not in message
    assert not (folder / "ran").exists()


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="nowhere.*cannot be loaded"):
        load_language_model(tmp_path / "nowhere")
    with pytest.raises(InputError, match="nowhere.*cannot be loaded"):
        load_tokenizer(tmp_path / "nowhere")


def test_a_language_model_is_no_reward_model(folder):
    with pytest.raises(InputError, match=r"weights are missing.*score\.weight"):
        load_reward_model(folder)


def test_a_classifier_with_two_labels_is_no_reward_model(tmp_path):
    config = reward_model().config
    config.num_labels = 2
    save_model(AutoModelForSequenceClassification.from_config(config), tokenizer(), tmp_path)
    with pytest.raises(InputError, match="has 2 labels; a reward model has one"):
        load_reward_model(tmp_path)


def test_a_hub_model_without_a_padding_token_goes_through_ppo(tmp_path):
    """GPT-2 as the hub has it: neither model nor tokenizer knows a padding token."""
    plain = tokenizer()
    model = hub_model("gpt2")
    model.config.pad_token_id = None
    save_model(model, plain, tmp_path)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = tmp_path / name
        if path.exists():
            path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "pad_token"}))
    loaded, own_tokenizer = load_language_model(tmp_path)
    assert own_tokenizer.pad_token_id is not None
    assert loaded.config.pad_token_id == own_tokenizer.pad_token_id
    ppo = PPO(
        loaded,
        frozen_copy(loaded),
        Critic(new_reward_model(hub_model("gpt2"), "last")),
        lambda samples: torch.ones(len(samples)),
        own_tokenizer,
        PPOConfig(batch_size=2, minibatches=1, epochs=1, sampling=SamplingConfig(temperature=1.0, max_new_tokens=4)),
    )
    assert len(ppo.step(PROMPTS[:2]).samples) == 2


def test_a_reward_model_whose_padding_is_its_end_token_is_refused():
    """transformers' class finds the last token by its difference from padding: it would read the wrong one."""
    model = language_model()
    model.config.pad_token_id = model.config.eos_token_id
    with pytest.raises(InputError, match="differs from the end token"):
        new_reward_model(model, "last")
    model.config.pad_token_id = None
    with pytest.raises(InputError, match="differs from the end token"):
        new_reward_model(model, "last")


def test_saved_hub_models_load(tmp_path):
    for kind in ("gpt2", "gpt-neox", "qwen2"):
        model, _ = load_language_model(saved_hub_model(kind, tmp_path / kind))
        assert next(model.parameters()).dtype == torch.float32


def test_the_refusal_of_a_padding_token_says_what_helps():
    """The three calls of the message, done: the reward model is made, and agrees with transformers' class."""
    model, own = hub_model("gpt2"), copy.deepcopy(tokenizer())
    own.pad_token = None
    model.config.pad_token_id = None
    own.add_special_tokens({"pad_token": "<|own pad|>"})
    model.resize_token_embeddings(len(own))
    model.config.pad_token_id = own.pad_token_id
    reward = new_reward_model(model, "last")
    ids, lengths = ragged_batch()
    ids = ids.masked_fill(torch.arange(ids.shape[1]) >= lengths[:, None], own.pad_token_id)
    with torch.no_grad():
        torch.testing.assert_close(reward(ids).logits[:, 0], sequence_scores(reward, ids, lengths), atol=1e-5, rtol=0)
