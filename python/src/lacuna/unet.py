"""A U-Net that stands where a `UNet2DConditionModel` of diffusers does, and is computed by `lacuna unet`."""

from __future__ import annotations

import inspect
import json
import os
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any

try:
    import torch
    from diffusers import ModelMixin, UNet2DConditionModel
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
except ImportError as missing:
    raise ImportError(f"lacuna.UNet takes the place of a U-Net of diffusers, and needs it: {missing}") from missing
from safetensors.torch import load, save

from .client import HEADER, Call, Client, Facts, Picture
from .errors import LacunaError, LacunaWarning, NotSupported, Refused

# Pictures that stay open beside the one that is called: pipelines that call the U-Net for several prompts at each step.
_OPEN = 4

# What diffusers asks of its own U-Net and a split one does not have, with what to do instead.
_LORA = "give adapters to `lacuna unet` and the workers (--lora)"
_ATTENTION = "the workers compute attention"
_LACKING = {
    "load_lora_adapter": _LORA,
    "load_attn_procs": _LORA,
    "save_attn_procs": _LORA,
    "set_adapter": _LORA,
    "set_adapters": _LORA,
    "add_adapter": _LORA,
    "delete_adapters": _LORA,
    "enable_lora": _LORA,
    "disable_lora": _LORA,
    "fuse_lora": _LORA,
    "unfuse_lora": _LORA,
    "unload_lora": _LORA,
    "_load_ip_adapter_weights": "IP-Adapters change the attentions, which workers compute",
    "_load_ip_adapter_loras": "IP-Adapters change the attentions, which workers compute",
    "set_attn_processor": _ATTENTION,
    "set_default_attn_processor": _ATTENTION,
    "attn_processors": _ATTENTION,
    "fuse_qkv_projections": _ATTENTION,
    "unfuse_qkv_projections": _ATTENTION,
    "enable_freeu": "FreeU changes features, which workers hold",
    "disable_freeu": "FreeU changes features, which workers hold",
    "save_pretrained": "the weights are the server's",
    "enable_gradient_checkpointing": "there are no gradients",
    "down_blocks": "the layers are the server's",
    "mid_block": "the layers are the server's",
    "up_blocks": "the layers are the server's",
    "conv_in": "the layers are the server's",
    "conv_out": "the layers are the server's",
}


class _LackingAttribute(NotSupported, AttributeError):
    """An attribute of diffusers' own U-Net: whoever only looks whether it is there finds that it is not."""


class _Open:
    """A picture that is open, and how to tell it from the next one."""

    def __init__(self, told: dict[str, torch.Tensor], latents: tuple[int, int, int]) -> None:
        self.told = told
        # Whoever writes into a tensor makes it another one.
        self.versions = {name: tensor._version for name, tensor in told.items()}
        self.kept = {name: tensor.detach().clone() for name, tensor in told.items()}
        self.latents = latents
        self.picture: Picture | None = None
        self.first: float | None = None
        self.last: float | None = None

    def is_of(self, told: dict[str, torch.Tensor], latents: tuple[int, int, int]) -> bool:
        """Whether a call of this is of the same picture, but for its timestep."""
        if self.latents != latents or self.told.keys() != told.keys():
            return False
        return self.is_told_by(told) or all(_same(self.kept[name], told[name]) for name in told)

    def is_told_by(self, told: dict[str, torch.Tensor]) -> bool:
        """Whether these are the very tensors that it was opened with."""
        return all(self.told[name] is it and self.versions[name] == it._version for name, it in told.items())

    def begins_again(self, timestep: float, told: dict[str, torch.Tensor]) -> bool:
        """Whether a call at this timestep is the first of another picture: it goes back to where this one began."""
        if self.first is None or self.last is None or timestep < self.first:
            return False
        return self.last < self.first or not self.is_told_by(told)


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other.to(one.device))


class UNet(UNet2DConditionModel):
    """The U-Net of a running `lacuna unet`, for any pipeline of diffusers that takes a `UNet2DConditionModel`.

        unet = lacuna.UNet.connect()
        pipe = StableDiffusionXLPipeline.from_pretrained(MODEL, unet=unet, dtype=torch.float32)

    A picture is a session on each worker. It begins by itself where the prompt's embedding or the size is another one, or the
    timestep goes back to where the last one began; it ends then, with `close`, at the end of the program, and by itself when
    nobody calls for a while.
    """

    def __init__(self, client: Client) -> None:
        # Not that of its own base, which would make the layers.
        ModelMixin.__init__(self)
        own = inspect.signature(UNet2DConditionModel.__init__).parameters.values()
        defaults = {it.name: it.default for it in own if it.default is not inspect.Parameter.empty}
        # Of a config as of JSON: diffusers has tuples in some places.
        self.register_to_config(**defaults | client.facts.config)
        # It says where and in which type pipelines hold what goes in; `to` moves it.
        self.register_buffer("_place", torch.empty(0), persistent=False)
        self._client = client
        self._open: list[_Open] = []
        self._seen: list[str] = []
        self._last: Call | None = None
        added = self.config.projection_class_embeddings_input_dim
        if added is not None:
            # SDXL's pipelines look how wide it is.
            self.add_embedding = SimpleNamespace(linear_1=SimpleNamespace(in_features=added))
        # What is open on the workers is closed when nobody can call any more.
        self._finalizer = weakref.finalize(self, _close, client, self._open)

    @classmethod
    def connect(cls, door: str | os.PathLike[str] | None = None) -> UNet:
        """Connects to the `lacuna unet` that says in the file `door` where it serves: by default the one in LACUNA_DOOR, else
        where it is written without --door.

        Raises NotServed where nobody serves, Forbidden where the token is another one.
        """
        return cls(Client(door))

    @property
    def facts(self) -> Facts:
        """What the server says of itself."""
        return self._client.facts

    @property
    def seen(self) -> list[str]:
        """What each provider sees of the last picture, in lines; nothing where nobody else computes."""
        return list(self._seen)

    @property
    def last_call(self) -> Call | None:
        """What the last U-Net call took."""
        return self._last

    def report(self) -> dict[str, Any]:
        """What was done, and who saw what, of all pictures that have ended."""
        return self._client.report()

    def end_picture(self) -> None:
        """Ends the picture, so that the next call begins another one, and the places on the workers are free."""
        while self._open:
            _end(self._open.pop())

    @contextmanager
    def picture(self) -> Iterator[None]:
        """All calls within are of one picture, or of several; none is of one before or behind it."""
        self.end_picture()
        try:
            yield
        finally:
            self.end_picture()

    def close(self) -> None:
        """Ends the picture and the connection."""
        self._finalizer()

    def __enter__(self) -> UNet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @torch.no_grad()
    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        timestep_cond: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        added_cond_kwargs: dict[str, torch.Tensor] | None = None,
        down_block_additional_residuals: tuple[torch.Tensor, ...] | None = None,
        mid_block_additional_residual: torch.Tensor | None = None,
        down_intrablock_additional_residuals: tuple[torch.Tensor, ...] | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DConditionOutput | tuple[torch.Tensor]:
        """The U-Net's output for `sample` [B, C, H, W] at `timestep`, for prompts `encoder_hidden_states` [B, T, D].

        Raises LacunaError: PolicyRefused, WorkerLost, Refused, NotServed; NotSupported for what a split U-Net does not have.
        """
        residuals = "ControlNet and T2I-Adapter add to features, which workers hold"
        for name, value, why in (
            ("class_labels", class_labels, "no Stable Diffusion has classes"),
            ("attention_mask", attention_mask, _ATTENTION),
            ("encoder_attention_mask", encoder_attention_mask, _ATTENTION),
            ("down_block_additional_residuals", down_block_additional_residuals, residuals),
            ("mid_block_additional_residual", mid_block_additional_residual, residuals),
            ("down_intrablock_additional_residuals", down_intrablock_additional_residuals, residuals),
        ):
            if value is not None:
                raise _lacking(name, why)
        for name, value in (cross_attention_kwargs or {}).items():
            # A scale of 1 is what adapters have.
            if name != "scale" or value != 1.0:
                raise _lacking(f"cross_attention_kwargs[{name!r}]", _LORA if name == "scale" else _ATTENTION)
        told = {"encoder_hidden_states": encoder_hidden_states}
        for name, value in (added_cond_kwargs or {}).items():
            if name not in ("text_embeds", "time_ids"):
                raise _lacking(f"added_cond_kwargs[{name!r}]", "IP-Adapters and hints are not there")
            # Pipelines of the same model without a second text encoder give them, too.
            if self.config.addition_embed_type == "text_time":
                told[name] = value
        if timestep_cond is not None:
            told["timestep_cond"] = timestep_cond
        if sample.dim() != 4:
            raise Refused(f"sample has shape {list(sample.shape)}; it must be [B, C, H, W]", "invalid")
        output = self._call(sample, _one_timestep(timestep), told)
        output = output.to(device=sample.device, dtype=sample.dtype)
        return UNet2DConditionOutput(sample=output) if return_dict else (output,)

    def _call(self, sample: torch.Tensor, timestep: float, told: dict[str, torch.Tensor]) -> torch.Tensor:
        opened = self._picture(told, (sample.shape[0], sample.shape[2], sample.shape[3]), timestep)
        message = _message({"timestep": timestep}, {"sample": sample})
        try:
            answer, call = self._made(opened, message)
        except BaseException:
            # What was not answered may still be computed.
            self._open.remove(opened)
            with suppress(LacunaError):
                _end(opened)
            raise
        opened.last = timestep
        if opened.first is None:
            opened.first = timestep
        self._last = call
        for how in call.told:
            warnings.warn(how, LacunaWarning, stacklevel=6)
        return load(answer)["sample"]

    def _made(self, opened: _Open, message: bytes) -> tuple[bytes, Call]:
        if opened.picture is not None:
            try:
                return opened.picture.call(message)
            except LacunaError as error:
                if error.code != "gone":
                    raise
                # Nobody called for long, or others took its place.
        batch, rows, columns = opened.latents
        opening = _message({"latents": [batch, rows, columns]}, opened.kept)
        opened.picture = self._client.open(opening)
        self._seen = opened.picture.seen
        return opened.picture.call(message)

    def _picture(self, told: dict[str, torch.Tensor], latents: tuple[int, int, int], timestep: float) -> _Open:
        """The picture that a call is of."""
        for opened in self._open:
            if opened.is_of(told, latents):
                if not opened.begins_again(timestep, told):
                    return opened
                break
        # Whoever has come further down is of a picture that is done.
        done = [it for it in self._open if it.last is None or it.last < timestep or it.is_of(told, latents)]
        keep = [it for it in self._open if it not in done]
        done += keep[: max(0, len(keep) + 1 - _OPEN)]
        for opened in done:
            self._open.remove(opened)
            _end(opened)
        opened = _Open(told, latents)
        self._open.append(opened)
        return opened

    def __getattr__(self, name: str) -> Any:
        if name in _LACKING:
            raise _LackingAttribute(_words(name, _LACKING[name]), "not_supported")
        return super().__getattr__(name)


def _refusing(name: str, why: str) -> Any:
    def refuse(self: UNet, *_: object, **__: object) -> Any:
        raise _LackingAttribute(_words(name, why), "not_supported")

    return refuse


# What the base has is found before __getattr__ is asked.
for _name, _why in _LACKING.items():
    _its = getattr(UNet2DConditionModel, _name, None)
    if isinstance(_its, property):
        setattr(UNet, _name, property(_refusing(_name, _why)))
    elif _its is not None:
        setattr(UNet, _name, _refusing(_name, _why))


def _words(name: str, why: str) -> str:
    return f"{name} is not supported by a split U-Net: {why}"


def _lacking(name: str, why: str) -> NotSupported:
    return NotSupported(_words(name, why), "not_supported")


def _one_timestep(timestep: torch.Tensor | float | int) -> float:
    """The one timestep of a batch."""
    if not isinstance(timestep, torch.Tensor):
        return float(timestep)
    every = timestep.detach().reshape(-1)
    if every.numel() == 0 or not bool((every == every[0]).all()):
        raise _lacking("a batch of several timesteps", "all entries of a call have one")
    return float(every[0])


def _message(header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> bytes:
    """A message with tensors in f32, or in f16 or bf16 where they are that."""
    kinds = (torch.float32, torch.float16, torch.bfloat16)
    sent = {
        name: tensor.detach().to("cpu", tensor.dtype if tensor.dtype in kinds else torch.float32).contiguous()
        for name, tensor in tensors.items()
    }
    return save(sent, {HEADER: json.dumps(header)})


def _end(opened: _Open) -> None:
    """Closes a picture. Whoever cannot be told closes it after a while."""
    picture, opened.picture = opened.picture, None
    if picture is not None:
        with suppress(LacunaError):
            picture.close()


def _close(client: Client, pictures: list[_Open]) -> None:
    while pictures:
        _end(pictures.pop())
    client.close()
