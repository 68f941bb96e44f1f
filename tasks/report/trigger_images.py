"""Reversed triggers as pictures: mask, pattern, and the trigger on a clean image. Reads evidence without torch."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vetgate.packed import array_of

SIDE = 128

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Picture:
    """One reversed trigger: mask (1, H, W) and pattern (C, H, W) in [0, 1], and the label it leads to."""

    mask: Floats
    pattern: Floats
    target: int

    @property
    def norm(self) -> float:
        """L1 norm of the mask, in pixels."""
        return float(self.mask.sum())

    @property
    def share(self) -> float:
        """The part of the image that the mask covers."""
        return float(self.mask.mean())

    def stamp(self, image: Floats) -> Floats:
        """The clean image (C, H, W) with the trigger blended in."""
        return (1 - self.mask) * image + self.mask * self.pattern

    def pngs(self, image: Floats | None = None) -> dict[str, bytes]:
        """PNG files of the mask, the pattern where the mask is, and with a clean image that before and after."""
        seen = {"mask": self.mask, "pattern": self.mask * self.pattern + (1 - self.mask) * 0.5}
        if image is not None and image.shape == self.pattern.shape:
            seen |= {"clean": image, "stamped": self.stamp(image)}
        return {name: png(picture) for name, picture in seen.items()}


def triggers_of(evidence: Mapping[str, Any]) -> list[Picture]:
    """The triggers in the evidence of one method; raises ValueError on shapes that are no images."""
    found = []
    for trigger in evidence.get("triggers") or ():
        try:
            mask, pattern = (np.asarray(array_of(trigger[part]), np.float32) for part in ("mask", "pattern"))
            target = int(trigger["target"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"expected a trigger with mask, pattern and target, got {error!r}") from error
        if mask.ndim != 3 or pattern.ndim != 3 or mask.shape != (1, *pattern.shape[1:]) or len(pattern) not in (1, 3):
            raise ValueError(f"expected a mask (1, H, W) and a pattern (C, H, W), got {mask.shape} and {pattern.shape}")
        found.append(Picture(_shown(mask), _shown(pattern), target))
    return found


def most_suspicious(pictures: Sequence[Picture], suspects: Sequence[int], most: int) -> list[Picture]:
    """At most `most` triggers: those of suspected labels first, then the smallest."""
    return sorted(pictures, key=lambda p: (p.target not in suspects, p.norm))[:most]


def trigger_pngs(evidence: Sequence[Mapping[str, Any]], image: Floats | None = None) -> dict[str, bytes]:
    """Every reversed trigger as PNG files, named method/label-1-mask.png and so on."""
    return dict(_named(evidence, image))


def _named(evidence: Sequence[Mapping[str, Any]], image: Floats | None) -> Iterator[tuple[str, bytes]]:
    for item in evidence:
        seen: dict[int, int] = {}
        for picture in triggers_of(item):
            nth = seen[picture.target] = seen.get(picture.target, 0) + 1
            again = f"-{nth}" if nth > 1 else ""
            for name, content in picture.pngs(image).items():
                yield f"{item['method']}/label-{picture.target}{again}-{name}.png", content


def png(image: NDArray[np.floating]) -> bytes:
    """An image (C, H, W) in [0, 1] as a PNG file, enlarged by whole pixels to about SIDE."""
    pixels = np.rint(_shown(image) * 255).astype(np.uint8).transpose(1, 2, 0)
    factor = max(1, round(SIDE / max(pixels.shape[:2])))
    large = pixels.repeat(factor, 0).repeat(factor, 1)
    file = io.BytesIO()
    Image.fromarray(large[..., 0] if large.shape[2] == 1 else large).save(file, "PNG", optimize=True)
    return file.getvalue()


def data_uri(content: bytes) -> str:
    """A PNG file as a data: address."""
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _shown(values: NDArray[np.floating]) -> Floats:
    return np.asarray(np.nan_to_num(values, nan=0.0).clip(0, 1), np.float32)
