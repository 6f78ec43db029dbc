"""Train LoRA adapters: one network holds the trained and the behaviour policy's (peft)."""

from collections.abc import Callable, Mapping

import peft
import torch
from peft import get_peft_model_state_dict
from torch import Tensor, nn

from marble_cli.config.schema import LoraConfig
from marble_cli.distributed.shards import full_on, local, local_shard
from marble_cli.errors import CheckpointError, ConfigError
from marble_cli.policy.base import Adapter
from marble_cli.policy.diffusers_types import Network
from marble_cli.policy.trainable.fit import describe_misfits, find_misfits
from marble_cli.policy.trainable.lora_layer import LoraLinear

ADAPTERS = ("trained", "behaviour")


def add_adapter(network: Network, config: peft.LoraConfig, name: str) -> None:
    """Add a LoRA adapter to `network`.

    Raises:
        ConfigError: the network has none of the target modules.
    """
    try:
        network.add_adapter(config, adapter_name=name)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"model.lora.target_modules={sorted(config.target_modules)}: {reason}") from error


class LoraPair:
    """The trained and the behaviour adapter of one network; implements `policy.base.Trainable`.

    Both start equal: B is zero and A is gaussian, drawn from `seed`. `place` puts the network on its
    device, which may replace its parameters. `name` is the network's in the pipeline: keys begin with it.
    """

    def __init__(
        self,
        network: Network,
        name: str,
        lora: LoraConfig,
        seed: int,
        place: Callable[[nn.Module], None],
    ):
        self.network, self.prefix = network, f"{name}."
        network.requires_grad_(False)
        self.config = peft.LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            init_lora_weights="gaussian",
            target_modules=list(lora.target_modules),
        )
        self.config._register_custom_module({nn.Linear: LoraLinear})
        trained, behaviour = ADAPTERS
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            add_adapter(network, self.config, trained)
            self._adapted = [module for module in network.modules() if isinstance(module, LoraLinear)]
            for layer in self._adapted:  # another `add_adapter` would look for them among all modules again
                layer.copy_adapter(trained, behaviour)
        network.peft_config[behaviour] = self.config
        for name in ADAPTERS:
            for parameter in self._find_parameters(name).values():
                parameter.data = parameter.data.float()
                parameter.requires_grad_(name == "trained")
        place(network)
        self._parameters = {name: self._find_parameters(name) for name in ADAPTERS}
        self.layers: list[nn.Linear] | None = self._find_layers()
        self._active: Adapter = "behaviour"
        self.activate("trained")

    def _find_parameters(self, adapter: str) -> dict[str, nn.Parameter]:
        marker = f".{adapter}."
        return {
            name.replace(marker, "."): parameter
            for name, parameter in self.network.named_parameters()
            if "lora_" in name and marker in name
        }

    def _find_layers(self) -> list[nn.Linear]:
        """Return the layers whose weights are the trained adapter's parameters, in their order.

        Raises:
            ConfigError: a parameter is not the weight of a linear layer without bias.
        """
        linear = [module for module in self.network.modules() if isinstance(module, nn.Linear)]
        owners = {id(layer.weight): layer for layer in linear if layer.bias is None}
        trained = self._parameters["trained"]
        if strange := [name for name, parameter in trained.items() if id(parameter) not in owners]:
            raise ConfigError(
                f"model.lora.target_modules={sorted(self.config.target_modules)}: {strange[0]} is not a "
                "linear layer's weight. Expected linear layers only, such as the attention projections."
            )
        return [owners[id(parameter)] for parameter in trained.values()]

    def parameters(self, adapter: str) -> dict[str, nn.Parameter]:
        return self._parameters[adapter]

    def activate(self, adapter: Adapter) -> None:
        """Make `adapter` the active one; None disables both.

        This leaves peft's layers as its `set_adapter` and `disable_adapters` do, but for `requires_grad`,
        which stays. Those walk over all modules, which takes longer than many a pass on a GPU.
        """
        if adapter == self._active:
            return
        state: dict[str, object] = {"_disable_adapters": adapter is None}
        if adapter is not None:
            state["_active_adapter"] = [adapter]
        for layer in self._adapted:
            layer.__dict__.update(state)
        self._active = adapter

    @torch.no_grad()
    def copy(self, source: str, target: str) -> None:
        for name, parameter in self._parameters[target].items():
            parameter.copy_(self._parameters[source][name])

    def named(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {self.prefix + name: value for name, value in values.items()}

    def state(self) -> dict[str, Tensor]:
        state = get_peft_model_state_dict(self.network, adapter_name="trained")
        return {self.prefix + key: full_on(value, 0) for key, value in state.items()}

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        own = {
            self.prefix + key: value
            for key, value in get_peft_model_state_dict(self.network, adapter_name="trained").items()
        }
        shapes = {key: value.shape for key, value in own.items()}
        if misfits := find_misfits(shapes, state):
            raise CheckpointError(
                f"the LoRA {describe_misfits(misfits, shapes, state)}. "
                "Expected a checkpoint of the same model with the same model.lora.* settings."
            )
        for key, value in own.items():
            local(value).copy_(local_shard(state[key], value))
        self.copy("trained", "behaviour")
