"""Augmentation of whole batches on the device, with one set of random numbers per image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pamkd.distributed import WHOLE, Columns

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Draws:
    """The random numbers of one batch; int64 [n], `flip` bool [n]. Parts that are off are None."""

    top: Tensor | None  # of the crop, in the padded image: 0 .. 2 * padding
    left: Tensor | None
    flip: Tensor | None
    row: Tensor | None  # of the cutout's centre: 0 .. h - 1
    column: Tensor | None


class Augment:
    """Random crop after zero padding, horizontal flip, normalisation, cutout: `augment(images, generator)`, as DARTS does.

    Images [n, c, h, w] are uint8 (0 .. 255) or floating (0 .. 1); the result is (x - mean) / std, float32 for uint8
    input and of the input's dtype otherwise. Random numbers come from the given generator and are drawn on its device: with a CPU
    generator a batch is augmented alike on every device. Padding is black, before normalisation. Cutout erases rows
    [y - cutout // 2, y + cutout // 2) and columns likewise around a centre drawn from all pixels, clipped at the borders,
    and fills with 0 after normalisation (the mean colour), so an odd side is rounded down to an even one.

    `resized_crop` and `color_jitter` act on whole pictures while they are decoded, hence only on datasets that are read from
    files (`ImageFiles`): torchvision's RandomResizedCrop to the dataset's image size, ColorJitter(0.4, 0.4, 0.4, 0.2).
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        padding: int = 0,
        flip: bool = False,
        cutout: int = 0,
        resized_crop: bool = False,
        color_jitter: bool = False,
    ) -> None:
        if len(mean) != len(std) or not len(mean):
            raise ValueError(f"mean has {len(mean)} channels and std {len(std)}: needed is one number of each per channel")
        if min(std) <= 0:
            raise ValueError(f"std is {tuple(std)}: needed are positive numbers")
        if padding < 0 or cutout < 0:
            raise ValueError(f"padding is {padding} and cutout {cutout}: needed are numbers of pixels, 0 or more")
        if color_jitter and not resized_crop:
            raise ValueError("color_jitter acts where resized_crop does: pass resized_crop=True too")
        self.mean, self.std = tuple(mean), tuple(std)
        self.padding, self.flip, self.cutout = padding, flip, cutout
        self.resized_crop, self.color_jitter = resized_crop, color_jitter
        self._constants: dict[tuple[torch.device, torch.dtype, bool], tuple[Tensor, Tensor]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without tensors on devices, which a worker process leaves alone."""
        return vars(self) | {"_constants": {}}

    def __call__(self, images: Tensor, generator: torch.Generator, columns: Columns = WHOLE) -> Tensor:
        return self.apply(images, self.draw(images, generator, columns))

    def draw(self, images: Tensor, generator: torch.Generator, columns: Columns = WHOLE) -> Draws:
        """The random numbers for a batch, on the device of the images; those of this column's images where it is split."""
        count, _, height, width = images.shape
        count = columns.whole(count)

        def below(bound: int, on: bool) -> Tensor | None:
            if not on:
                return None
            drawn = torch.randint(bound, (count,), generator=generator, device=generator.device)
            return columns.part(drawn).to(images.device, non_blocking=True)

        crop, erase = self.padding > 0, self.cutout > 0
        top, left = below(2 * self.padding + 1, crop), below(2 * self.padding + 1, crop)
        flip = below(2, self.flip)
        return Draws(top, left, None if flip is None else flip.bool(), below(height, erase), below(width, erase))

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """Augment [n, c, h, w] by given random numbers. Raises ValueError for another shape, and for integers but uint8."""
        if images.dim() != 4 or images.shape[1] != len(self.mean):
            raise ValueError(f"images have shape {tuple(images.shape)}: needed is [n, {len(self.mean)}, h, w], as mean and std say")
        scale, shift = self._affine(images)
        images = torch.addcmul(shift, self._shifted(images, draws).to(scale.dtype), scale)
        if draws.row is not None and draws.column is not None:
            rows, columns = self._erased(draws.row, images.shape[2]), self._erased(draws.column, images.shape[3])
            images = images.masked_fill_((rows[:, :, None] & columns[:, None, :]).unsqueeze(1), 0)
        return images

    def picture(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        """The part that acts on one whole picture, drawing from PyTorch's global generator; `size` is (h, w)."""
        from torchvision.transforms import v2

        steps: list[Any] = [v2.RandomResizedCrop(size)]
        if self.color_jitter:
            steps.append(v2.ColorJitter(0.4, 0.4, 0.4, 0.2))
        return v2.Compose(steps)(image)

    def _shifted(self, images: Tensor, draws: Draws) -> Tensor:
        """Crop and flip: one gather over the pixels of the padded images."""
        if draws.top is None and draws.flip is None:
            return images
        count, channels, height, width = images.shape
        padded = F.pad(images, [self.padding] * 4)
        row, column = (torch.arange(size, device=images.device) for size in (height, width))
        if draws.flip is not None:
            column = torch.where(draws.flip[:, None], width - 1 - column, column)
        if draws.top is not None and draws.left is not None:
            row, column = draws.top[:, None] + row, draws.left[:, None] + column
        pixel = row.reshape(-1, height, 1) * padded.shape[3] + column.reshape(-1, 1, width)
        pixel = pixel.reshape(count, 1, height * width).expand(-1, channels, -1)
        return padded.flatten(2).gather(2, pixel).view(count, channels, height, width)

    def _erased(self, centre: Tensor, size: int) -> Tensor:
        place = torch.arange(size, device=centre.device)
        return (place >= centre[:, None] - self.cutout // 2) & (place < centre[:, None] + self.cutout // 2)

    def _affine(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift [c, 1, 1] of the normalisation, of bytes or of numbers in 0 .. 1."""
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise ValueError(f"images are {images.dtype}: needed are uint8 (0 .. 255) or floating numbers (0 .. 1)")
        dtype = images.dtype if images.is_floating_point() else torch.float32
        key = (images.device, dtype, images.is_floating_point())
        if key not in self._constants:
            mean, std = (torch.tensor(value, dtype=torch.float64).view(-1, 1, 1) for value in (self.mean, self.std))
            scale = 1 / (std if images.is_floating_point() else 255 * std)
            self._constants[key] = scale.to(images.device, dtype), (-mean / std).to(images.device, dtype)
        return self._constants[key]
