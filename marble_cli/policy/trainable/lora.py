"""Two LoRA adapters in one transformer (peft): the trained policy and the behaviour policy."""

import warnings
from collections.abc import Callable

import peft
import torch
from peft import get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from marble_cli.config.schema import LoraConfig
from marble_cli.distributed.shards import full_on_rank0, local, local_shard
from marble_cli.errors import CheckpointError, ConfigError
from marble_cli.policy.base import Adapter

ADAPTERS = ("trained", "behaviour")
PREFIX = "transformer."


def add_adapter(transformer: nn.Module, config: peft.LoraConfig, name: str) -> None:
    """Give `transformer` a LoRA.

    Raises:
        ConfigError: it has no such modules.
    """
    try:
        transformer.add_adapter(config, adapter_name=name)  # type: ignore[operator]
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"model.lora.target_modules={sorted(config.target_modules)}: {reason}") from error


class LoraPair:
    """The trained and the behaviour adapter of `transformer`; equal at the start, B zero, A gaussian from `seed`.

    Implements `policy.base.Trainable`. `place` puts the transformer on its device, with which its parameters may become others.
    """

    def __init__(
        self, transformer: nn.Module, lora: LoraConfig, seed: int, place: Callable[[nn.Module], None]
    ):
        self.transformer = transformer
        transformer.requires_grad_(False)
        self.config = peft.LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            init_lora_weights="gaussian",
            target_modules=list(lora.target_modules),
        )
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # peft doubts that two adapters in one model are meant.
            warnings.filterwarnings("ignore", "Already found a `peft_config` attribute")
            torch.manual_seed(seed)
            for name in ADAPTERS:
                add_adapter(transformer, self.config, name)
        for module in transformer.modules():
            if isinstance(
                module, BaseTunerLayer
            ):  # under autocast a copy of every input in float32 is of no use
                module.cast_input_dtype_enabled = False
        for name in ADAPTERS:
            for parameter in self._find(name).values():
                parameter.data = parameter.data.float()
                parameter.requires_grad_(name == "trained")
        place(transformer)
        self._parameters = {name: self._find(name) for name in ADAPTERS}
        self.layers: list[nn.Linear] | None = self._layers()
        self.copy("trained", "behaviour")
        self._active: Adapter = "behaviour"
        self.activate("trained")

    def _find(self, adapter: str) -> dict[str, nn.Parameter]:
        marker = f".{adapter}."
        return {
            name.replace(marker, "."): parameter
            for name, parameter in self.transformer.named_parameters()
            if "lora_" in name and marker in name
        }

    def _layers(self) -> list[nn.Linear]:
        """The layers whose weights are the trained adapter, in its order.

        Raises:
            ConfigError: some part of it is not a linear layer's weight.
        """
        linear = [module for module in self.transformer.modules() if isinstance(module, nn.Linear)]
        owners = {id(layer.weight): layer for layer in linear if layer.bias is None}
        trained = self._parameters["trained"]
        if strange := [name for name, parameter in trained.items() if id(parameter) not in owners]:
            raise ConfigError(
                f"model.lora.target_modules={sorted(self.config.target_modules)}: {strange[0]} is no linear layer's "
                "weight. Expected linear layers only, such as the attention projections."
            )
        return [owners[id(parameter)] for parameter in trained.values()]

    def parameters(self, adapter: str) -> dict[str, nn.Parameter]:
        return self._parameters[adapter]

    def activate(self, adapter: Adapter) -> None:
        """Make `adapter` the one that acts; None switches both off."""
        if adapter == self._active:
            return
        if adapter is None:
            self.transformer.disable_adapters()  # type: ignore[operator]
        else:
            if self._active is None:
                self.transformer.enable_adapters()  # type: ignore[operator]
            self.transformer.set_adapter(adapter)  # type: ignore[operator]
        self._active = adapter
        for name in ADAPTERS:
            for parameter in self._parameters[name].values():
                parameter.requires_grad_(name == "trained")

    @torch.no_grad()
    def copy(self, source: str, target: str) -> None:
        for name, parameter in self._parameters[target].items():
            parameter.copy_(self._parameters[source][name])

    def state(self) -> dict[str, Tensor]:
        state = get_peft_model_state_dict(self.transformer, adapter_name="trained")
        return {PREFIX + key: full_on_rank0(value) for key, value in state.items()}

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        own = {
            PREFIX + key: value
            for key, value in get_peft_model_state_dict(self.transformer, adapter_name="trained").items()
        }
        wrong = sorted(own.keys() ^ state.keys()) or [k for k in own if own[k].shape != state[k].shape]
        if wrong:
            raise CheckpointError(
                f"the LoRA does not fit this model: {wrong[0]} differs ({len(wrong)} tensors in all). "
                "Expected a checkpoint of the same model with the same model.lora.* settings."
            )
        for key, value in own.items():
            local(value).copy_(local_shard(state[key], value))
        self.copy("trained", "behaviour")
