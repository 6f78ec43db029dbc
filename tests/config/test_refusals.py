"""Wrong overrides and values are refused with the key, the value and what was expected."""

from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marble_cli.config.compose import compose
from marble_cli.config.schema import (
    RunConfig,
)
from marble_cli.errors import ConfigError
from tests.config.composing import BUILT_IN

RunConfigMaker = Callable[..., RunConfig]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("foo=1", "there is no key 'foo'"),
        ("trainer.stepz=1", "did you mean 'trainer.steps'"),
        ("+trainer.stepz=1", "did you mean 'trainer.steps'"),
        ("++trainer.ema.decy=1", "did you mean 'trainer.ema.decay'"),
        ("modle.path=x", "did you mean 'model'"),
        ("hydra.run.dir=x", "there is no key 'hydra.run.dir'"),
        ("launcher.nproc.x=1", "launcher.nproc holds a value"),
        ("balance=mrble", "did you mean 'marble'"),
        ("trainer.select=half", "trainer.select=half: expected all, or keys such as"),
        ("trainer.select=0.5", "trainer.select=0.5: expected all, or keys such as"),
        ("trainer.select.fraction=0", "trainer.select.fraction=0.0: expected a number in (0, 1]"),
        ("trainer=foo", "there is no such choice. Known: default"),
        ("preset=tinny", "did you mean 'tiny'"),
        ("rewards=[colorfulnes]", "did you mean 'colorfulness'"),
        ("~rewards.colorfulnes", "did you mean 'colorfulness'"),
        ("~trainer.stepz", "there is no key 'trainer.stepz'; did you mean 'trainer.steps'"),
        ("rewards.colorfulnes.weight=2", "did you mean 'colorfulness'"),
        ("+rewards.x={weight: 1}", "'+rewards.x={plugin: NAME}'"),
        ("+rewards.x=3", "rewards.x=3: expected keys"),
        ("+rewards.x={plugin: ocr, options: null}", "rewards.x.options=null: expected the plugin's options"),
        ("+rewards.x={plugin: ocr, options: 3}", "rewards.x.options=3: expected the plugin's options"),
        ("rewards.colorfulness.sources=[[1]]", "colorfulness.sources[0]=[1]: expected one value"),
        (
            "+rewards.x={plugin: ocr, aspects: {a: {sources: [[1]]}}}",
            "rewards.x.aspects.a.sources[0]=[1]: expected one value",
        ),
        (
            "+rewards.x={plugin: colorfulnes}",
            "rewards.x.plugin=colorfulnes: no such reward is installed; did you mean",
        ),
        ("+rewards.x={plugin: far, url: far:80}", "rewards.x.url=far:80: expected http://HOST:PORT"),
        ("+rewards.x={plugin: far, url: 'http://me:word@far:80'}", "a token belongs in the environment"),
        ("+rewards.x={plugin: far, url: 'http://:word@far:80'}", "a token belongs in the environment"),
        ("+rewards.x={plugin: far, url: 'http://['}", "rewards.x.url=http://[: expected http://HOST:PORT"),
        (
            "+rewards.x={plugin: far, url: 'http://far:99999'}",
            "rewards.x.url=http://far:99999: expected http://HOST:PORT",
        ),
        (
            "+rewards.x={plugin: far, url: 'http://far:many'}",
            "rewards.x.url=http://far:many: expected http://HOST:PORT",
        ),
        ("+rewards.x={plugin: far, url: 'http://far:80', isolated: true}", "Expected one of them"),
        (
            "+rewards.x={plugin: far, url: 'http://far:80', depth: 3}",
            "rewards.x.depth: the options of a reward with a url",
        ),
        ("rewards.colorfulness.token_env=MINE", "no rewards.colorfulness.url that it belongs to"),
        ("+eval_rewards.x={plugin: colorfulnes}", "eval_rewards.x.plugin=colorfulnes"),
        (
            "+eval_rewards.colorfulness={plugin: colorfulness}",
            "eval_rewards.colorfulness: rewards.colorfulness has the same name",
        ),
        ("balance=[marble,mgda]", "override 'balance=[marble,mgda]': expected one choice, such as balance="),
        ("+balance=mgda", "override '+balance=mgda': expected one choice"),
        ("balance.weights=[]", "override 'balance.weights=[]': expected keys, such as {NAME: VALUE}."),
        ("model.lora=[1]", "expected keys, such as {NAME: VALUE}."),
        ("logging.trackers={}", "override 'logging.trackers={}': expected a list, such as [a,b]."),
        ("rewards.colorfulness.sources=[txt]", "there is no source 'txt'; did you mean 'text'"),
        ("rewards=[]", "rewards is empty"),
        ("eval_rewards=[ocr]", "To watch rewards by their names: '+rewards@eval_rewards=[NAME,...]'"),
        ("eval_rewards=ocr", "expected keys per reward"),
        ("model.height=7", "model.height=7: expected at least 8."),
        ("optimizer.learning_rate=1", "did you mean 'optimizer.lr'?"),
        ("trainer.fsdp.reshard=maybe", "trainer.fsdp.reshard=maybe: expected true or false."),
        ("trainer.steps=many", "trainer.steps=many: expected a whole number."),
        ("trainer.steps=1.5", "trainer.steps=1.5: expected a whole number."),
        ("trainer.steps=null", "trainer.steps=null: expected a whole number."),
        ("balance.mode=null", "balance.mode=null: expected a value."),
        ("model.lora=null", "model.lora=null: expected keys, such as model.lora.rank=..."),
        ("trainer.ema=5", "trainer.ema=5: expected keys, such as trainer.ema.decay=..."),
        ("optimizer.betas=[0.9,[1]]", "optimizer.betas[1]=[1]: expected one value"),
        ("optimizer.betas=[0.9,x]", "optimizer.betas[1]=x: expected a number."),
        ("run.name=", "run.name='': expected a line of text"),
        ("trainer.steps=", "trainer.steps=: expected a whole number."),
        ("model.lora.rank=true", "model.lora.rank"),
        ("rewards.colorfulness.weight=heavy", "rewards.colorfulness.weight=heavy: expected a number."),
        (
            "model.precision=fp12",
            "model.precision=fp12: there is no such choice; did you mean 'fp32'? Known: bf16, fp16, fp32",
        ),
        ("algorithm.advantage.std=globl", "std=globl: there is no such choice; did you mean 'global'?"),
        ("algorithm.kl_schedule=cosin", "did you mean 'cosine'? Known: constant, cosine, linear"),
        ("model.lora.target_modules=to_q", "model.lora.target_modules"),
        ("trainer.steps=1,2", "asks for several values"),
        ("trainer.steps=range(1,3)", "asks for several values"),
        ("trainer.steps", "cannot be read"),
        ("a b", "cannot be read"),
        ("run.dir=${nowhere}", "run.dir=${nowhere}: there is no key 'nowhere' that it could take"),
        (
            "run.dir=${oc.env:NO_SUCH}",
            "run.dir=${oc.env:NO_SUCH}: there is no environment variable NO_SUCH. Set it, or give a default",
        ),
        ("rewards.colorfulness.gamma=[1,'${no:1}']", "rewards.colorfulness.gamma[1]=${no:1}: Unsupported"),
        ("~trainer.steps", "trainer.steps has no value"),
        ("model.path=???", "model.path has no value"),
    ],
)
def test_mistake_is_refused_with_nearest_or_expected(override: str, said: str) -> None:
    rewards = [] if override.startswith("rewards=") else [BUILT_IN]
    with pytest.raises(ConfigError) as error:
        compose([*rewards, override])
    assert said in str(error.value)
    assert error.value.exit_code == 2
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        *(
            (f"{key}=0", "at least 1")
            for key in (
                "rollout.groups",
                "rollout.steps",
                "rollout.batch_size",
                "trainer.micro_batch_size",
                "trainer.checkpoint_every",
                "trainer.keep_last",
                "trainer.eval_prompts",
                "evaluation.batch_size",
                "evaluation.images_per_prompt",
                "evaluation.prompts",
                "trainer.pending_batches",
                "trainer.encode_ahead",
                "trainer.times_per_image",
                "balance.refresh_every",
                "algorithm.kl_every",
                "model.lora.rank",
                "launcher.nproc",
            )
        ),
        *(
            (f"{key}=-1", "at least 0")
            for key in (
                "trainer.steps",
                "trainer.eval_every",
                "trainer.keep_every",
                "trainer.ema.warmup",
                "balance.warmup",
                "algorithm.kl_coef",
                "algorithm.behaviour.rate",
                "optimizer.weight_decay",
                "optimizer.warmup",
                "model.max_sequence_length",
                "data.sources.text.weight",
                "rewards.colorfulness.weight",
                "rewards.colorfulness.retries",
            )
        ),
        ("balance.refresh_fraction=0", "(0, 1]"),
        ("balance.norm_priority=-1", "[0, 4]"),
        ("balance.refresh_fraction=1.1", "(0, 1]"),
        *(
            (f"{key}=0", "above 0")
            for key in (
                "algorithm.beta",
                "algorithm.advantage.clip",
                "optimizer.lr",
                "optimizer.epsilon",
                "optimizer.clip_norm",
                "model.lora.alpha",
                "balance.priorities.colorfulness",
            )
        ),
        *(
            (f"{key}={value}", "above 0 and at most 2000000")
            for key in ("rewards.colorfulness.timeout", "launcher.grace")
            for value in ("0", "2000001", "inf")
        ),
        *(
            (f"{key}={value}", "[0, 1")
            for key in (
                "trainer.timestep_fraction",
                "trainer.ema.decay",
                "balance.ema",
                "balance.floor",
                "algorithm.behaviour.maximum",
                "rewards.colorfulness.max_failed",
            )
            for value in (-0.1, 1.1, "nan")
        ),
        *((f"{key}=1.0", "[0, 1)") for key in ("trainer.ema.decay", "balance.ema")),
        *(
            (f"{key}={value}", "above 0")
            for key in ("optimizer.lr", "algorithm.beta", "balance.priorities.colorfulness")
            for value in ("nan", "inf")
        ),
        ("rollout.group_size=1", "at least 2"),
        ("rollout.guidance_scale=0.5", "0 or at least 1; both 0 and 1 mean no guidance"),
        ("rollout.guidance_scale=inf", "at least 1"),
        ("algorithm.kl_coef=inf", "expected a finite number at least 0"),
        ("optimizer.lr=nan", "expected a finite number above 0"),
        ("rollout.cfg_normalization=-1", "at least 0"),
        ("rollout.cfg_truncation=1.1", "[0, 1]"),
        ("model.resolution=7", "at least 8"),
        ("model.embedding_cache=", "a folder or null"),
        ("model.path=", "a folder, a hub id or tiny"),
        ("model.guidance=-1", "at least 0"),
        ("model.guidance=nan", "at least 0"),
        ("optimizer.betas=[0.9]", "two numbers"),
        ("optimizer.betas=[0.9,1.0]", "two numbers"),
    ],
)
def test_value_out_of_range_is_refused_with_key_and_range(
    run_config: RunConfigMaker, override: str, expected: str
) -> None:
    with pytest.raises(ConfigError) as error:
        run_config(override)
    assert str(error.value).startswith(override.split("=")[0] + "=")
    assert expected in str(error.value)


@settings(max_examples=40, deadline=None)
@given(
    st.text(max_size=12),
    st.sampled_from(["{}", "+{}", "~{}", "{}=1", "trainer.{}=1", "rewards.{}.weight=1", "balance={}"]),
)
def test_any_override_is_composed_or_refused(text: str, form: str) -> None:
    """No other error than one with a message, whatever the override."""
    with suppress(ConfigError):
        assert compose([BUILT_IN, form.format(text)]).rewards
