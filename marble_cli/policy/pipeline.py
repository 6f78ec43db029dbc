"""Make a policy of a diffusers pipeline of any supported family: frozen and trained weights."""

import copy
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from marble_cli.config.enums import Offload, Quantization, Switch, Train
from marble_cli.config.resolution import read_resolution
from marble_cli.config.schema import ModelConfig
from marble_cli.distributed.layout import PlaceModel, place_whole
from marble_cli.pictures import seen_sizes
from marble_cli.policy.attention import avoid_cudnn_attention, fastest_attention
from marble_cli.policy.base import Adapter, Family, Pictures, PromptEmbeddings, Trainable
from marble_cli.policy.compilation import choose_compilation
from marble_cli.policy.decoding import decode_in_parts, decoded_at_once
from marble_cli.policy.diffusers_types import Autoencoder, Network, Pipeline, TextEncoder
from marble_cli.policy.editing import as_editing
from marble_cli.policy.embeddings import EmbeddingCache, fingerprint
from marble_cli.policy.offload import offload_blocks
from marble_cli.policy.provenance import describe_provenance, weights_digest
from marble_cli.policy.quantization import quantize
from marble_cli.policy.source import DTYPES, count_image_tokens
from marble_cli.policy.tokenizers import own_tokenizer
from marble_cli.policy.trainable.blocks import compile_blocks, repeated_blocks
from marble_cli.policy.trainable.full import FullWeights
from marble_cli.policy.trainable.lora import LoraPair
from marble_cli.policy.video import as_video

# Tokens encoded at once: Qwen-Image's encoder keeps the outputs of all layers and logits of 152,064 words.
ENCODED_TOKENS = 2**13


class PipelinePolicy:
    """A pipeline with weights that are trained; implements `policy.base.Policy`.

    `place` puts a network on the device, for instance in shards.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        family: Family,
        model: ModelConfig,
        device: torch.device,
        seed: int,
        place: PlaceModel = place_whole,
    ):
        self.pipeline, self.family, self.model, self.device = pipeline, family, model, device
        self.intact = True
        self.dtype = DTYPES[model.precision]
        self.network: Network = getattr(pipeline, family.network).eval()
        for frozen in (pipeline.vae, *family.encoders):
            frozen.requires_grad_(False).eval()
        self.weights = weights_digest(self.network)
        for block in repeated_blocks(self.network):
            quantize(block, model.quantization, device)
        offloads = model.offload is Offload.blocks
        # Offloaded weights are there again for a backward pass only if it calls blocks again.
        if offloads or model.gradient_checkpointing is Switch.true:
            self.network.enable_gradient_checkpointing()
        self.compilation = choose_compilation(model.compile, device)
        avoid_cudnn_attention()
        if self.compilation.on:
            compile_blocks(self.network)

        def place_network(network: nn.Module) -> None:
            blocks = repeated_blocks(network)
            if offloads:
                offload_blocks(network, blocks, device)
            else:
                place(network, blocks, device, self.dtype)

        self.trainable: Trainable = (
            FullWeights(pipeline, family.network, self.compilation.on, place_network)
            if model.train is Train.full
            else LoraPair(self.network, family.network, model.lora, seed, place_network)
        )
        # Float32 copies of a network are cast where they are used; all else has the model's own type.
        self.autocast = model.train is Train.full and self.dtype is not torch.float32
        self.even_times, self.guided = family.even_times, family.guided
        self.conditions = family.conditions
        video = as_video(family)
        self.frames: int | None = video.frames if video else None
        self.fps: int | None = video.fps if video else None
        self._take_size("model.resolution")
        self.cache = self._open_cache()
        pipeline.vae.to(device)
        for encoder in family.encoders:
            quantize(encoder, model.quantization, device)
            encoder.to("cpu" if self.cache else device)

    def _take_size(self, key: str) -> None:
        self.resolution, self.latent_shape = self.model.resolution, self.family.latent_shape
        configs = self.pipeline.vae.config, self.network.config
        self.tokens = count_image_tokens(self.model, type(self.family), *configs, key)

    def resized(self, resolution: int | str) -> "PipelinePolicy":
        if resolution == self.model.resolution:
            return self
        other = copy.copy(self)
        other.model = replace(self.model, resolution=resolution)
        other.family = type(self.family)(self.pipeline, other.model)
        other._take_size("evaluation.resolution")
        return other

    def _open_cache(self) -> EmbeddingCache | None:
        if self.model.embedding_cache is None:
            return None
        settings = [type(self.family).__name__, self.model.precision.value, self.model.max_sequence_length]
        if self.model.quantization is not Quantization.none:
            settings.append(self.model.quantization.value)
        if zeros := self.pipeline.config.get("force_zeros_for_empty_prompt"):
            settings.append(f"{zeros=}")
        parts = {name: part for name, part in self.pipeline.components.items() if part is not None}
        named = [part for name, part in parts.items() if name.startswith(("tokenizer", "processor"))]
        for processor in (part for part in named if hasattr(part, "image_processor")):
            settings += [processor.chat_template, str(processor.image_processor.to_dict())]
        networks: list[TextEncoder | Autoencoder] = [*self.family.encoders]
        if self.family.conditions:
            networks.append(self.pipeline.vae)
            settings.append(version("pillow"))
        tokenizers = [own_tokenizer(part) for part in named]
        identity = fingerprint(networks, tokenizers, *settings)
        return EmbeddingCache(Path(self.model.embedding_cache), identity)

    def prepare(
        self,
        prompts: Sequence[str],
        negatives: Sequence[str] = (),
        pictures: Sequence[Pictures] | None = None,
    ) -> None:
        if self.cache is None:
            return
        missing = {}
        for texts, negative in ((prompts, False), (negatives, True)):
            for text, own in _paired(texts, pictures) if texts else ():
                file = self._file(text, own, negative)
                if not file.is_file():
                    missing[file] = [text], [own] if own else None, negative
        if not missing:
            return
        with self._encoders_on_device(), torch.no_grad():
            # One prompt per call, so that no bit of an embedding depends on the other prompts.
            for file, row in missing.items():
                self.cache.write(file, self._encode_rows(*row))

    def _file(self, prompt: str, pictures: Pictures, negative: bool) -> Path:
        """Return the cache's file of a prompt, which depends on its pictures and on their sizes."""
        assert self.cache is not None
        sizes = zip(pictures, self._seen_sizes(pictures), strict=True)
        key = " ".join(f"{picture.digest} {width}x{height}" for picture, (width, height) in sizes)
        return self.cache.file(prompt, key, negative=negative)

    def _seen_sizes(self, pictures: Pictures) -> list[tuple[int, int]]:
        size = read_resolution(self.model.resolution)
        return seen_sizes(pictures, size.width, size.height)

    def layout(self, pictures: Pictures) -> Hashable:
        editing = as_editing(self.family)
        if len(pictures) < 2 or editing is None:
            return len(pictures)
        sizes = self._seen_sizes(pictures)
        return tuple((editing.condition_shape(*size), editing.picture_tokens(*size)) for size in sizes)

    @contextmanager
    def _encoders_on_device(self) -> Iterator[None]:
        for encoder in self.family.encoders:
            encoder.to(self.device)
        try:
            yield
        finally:
            for encoder in self.family.encoders:
                encoder.to("cpu")
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    @torch.no_grad()
    def encode(
        self, prompts: Sequence[str], pictures: Sequence[Pictures] | None = None, *, negative: bool = False
    ) -> PromptEmbeddings:
        if self.cache is None:
            return self._encode_in_parts(prompts, pictures, negative)
        if negative:
            self.prepare((), prompts, pictures)
        else:
            self.prepare(prompts, (), pictures)
        files = [self._file(*row, negative) for row in _paired(prompts, pictures)]
        cached = self.cache.read(files, self.device)
        # A damaged file was removed by `read`; the next round encodes its prompt again.
        return self.encode(prompts, pictures, negative=negative) if cached is None else cached

    def _encode_in_parts(
        self, prompts: Sequence[str], pictures: Sequence[Pictures] | None, negative: bool
    ) -> PromptEmbeddings:
        """Encode with the encoders on the device, as many prompts at once as memory allows."""
        length = self.model.max_sequence_length
        at_once = max(1, ENCODED_TOKENS // length) if length else len(prompts)  # CLIP encoders are small
        if pictures is not None:
            at_once = min(at_once, self._decoded_at_once)
        parts = [slice(start, start + at_once) for start in range(0, len(prompts), at_once)]
        return PromptEmbeddings.joined(
            [self._encode_rows(prompts[part], pictures and pictures[part], negative) for part in parts]
        )

    def _encode_rows(
        self, prompts: Sequence[str], pictures: Sequence[Pictures] | None, negative: bool
    ) -> PromptEmbeddings:
        encode = self.family.encode_negative if negative else self.family.encode
        if pictures is None:
            return encode(prompts)
        images = [
            [picture.pixels(*size) for picture, size in zip(own, self._seen_sizes(own), strict=True)]
            for own in pictures
        ]
        return encode(prompts, images)

    @property
    def _decoded_at_once(self) -> int:
        return decoded_at_once(self.family, self.model, self.device.type)

    def velocity(self, xt: Tensor, t: Tensor, embeddings: PromptEmbeddings, adapter: Adapter) -> Tensor:
        self.trainable.activate(adapter)
        autocast = torch.autocast(self.device.type, dtype=self.dtype, enabled=self.autocast)
        if not self.family.float32_latents:
            xt = xt.to(self.dtype)
        with autocast, fastest_attention():
            velocity = self.family.velocity(xt, t, embeddings)
        return velocity.float()

    @torch.no_grad()
    def decode(self, x0: Tensor) -> tuple[Tensor, Tensor]:
        return decode_in_parts(self.family, x0.to(self.pipeline.vae.dtype), self._decoded_at_once)

    def scheduler_config(self) -> dict[str, Any]:
        return self.family.scheduler_config()

    @property
    def compiled(self) -> bool:
        return any(block._compiled_call_impl is not None for block in repeated_blocks(self.network))

    def parameters(self, adapter: Literal["trained", "behaviour"]) -> dict[str, torch.nn.Parameter]:
        return self.trainable.parameters(adapter)

    def layers(self) -> list[torch.nn.Linear] | None:
        return self.trainable.layers

    def named(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.trainable.named(values)

    def trained_state(self) -> dict[str, Tensor]:
        return self.trainable.state()

    def provenance(self) -> dict[str, Any]:
        return describe_provenance(self.model, self.weights, type(self.family), self.network)

    def load_trained(self, state: dict[str, Tensor]) -> None:
        self.trainable.load(state)

    @contextmanager
    def swapped(self, weights: dict[str, Tensor]) -> Iterator[None]:
        parameters = self.parameters("trained")
        kept = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        self.intact = False
        try:
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(weights[name])
            yield
        finally:
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(kept[name])
            self.intact = True  # unless Ctrl+C came before


def _paired(prompts: Sequence[str], pictures: Sequence[Pictures] | None) -> list[tuple[str, Pictures]]:
    """Return each prompt with its pictures."""
    return list(zip(prompts, [()] * len(prompts) if pictures is None else pictures, strict=True))
