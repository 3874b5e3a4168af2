"""Whole-batch augmentation on the device of the batch; every random number comes from the generator given."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from zerogate.errors import DataError

ATTEMPTS = 10  # boxes drawn per image by random_resized_crop, of which the first that fits is taken


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 [B, C, H, W] to float32 (x/255 − mean)/std per channel, in the memory format of the input."""
    shape = (1, -1, 1, 1)
    scale = torch.tensor([1 / (255 * s) for s in std], dtype=torch.float32, device=images.device).view(shape)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], dtype=torch.float32, device=images.device)
    return images.to(torch.float32).mul_(scale).add_(shift.view(shape))


def random_flip(x: Tensor, generator: torch.Generator | int) -> Tensor:
    """Mirror each image of [B, C, H, W] left to right with probability one half."""
    mirrored = _uniform(generator, len(x), device=x.device) < 0.5
    return torch.where(mirrored.view(-1, 1, 1, 1), x.flip(3), x)


def random_crop(x: Tensor, padding: int, generator: torch.Generator | int) -> Tensor:
    """Shift each image of [B, C, H, W] by up to `padding` pixels each way, zeros coming in.

    Equals padding by zeros on all sides and cutting a window of the old size out at a random place. On normalised
    images the zeros have the colour of the mean.
    """
    batch, _, height, width = x.shape
    offsets = (_uniform(generator, 2, batch, device=x.device) * (2 * padding + 1)).long()
    padded = F.pad(x, (padding,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: [B, C, 2·padding+1, 2·padding+1, H, W]
    return windows[torch.arange(batch, device=x.device), :, offsets[0], offsets[1]]


def random_resized_crop(
    x: Tensor, scale: tuple[float, float], ratio: tuple[float, float], generator: torch.Generator | int
) -> Tensor:
    """Cut a random box out of each image of [B, C, H, W] and stretch it, bilinearly, to the old size.

    The box covers a fraction of the area uniform in `scale`; its width/height in pixels is log-uniform in `ratio`;
    its place is uniform. Boxes that do not fit are drawn again, up to ten times; then the last is cut to fit.
    """
    batch, _, height, width = x.shape
    area, shape = _uniform(generator, 2, batch, ATTEMPTS, device=x.device)
    area = scale[0] + (scale[1] - scale[0]) * area
    shape = torch.exp(math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * shape) * (height / width)
    wide, high = (area * shape).sqrt(), (area / shape).sqrt()  # sides as fractions of the image's
    fits = (wide <= 1) & (high <= 1)
    fits[:, -1] = True
    first = fits.to(torch.uint8).argmax(1, keepdim=True)
    sides = torch.cat([wide.gather(1, first), high.gather(1, first)], 1).clamp(max=1)
    # In grid_sample's coordinates the image spans −1..1, so a box of side s has its centre within ±(1 − s). The boxes
    # are upright, so columns and rows are placed separately: half the time of affine_grid's matrix product.
    centre = (2 * _uniform(generator, batch, 2, device=x.device) - 1) * (1 - sides)
    columns = torch.arange(1 - width, width, 2, device=x.device) / width * sides[:, :1] + centre[:, :1]
    rows = torch.arange(1 - height, height, 2, device=x.device) / height * sides[:, 1:] + centre[:, 1:]
    expanded = columns[:, None, :].expand(-1, height, -1), rows[:, :, None].expand(-1, -1, width)
    grid = torch.stack(expanded, 3).to(x.dtype)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


@dataclass(frozen=True)
class Augment:
    """What to do to a training batch: `resized_crop` = (scale, ratio), then `crop` pixels of padding, then `flip`.

    Raises:
        DataError: a negative crop, or a scale or ratio that is no range.
    """

    flip: bool = True
    crop: int = 4
    resized_crop: tuple[tuple[float, float], tuple[float, float]] | None = None

    def __post_init__(self) -> None:
        if self.crop < 0:
            raise DataError(f"crop is {self.crop}; give the pixels of padding, 0 for no cropping")
        if self.resized_crop is None:
            return
        try:
            (low, high), (narrow, broad) = self.resized_crop
            valid = 0 < low <= high <= 1 and 0 < narrow <= broad < math.inf
        except (TypeError, ValueError):
            valid = False
        if not valid:
            raise DataError(
                f"resized_crop is {self.resized_crop}; give ((smallest, largest area), (least, greatest width/height)) "
                "such as ((0.8, 1.0), (0.9, 1.1)), areas within 0..1"
            )
        object.__setattr__(self, "resized_crop", ((low, high), (narrow, broad)))

    def __call__(self, x: Tensor, generator: torch.Generator | int) -> Tensor:
        """Augment normalised images [B, C, H, W]; the result depends on `x` and the generator's state only."""
        generator = _as_generator(generator)
        if self.resized_crop is not None:
            x = random_resized_crop(x, *self.resized_crop, generator)
        if self.crop:
            x = random_crop(x, self.crop, generator)
        return random_flip(x, generator) if self.flip else x


def _as_generator(generator: torch.Generator | int) -> torch.Generator:
    return generator if isinstance(generator, torch.Generator) else torch.Generator().manual_seed(generator)


def _uniform(generator: torch.Generator | int, *shape: int, device: torch.device) -> Tensor:
    """Uniform numbers in [0, 1), drawn where the generator lives (so a CPU one serves every device alike)."""
    generator = _as_generator(generator)
    return torch.rand(shape, generator=generator, device=generator.device).to(device)
