"""Pipelines of diffusers whose U-Net is split over workers that you do not trust.

    import lacuna
    import torch
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(MODEL, unet=lacuna.UNet.connect(), dtype=torch.float32)
    pipe("a lighthouse at dusk").images[0]

`lacuna unet` serves the U-Net; prompt, text encoders, scheduler and VAE stay in this process. `Client` speaks to it without
torch; `UNet` takes the place of a `UNet2DConditionModel`, and imports torch and diffusers when it is first asked for.
"""

from typing import TYPE_CHECKING, Any

from .client import Call, Client, Facts, Picture
from .errors import (
    Forbidden,
    LacunaError,
    LacunaWarning,
    NotServed,
    NotSupported,
    PolicyRefused,
    Refused,
    WorkerLost,
)

if TYPE_CHECKING:
    from .unet import UNet

__version__ = "0.1.0"

__all__ = [
    "Call",
    "Client",
    "Facts",
    "Forbidden",
    "LacunaError",
    "LacunaWarning",
    "NotServed",
    "NotSupported",
    "Picture",
    "PolicyRefused",
    "Refused",
    "UNet",
    "WorkerLost",
]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import, and is not needed for the rest.
    if name == "UNet":
        from .unet import UNet

        return UNet
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
