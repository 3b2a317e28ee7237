"""The fast path gives the numbers of transformers' own class: states, gradients, tokens; others it leaves alone."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf_lab import blocks, fast, sampling
from rlhf_lab.config import SamplingConfig
from rlhf_lab.models import hidden_states, states_at

LENGTHS = torch.tensor([9, 4, 12, 1])


def llama(**changes) -> LlamaForCausalLM:
    """A Llama shape whose gains are not 1 and whose weights are large enough that attention looks at something."""
    options = {
        "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "max_position_embeddings": 64, "tie_word_embeddings": True,
    } | changes  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**options)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.3)
    return model


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded ids (4, 12), and some places of real tokens."""
    ids = torch.randint(40, (len(LENGTHS), 12), generator=torch.Generator().manual_seed(1))
    real = torch.arange(12) < LENGTHS[:, None]
    return ids, real.flatten().nonzero().squeeze(1)[::2]


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["padded", "packed"])
@pytest.mark.parametrize("layers", [1, 3])
def test_states_and_gradients_are_those_of_transformers(lengths, layers):
    plain, (ids, places) = llama(num_hidden_layers=layers), batch()
    quick = copy.deepcopy(plain)
    expected = hidden_states(plain, ids).flatten(0, 1)[places]
    found = fast.states(quick, ids, lengths, places)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(fast.states(quick, ids, lengths, places), expected, atol=1e-5, rtol=1e-5)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    (expected * weights).sum().backward()
    (found * weights).sum().backward()
    compared = 0
    for (name, a), b in zip(plain.named_parameters(), quick.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None:
            assert a.grad.abs().max() > 0, name
            torch.testing.assert_close(b.grad, a.grad, atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
            compared += 1
    assert compared == 9 * layers + 2


def test_the_fast_path_is_taken_and_gives_the_same(monkeypatch):
    model, (ids, places) = llama(), batch()
    taken = []
    monkeypatch.setattr(fast, "states", lambda *a, real=fast.states: taken.append(a) or real(*a))
    with torch.no_grad():
        found = states_at(model, ids, places, LENGTHS)
        monkeypatch.setattr(fast, "supported", lambda model: False)
        torch.testing.assert_close(found, states_at(model, ids, places, LENGTHS), atol=1e-5, rtol=1e-5)
    assert len(taken) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"num_key_value_heads": 2},
        {"attention_bias": True},
        {"mlp_bias": True},
        {"attention_dropout": 0.1},
        {"hidden_act": "gelu"},
        {"head_dim": 16},
    ],
    ids=str,
)
def test_what_it_does_not_compute_it_leaves_to_transformers(changes):
    assert fast.supported(llama())
    assert not fast.supported(llama(**changes))


def test_a_model_that_is_listened_to_or_in_another_precision_goes_the_plain_way():
    model = llama()
    handle = model.model.layers[1].register_forward_hook(lambda *args: None)
    assert not fast.supported(model)
    handle.remove()
    assert fast.supported(model)
    assert not fast.supported(llama().to(torch.bfloat16))


PROMPTS = [[3, 7, 9], [5], [8, 2, 6, 4, 11], [3, 7]]


@pytest.mark.parametrize(
    "config", [SamplingConfig(temperature=0.0), SamplingConfig(), SamplingConfig(top_k=5)], ids=str
)
def test_sampled_tokens_are_those_of_transformers_cache(monkeypatch, config):
    """Rows end at different times, so that some leave the batch."""
    model, end = llama(), 1
    prompts = PROMPTS * 5

    def written() -> list[list[int]]:
        return sampling.sample_tokens(model, prompts, end, config, torch.Generator().manual_seed(3))

    quick = written()
    monkeypatch.setattr(fast, "supported", lambda model: False)
    assert quick == written()
    lengths = {len(reply) for reply in quick}
    assert config.temperature == 0 or len(lengths) > 1


def test_logits_of_every_step_are_those_of_a_forward_pass_over_the_whole_text():
    model, texts = llama(), copy.deepcopy(PROMPTS)
    with torch.no_grad():
        decoder = fast.Decoder(model, PROMPTS, 6)
        for step in range(6):
            for text, logits in zip(texts, decoder.logits, strict=True):
                whole = model(torch.tensor([text])).logits[0, -1]
                torch.testing.assert_close(logits, whole, atol=2e-5, rtol=1e-5)
            if step == 3:
                decoder.keep(torch.tensor([0, 2]))
                texts = [texts[0], texts[2]]
            tokens = torch.tensor([(step * 7 + row) % 40 for row in range(len(texts))])
            texts = [[*text, int(token)] for text, token in zip(texts, tokens, strict=True)]
            decoder.write(tokens)


def test_a_model_that_samples_keeps_its_weights():
    model = llama()
    before = [p.clone() for p in model.parameters()]
    sampling.sample_tokens(model, PROMPTS, 1, SamplingConfig(), torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_blocks_are_single_calls_and_give_what_the_plain_functions_give(monkeypatch):
    """Compiled at the pinned versions (it is what lets two threads compute at once), equal without TorchScript too."""
    model, (ids, places) = llama(), batch()

    def numbers() -> list[torch.Tensor]:
        model.zero_grad()
        fast.states(model, ids, LENGTHS, places).sin().sum().backward()
        with torch.no_grad():
            decoder = fast.Decoder(model, PROMPTS, 2)
            decoder.write(torch.tensor([4, 3, 2, 1]))
        return [decoder.logits, *(p.grad.clone() for p in model.base_model.parameters())]

    compiled = numbers()
    for name in ("trunk_forward", "trunk_backward", "next_token"):
        function = getattr(blocks, name)
        assert sys.version_info >= (3, 14) or isinstance(function.ready, torch.jit.ScriptFunction), name
        monkeypatch.setattr(function, "ready", function.function)
    for a, b in zip(compiled, numbers(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_a_function_that_torch_cannot_compile_stays_itself():
    def odd(x):
        return [*x, yield_from_nowhere]  # noqa: F821

    def beyond_its_language(x):
        async def never(): ...

        return x, never

    assert blocks.scripted(odd) is odd
    assert blocks.scripted(beyond_its_language) is beyond_its_language
    assert blocks.scripted(sum) is sum  # no source code


@pytest.mark.parametrize("frozen", [0, 1, 2, 3])
def test_blocks_that_are_not_trained_get_no_gradient_and_the_others_theirs(frozen):
    plain, (ids, places) = llama(), batch()
    for part in (plain.model.embed_tokens, *plain.model.layers[:frozen]):
        part.requires_grad_(False)
    quick = copy.deepcopy(plain)
    hidden_states(plain, ids).flatten(0, 1)[places].sin().sum().backward()
    fast.states(quick, ids, LENGTHS, places).sin().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), quick.named_parameters(), strict=True):
        assert (a.grad is None) == (b[1].grad is None), name
        if a.grad is not None:
            torch.testing.assert_close(b[1].grad, a.grad, atol=1e-4, rtol=1e-4)


def test_replies_are_the_same_whoever_writes_them():
    """On one core, and divided among two."""
    model, written, before = llama(), [], torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            generator = torch.Generator().manual_seed(3)
            written.append(sampling.sample_tokens(model, PROMPTS * 8, 1, SamplingConfig(max_new_tokens=40), generator))
    finally:
        torch.set_num_threads(before)
    assert written[0] == written[1] and len({len(reply) for reply in written[0]}) > 3


def test_under_autocast_products_are_in_bfloat16_and_near_those_of_float32():
    """As near as transformers' own class comes under the same autocast, and float32 outside of products."""
    (ids, places), found = batch(), {}
    for name, plain, bf16 in (("exact", True, False), ("theirs", True, True), ("ours", False, True)):
        model = llama()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            if plain:
                states = hidden_states(model, ids).flatten(0, 1)[places].float()
            else:
                states = fast.states(model, ids, LENGTHS, places)
                assert states.dtype == torch.float32
            states.sin().sum().backward()  # in autocast's reach too: it must not touch the written-out backward pass
        found[name] = states.detach(), [p.grad for p in model.base_model.parameters()]

    def distance(name: str) -> list[float]:
        pairs = zip([found[name][0], *found[name][1]], [found["exact"][0], *found["exact"][1]], strict=True)
        return [((a - b).norm() / b.norm()).item() for a, b in pairs]

    ours, theirs = distance("ours"), distance("theirs")
    assert 1e-4 < ours[0] < 0.05  # not float32, and not far from it
    assert max(ours) < 2 * max(theirs)


def test_another_kind_of_autocast_is_left_to_transformers():
    with torch.autocast("cpu", torch.float16):
        assert not fast.supported(llama())
    with torch.autocast("cpu", torch.bfloat16):
        assert fast.supported(llama())


def test_replies_under_autocast_are_those_of_float32():
    def written() -> list[list[int]]:
        return sampling.sample_tokens(llama(), PROMPTS * 5, 1, SamplingConfig(), torch.Generator().manual_seed(3))

    plain = written()
    with torch.autocast("cpu", torch.bfloat16):
        assert written() == plain
