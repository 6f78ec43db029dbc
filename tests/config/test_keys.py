"""The frozen set of configuration keys, and the nearest key to a misspelt one."""

import dataclasses
import typing
from collections.abc import Iterator
from typing import Any

from marble_cli.config.compose import GROUPS
from marble_cli.config.keys import fields, unknown_key
from marble_cli.config.schema import (
    RunConfig,
)

# Adding or removing a key is a decision: files of older runs and scripts of users hold keys.
ASPECT = "role margin weight sources requires only_if"
REWARD = (
    "plugin role margin weight sources requires only_if timeout retries max_failed optional url token_env "
    "isolated frames "
    "options.*"
)


GROUP_KEYS = {
    "run": "name dir",
    "model": "path revision variant clip precision quantization offload resolution width height frames "
    "max_sequence_length guidance embedding_cache gradient_checkpointing compile device train",
    "model.lora": "rank alpha target_modules init",
    "data": "root aspect_ratio_buckets",
    "data.sources.*": "train test weight hub subset revision prompt_key image_key resolution_key quoted_as "
    "quotes negative_prompt metadata.*",
    "rewards.*": REWARD,
    "eval_rewards.*": REWARD,
    "rewards.*.aspects.*": ASPECT,
    "eval_rewards.*.aspects.*": ASPECT,
    "algorithm": "beta kl_coef kl_schedule kl_every kl_reference kl_guidance kl_gate training_noise "
    "training_times",
    "algorithm.advantage": "std clip",
    "algorithm.behaviour": "schedule rate maximum delay",
    "balance": "name mode solver refresh_when refresh_every refresh_fraction warmup ema floor amortize "
    "shared_term weights.* options.* groups.* priorities.* norm_priority reduce",
    "optimizer": "name lr schedule warmup betas weight_decay epsilon clip_norm",
    "rollout": "groups group_size steps solver times guidance_scale cfg_normalization cfg_truncation "
    "dead_groups batch_size",
    "evaluation": "steps solver times guidance_scale resolution batch_size images_per_prompt prompts seed",
    "trainer": "steps seed micro_batch_size timestep_fraction times_per_image checkpoint_every keep_last "
    "keep_every best eval_every eval_prompts encode_ahead max_skipped on_hacking pending_batches parallel "
    "fsdp.replicas fsdp.reshard rollback.times rollback.kl_factor rollback.kl_least "
    "select.fraction select.by",
    "trainer.ema": "decay warmup offset",
    "logging": "trackers images_every",
    "logging.wandb": "mode project entity",
    "launcher": "name nodes nproc max_restarts grace time partition account cpus_per_task memory warning "
    "requeues setup extra.*",
}


KEYS = {f"{group}.{key}" for group, names in GROUP_KEYS.items() for key in names.split()}


def keys(node: Any, prefix: str = "") -> Iterator[str]:
    for name, kind in fields(node).items():
        if dataclasses.is_dataclass(kind):
            yield from keys(kind, f"{prefix}{name}.")
        elif typing.get_origin(kind) is dict:
            value = typing.get_args(kind)[1]
            below = (
                keys(value, f"{prefix}{name}.*.")
                if dataclasses.is_dataclass(value)
                else [f"{prefix}{name}.*"]
            )
            yield from below
        else:
            yield prefix + name


def test_schema_has_frozen_keys() -> None:
    assert sorted(keys(RunConfig)) == sorted(KEYS)
    assert {key.split(".")[0] for key in KEYS} - {"run", "eval_rewards"} == set(GROUPS) - {"preset"}


def test_unknown_key_names_nearest_key() -> None:
    for key in KEYS:
        assert unknown_key(key.replace("*", "x")) is None
    assert unknown_key("trainer.stepz") == (
        "there is no key 'trainer.stepz'; did you mean 'trainer.steps'? Known: "
        + ", ".join(sorted({".".join(key.split(".")[:2]) for key in KEYS if key.startswith("trainer.")}))
    )
    assert "holds a value, not further keys" in str(unknown_key("launcher.nproc.x"))
    assert "did you mean 'model.lora.alpha'" in str(unknown_key("model.lora.alph"))
