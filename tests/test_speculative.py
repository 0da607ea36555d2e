"""Speculative decoding: the ids are the target's own, the counts those of a search by hand; the plan's arithmetic."""

import dataclasses
import inspect
import json
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import small

import wsc
from wsc.compile import further_pass
from wsc.errors import ArgumentError, FitError, UnsupportedError
from wsc.models import Llama, LlamaConfig
from wsc.runtime.speculate import streamed_seconds
from wsc.runtime.telemetry import Telemetry
from wsc.speculative import expected_tokens, speculative

CONFIG = LlamaConfig(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)
WAFER = small(24, 24, 16384)
CONTEXT, TOKENS = 30, 3
PROMPT = [(7 * i + 3) % 96 for i in range(6)]


def moved(model, scale, seed):
    """The model with noise on all weights."""
    leaves, tree = jax.tree.flatten(model)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return jax.tree.unflatten(
        tree, [a + scale * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)]
    )


@pytest.fixture(scope="module")
def target():
    """Norms and logits far from uniform, so that greedy choices differ from token to token."""
    return moved(Llama(CONFIG, rngs=nnx.Rngs(0)), 0.3, 1)


@pytest.fixture(scope="module")
def drafts(target):
    other = dataclasses.replace(CONFIG, hidden_size=16, intermediate_size=24, num_hidden_layers=1)
    return {
        "itself": target,
        "near": moved(target, 0.02, 2),
        "hopeless": moved(Llama(other, rngs=nnx.Rngs(3)), 0.3, 4),
    }


@pytest.fixture(scope="module", params=[("pass", "fabric"), ("stream", "xla")], ids="-".join)
def plans(request, target, drafts):
    """By draft; the target is compiled once."""
    verify, order = request.param
    options = {"wafer": WAFER, "context": CONTEXT, "order": order}
    plan = speculative(target, drafts["near"], tokens=TOKENS, verify=verify, **options)
    hopeless = wsc.compile(drafts["hopeless"], **options)
    return {
        "near": plan,
        "itself": dataclasses.replace(plan, draft=plan.target),
        "hopeless": dataclasses.replace(plan, draft=hopeless),
    }


@pytest.fixture(scope="module")
def greedy():
    """The greedy choice of a flax model alone after a text: all of it again for every token, no cache kept."""
    step = jax.jit(lambda model, ids, n: model(ids, model.init_cache(context=CONTEXT + 8))[0][0, n - 1])

    def choice(model, text):
        return int(jnp.argmax(step(model, jnp.array([text + [0] * (CONTEXT + 8 - len(text))]), len(text))))

    return choice


@pytest.fixture(scope="module")
def own(target, greedy):
    """The target's own ids after a prompt."""

    def ids(prompt, count):
        text = list(prompt)
        for _ in range(count):
            text.append(greedy(target, text))
        return text[len(prompt) :]

    return ids


def counts(agrees, tokens, context, whole):
    """(rounds, drafted, accepted, refused, steps) by hand: `agrees[p]` says whether the draft, after p tokens of the
    text, chooses as the text goes on. `whole` checks need room for all `tokens`."""
    at, end = agrees["begin"] + 1, agrees["end"]
    rounds = drafted = accepted = refused = steps = 0
    while at < end:
        count = min(tokens, end - at - 1, context - at)
        if count < 1 or (whole and at + tokens > context):
            at, steps = at + 1, steps + 1
            continue
        right = 0
        while right < count and agrees[at + right]:
            right += 1
        at += right + 1
        rounds, drafted = rounds + 1, drafted + count
        accepted, refused = accepted + right, refused + (right < count)
    return rounds, drafted, accepted, refused, steps


@pytest.mark.parametrize("name", ["itself", "near", "hopeless"])
def test_ids_are_the_targets_own_and_counts_those_by_hand(plans, drafts, own, greedy, name):
    """The draft's choices, found without a cache, are right only if both caches were rolled back as they should be."""
    plan, new = plans[name], 22
    found = plan.generate(PROMPT, new)
    ids = own(PROMPT, new)
    assert list(found.ids) == ids and len(set(ids)) > 5
    text, begin = PROMPT + ids, len(PROMPT)
    agrees = {p: greedy(drafts[name], text[:p]) == text[p] for p in range(begin, len(text))}
    agrees |= {"begin": begin, "end": begin + new}
    expected = counts(agrees, TOKENS, CONTEXT, plan.verify == "pass")
    assert (found.rounds, found.drafted, found.accepted, found.refused, found.steps) == expected
    if name == "near":
        assert 0.2 < found.acceptance < 0.95


def test_a_draft_that_is_the_target_is_always_right(plans):
    """One token from the prompt, then TOKENS + 1 a round."""
    found = plans["itself"].generate(PROMPT, 1 + 4 * (TOKENS + 1))
    assert found.acceptance == 1.0 and found.rounds == 4 and found.steps == 0
    assert len(found.ids) == 1 + 4 * (TOKENS + 1)


def test_a_hopeless_draft_changes_nothing(plans, own):
    found = plans["hopeless"].generate(PROMPT, 12)
    assert list(found.ids) == own(PROMPT, 12) and found.acceptance < 0.3


@pytest.mark.parametrize("name", ["itself", "near"])
def test_to_the_end_of_the_context(plans, own, name):
    """All that fits, and one more after the last that is read, as without a draft."""
    for length in (CONTEXT - 7, CONTEXT - 4, CONTEXT - 3, CONTEXT - 1, CONTEXT):
        prompt = [(5 * i + 1) % 96 for i in range(length)]
        found = plans[name].generate(prompt, 20)
        assert list(found.ids) == own(prompt, CONTEXT - length + 1)


@pytest.mark.parametrize("name", ["itself", "hopeless"])
def test_as_many_as_were_asked_for(plans, own, name):
    for new in (1, 2, 3, 4, 5, 6):
        assert list(plans[name].generate(PROMPT, new).ids) == own(PROMPT, new)
    assert plans[name].generate(PROMPT, 1).acceptance is None


@pytest.mark.parametrize("at", [0, 1, 3, 6])
def test_stops_at_a_stop_token(plans, own, at):
    ids = own(PROMPT, 12)
    stop = frozenset([ids[at]])
    expected = ids[: ids.index(ids[at])]
    for plan in plans.values():
        assert list(plan.generate(PROMPT, 12, stop=stop).ids) == expected


def test_a_prompt_that_does_not_fit(plans):
    for plan in plans.values():
        with pytest.raises(ArgumentError, match=f"the prompt has {CONTEXT + 1} tokens"):
            plan.generate([1] * (CONTEXT + 1), 2)
        with pytest.raises(ArgumentError, match="new_tokens is 0"):
            plan.generate(PROMPT, 0)


def test_regions_of_the_two_do_not_overlap(plans):
    if "beside" not in inspect.signature(wsc.compile).parameters:
        pytest.skip("wsc.compile cannot place beside another program")
    plan = plans["near"]
    for a in plan.target.program.stages:
        assert not any(a.region.overlaps(b.region) for b in plan.draft.program.stages)


def test_the_closed_form_is_what_happens():
    """A million drafted tokens, each right by chance; a round goes on to the first that is wrong."""
    rng, rounds = np.random.default_rng(0), 200_000
    for a in (0.0, 0.3, 0.8, 0.95, 1.0):
        for k in (1, 4, 8):
            right = rng.random((rounds, k)) < a
            lengths = 1 + np.cumprod(right, axis=1).sum(1)
            assert expected_tokens(a, k) == pytest.approx(lengths.mean(), abs=5 * lengths.std() / rounds**0.5 + 1e-12)
            if 0 < a < 1:  # what `Generated.acceptance` says of such counts
                accepted, refused = (lengths - 1).sum(), (lengths <= k).sum()
                assert accepted / (accepted + refused) == pytest.approx(a, abs=0.01)
    assert expected_tokens([[0.5], [0.8]], 2).tolist() == [[1.75], [pytest.approx(2.44)]]


def test_the_plan_is_that_arithmetic(plans):
    plan = plans["hopeless"]
    step, check, alone = (
        float(s) for s in (plan.draft.telemetry.seconds, plan.verify_seconds(), plan.target.telemetry.seconds)
    )
    assert plan.round_seconds() == pytest.approx(TOKENS * step + max(check, step))
    rate = (1 - 0.7**4) / (1 - 0.7) / plan.round_seconds()
    assert plan.tokens_per_second(0.7) == pytest.approx(rate)
    assert plan.tokens_per_second([[0.1, 0.7]]).shape == (1, 2)
    even = plan.break_even
    if even is None:
        assert plan.tokens_per_second(1.0) < 1 / alone
    else:
        assert plan.tokens_per_second(even) == pytest.approx(1 / alone)


def test_curve(plans):
    plan, acceptances = plans["hopeless"], (0.0, 0.4, 0.8, 0.99)
    curve = plan.curve(acceptances)
    assert curve.tokens == tuple(range(1, len(curve.tokens) + 1)) and TOKENS <= len(curve.tokens) <= 8
    rates = curve.tokens_per_second
    assert (np.diff(rates, axis=1) > 0).all()
    assert (np.diff(curve.verify_seconds) >= 0).all() and (np.diff(curve.round_seconds) > 0).all()
    assert rates[TOKENS - 1] == pytest.approx(plan.tokens_per_second(acceptances))
    for column, best in zip(rates.T, plan.best(acceptances)):
        every = [curve.plain, *column]
        assert every[best] == max(every)
    assert plan.best(0.0) == 0  # one token a round, and the draft's time on top
    assert plan.curve([0.5], tokens=[2]).tokens_per_second.shape == (1, 1)


def test_a_further_pass_is_what_compile_makes_of_it(plans):
    """Planned apart, on the regions of the decode program: as if it had been compiled with it."""
    exe = plans["near"].target
    tokens = exe.prefill.program.tokens
    again = further_pass(exe, tokens)
    assert [s.region for s in again.stages] == [s.region for s in exe.program.stages]
    assert again.tokens == tokens and f"prefill of {tokens} tokens" in again.conditions
    assert Telemetry(again).as_dict() == exe.prefill.cost_analysis()


def test_passes_that_do_not_fit(plans, monkeypatch):
    """Of fewer tokens: the plan's own pass does it, padded. Of more: refused, and a curve ends before them."""

    def full(exe, tokens):
        raise FitError("full")

    monkeypatch.setattr(sys.modules["wsc.speculative"], "further_pass", full)
    plan = dataclasses.replace(plans["near"], verify="pass")  # nothing remembered
    assert plan.verify_seconds(1) == plan.verify_seconds(2) == plan.verify_seconds()
    assert plan.curve([0.5]).tokens == tuple(range(1, TOKENS + 1))
    with pytest.raises(FitError, match="full"):
        plan.curve([0.5], tokens=[1, TOKENS + 1])


def test_streamed_tokens_are_a_pipeline(plans):
    """Token by token through every stage, each waiting for the stage before and for the token before."""
    exe = plans["near"].target
    work = [float(cost.cycles) for cost in exe.telemetry.stages]

    def pipeline(tokens):
        free = [0.0] * len(work)
        for _ in range(tokens):
            at = 0.0
            for i, cycles in enumerate(work):
                at = free[i] = max(at, free[i]) + cycles
        return free[-1] / WAFER.clock_hz

    one = float(exe.telemetry.seconds)
    assert streamed_seconds(exe, 1) == one
    for tokens in (2, 5, 9):
        assert streamed_seconds(exe, tokens) - one == pytest.approx(pipeline(tokens) - pipeline(1))
        assert streamed_seconds(exe, tokens) < tokens * one


def test_no_stream_past_a_stage(plans):
    exe = plans["near"].target
    *stages, last = exe.program.stages
    (value, _, steps), *rest = last.arrivals
    last = dataclasses.replace(last, arrivals=((value, 0, steps), *rest))
    jumps = SimpleNamespace(telemetry=Telemetry(dataclasses.replace(exe.program, stages=(*stages, last))))
    with pytest.raises(UnsupportedError, match="verify='pass'"):
        streamed_seconds(jumps, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"draft": Llama.abstract(dataclasses.replace(CONFIG, vocab_size=95))},
            "vocabulary of 96 and the draft one of 95",
        ),
        ({"draft": jnp.tanh}, "must be language models"),
        ({"tokens": 0}, "tokens is 0: it must be a whole number of at least 1"),
        ({"tokens": 2.0}, "tokens is 2.0"),
        ({"tokens": True}, "tokens is True"),
        ({"tokens": 30}, "30 drafted tokens and one more do not fit a context of 30"),
        ({"verify": "guess"}, "verify is 'guess': it must be one of pass, stream"),
        ({"wafer": "wse3"}, "wafer is 'wse3'"),
    ],
)
def test_wrong_models_and_options(options, message):
    models = {"target": Llama.abstract(CONFIG), "draft": Llama.abstract(CONFIG)}
    given = models | {"wafer": WAFER, "context": CONTEXT} | options
    with pytest.raises(ArgumentError, match=message):
        speculative(given.pop("target"), given.pop("draft"), **given)


def test_wrong_acceptances_and_curves(plans):
    plan = plans["near"]
    for wrong in (-0.1, 1.1, float("nan"), [0.5, 2.0]):
        with pytest.raises(ArgumentError, match=r"it must lie in \[0, 1\]"):
            plan.tokens_per_second(wrong)
    with pytest.raises(ArgumentError, match="must be a number"):
        plan.tokens_per_second("often")
    for acceptances, tokens in (([], None), ([0.5], [])):
        with pytest.raises(ArgumentError, match="at least"):
            plan.curve(acceptances, tokens)
    with pytest.raises(ArgumentError, match=r"must lie in \[0, 1\]"):
        plan.best(7)
    with pytest.raises(ArgumentError, match="tokens is 0"):
        plan.curve([0.5], [0])


def test_without_weights_a_plan_but_no_text():
    abstract = Llama.abstract(CONFIG)
    plan = speculative(abstract, abstract, tokens=TOKENS, wafer=WAFER, context=CONTEXT)
    assert plan.tokens_per_second(0.5) > 0
    with pytest.raises(ArgumentError, match="without weights"):
        plan.generate([1], 2)


def test_what_is_printed(plans):
    plan = plans["near"]
    found = plan.generate(PROMPT, 6)
    curve = plan.curve([0.5, 0.9], [1, 2])
    conditions = f"x small at 0.875 GHz, checked {'in one pass' if plan.verify == 'pass' else 'streamed'}"
    for shown in (plan, curve):
        words = " ".join(str(shown).split())
        assert conditions in words and "modelled" in words.lower() and "measured" not in words
        assert f"batch 1, context {CONTEXT}, float32" in words
    assert "measured on this computer" in str(found) and "modelled" not in str(found).lower()
    for value in (plan, curve, found):
        assert json.loads(json.dumps(value.as_dict())) and "<pre" in value._repr_html_()
    assert json.loads(json.dumps(curve.as_dict()))["tokens_per_second"] == curve.tokens_per_second.tolist()
