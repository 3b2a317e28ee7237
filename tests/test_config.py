"""Configs validate themselves once, when they are made; profiles are bundles of valid configs."""

from dataclasses import FrozenInstanceError, fields, is_dataclass

import pytest

from rlhf_lab.config import (
    PROFILES,
    LanguageConfig,
    ModelConfig,
    PPOConfig,
    PreferenceConfig,
    RewardConfig,
    SamplingConfig,
    profile,
    replaced,
)
from rlhf_lab.errors import InputError


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (ModelConfig, "vocab_size", 299),
        (ModelConfig, "hidden_size", 130),
        (ModelConfig, "layers", 0),
        (LanguageConfig, "steps", 0),
        (LanguageConfig, "learning_rate", -1e-3),
        (LanguageConfig, "learning_rate", float("nan")),
        (LanguageConfig, "warmup", 1.5),
        (LanguageConfig, "decay", -0.1),
        (SamplingConfig, "temperature", -1.0),
        (SamplingConfig, "temperature", float("nan")),
        (SamplingConfig, "max_new_tokens", 0),
        (SamplingConfig, "top_k", 0),
        (PreferenceConfig, "candidates", 1),
        (PreferenceConfig, "noise", -0.1),
        (RewardConfig, "pooling", "max"),
        (RewardConfig, "loss", "hinge"),
        (RewardConfig, "epochs", 0),
        (PPOConfig, "minibatches", 100_000),
        (PPOConfig, "gamma", 0.0),
        (PPOConfig, "gamma", 1.1),
        (PPOConfig, "lam", -0.1),
        (PPOConfig, "kl_coefficient", -0.1),
        (PPOConfig, "kl_target", 0.0),
        (PPOConfig, "max_kl_step", 0.0),
        (PPOConfig, "clip_range", 0.0),
        (PPOConfig, "truncated_score", float("inf")),
        (PPOConfig, "sampling", SamplingConfig(temperature=0.0)),
    ],
)
def test_a_wrong_value_is_refused_with_what_would_be_right(config, field, value):
    with pytest.raises(InputError, match=rf"{config.__name__}\.{field} is .*; it must be ."):
        config(**{field: value})


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (SamplingConfig, "temperature", 0.0),
        (SamplingConfig, "top_k", None),
        (PPOConfig, "kl_target", None),
        (PPOConfig, "kl_coefficient", 0.0),
        (PPOConfig, "lam", 0.0),
        (PPOConfig, "gamma", 1.0),
        (PreferenceConfig, "noise", 0.0),
        (LanguageConfig, "warmup", 0.0),
    ],
)
def test_a_value_at_the_edge_is_allowed(config, field, value):
    assert getattr(config(**{field: value}), field) == value


def test_a_config_does_not_change():
    with pytest.raises(FrozenInstanceError):
        PPOConfig().steps = 3


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_is_complete_and_says_its_name(name):
    bundle = profile(name)
    assert bundle.name == name
    assert all(is_dataclass(getattr(bundle, f.name)) or getattr(bundle, f.name) for f in fields(bundle))
    room = bundle.model.context - bundle.sampling.max_new_tokens
    assert room >= 32  # a prompt must fit beside a reply
    assert bundle.ppo.sampling.max_new_tokens <= bundle.model.context - 32


def test_the_profiles_differ_in_size():
    quick, default, thorough = (profile(name) for name in ("quick", "default", "thorough"))
    for size in (
        lambda p: p.documents,
        lambda p: p.model.hidden_size,
        lambda p: p.pretraining.steps * p.pretraining.batch_size,
        lambda p: p.preferences.questions,
        lambda p: p.ppo.steps * p.ppo.batch_size,
    ):
        assert size(quick) < size(default) <= size(thorough)


def test_the_environment_chooses_the_profile_unless_one_is_named(monkeypatch):
    monkeypatch.delenv("RLHF_LAB_PROFILE", raising=False)
    assert profile().name == "default"
    monkeypatch.setenv("RLHF_LAB_PROFILE", "quick")
    assert profile().name == "quick" and profile("thorough").name == "thorough"
    monkeypatch.setenv("RLHF_LAB_PROFILE", "fast")
    with pytest.raises(InputError, match="RLHF_LAB_PROFILE 'fast' does not exist; use one of quick, default, thorough"):
        profile()
    with pytest.raises(InputError, match="profile 'slow' does not exist"):
        profile("slow")


def test_replacing_a_field_validates_and_names_a_misspelt_one():
    assert replaced(PPOConfig(), steps=3).steps == 3
    with pytest.raises(InputError, match="PPOConfig has no field 'stepz'; it has steps"):
        replaced(PPOConfig(), stepz=3)
    with pytest.raises(InputError, match="PPOConfig.steps"):
        replaced(PPOConfig(), steps=0)
