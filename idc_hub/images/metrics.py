"""PSNR and SSIM of 8-bit images, and the protocol without which neither number means anything."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from idc_hub.errors import ImageError

SSIM_WINDOW = 11


@dataclass(frozen=True)
class Protocol:
    """How two images are compared; `str()` of it is printed beside every number.

    Attributes:
        channel: `"rgb"`: all three channels. `"y"`: luma of ITU-R BT.601 in the studio range 16 to 235, with
            the weights of MATLAB's `rgb2ycbcr`, kept as a float (not rounded to 8 bits again).
        border: Pixels left out on all four sides.
        scale: The super-resolution scale that the numbers are about.
        lr_given: LR images come with the test set; otherwise they are HR, downscaled with `imresize`.
        upscaling: How SR was made, unless a network saw the whole LR image and nothing else.
    """

    channel: Literal["rgb", "y"]
    border: int
    scale: int
    lr_given: bool = False
    upscaling: str = ""

    def __str__(self) -> str:
        parts = [f"x{self.scale}", self.channel.upper(), f"border {self.border}", "8-bit"]
        return ", ".join(parts + ["given LR"] * self.lr_given + [self.upscaling] * bool(self.upscaling))


def psnr(sr: np.ndarray, hr: np.ndarray, protocol: Protocol) -> float:
    """Peak signal-to-noise ratio in dB, peak 255, one mean over all pixels and channels.

    Args:
        sr: The image to judge, uint8 RGB `[height, width, 3]`.
        hr: The truth, of the same size.
        protocol: Channel and border.

    Returns:
        PSNR in dB; `inf` for equal images.

    Raises:
        ImageError: Not two uint8 RGB images of one size, or nothing is left inside the border.
    """
    sr, hr = _prepare(sr, hr, protocol, at_least=1)
    error = np.mean((sr - hr) ** 2)
    return float(10 * np.log10(255**2 / error)) if error > 0 else float("inf")


def ssim(sr: np.ndarray, hr: np.ndarray, protocol: Protocol) -> float:
    """Structural similarity (Wang et al. 2004) with the authors' settings; the mean of the channels' values.

    The settings: an 11x11 Gaussian window of sigma 1.5, population variances, K1 = 0.01, K2 = 0.03, peak 255,
    and only places where the whole window lies inside the image.

    Args:
        sr: The image to judge, uint8 RGB `[height, width, 3]`.
        hr: The truth, of the same size.
        protocol: Channel and border.

    Returns:
        SSIM, 1 for equal images.

    Raises:
        ImageError: Not two uint8 RGB images of one size, or less than 11x11 is left inside the border.
    """
    from skimage.metrics import structural_similarity

    sr, hr = _prepare(sr, hr, protocol, at_least=SSIM_WINDOW)
    # Sigma 1.5 makes scikit-image's window 11 wide, and it averages over whole windows only.
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(structural_similarity(sr, hr, data_range=255, channel_axis=-1, **settings))


def _prepare(sr: np.ndarray, hr: np.ndarray, protocol: Protocol, at_least: int) -> tuple[np.ndarray, np.ndarray]:
    """Check both images, cut their borders, and give float64 `[height, width, 3 or 1]` in 0 to 255."""
    for array in (sr, hr):
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
            raise ImageError(
                f"Cannot measure an array of {array.dtype} and shape {array.shape}.",
                "Give uint8 RGB images, [height, width, 3].",
            )
    if sr.shape != hr.shape:
        raise ImageError(
            f"Cannot compare images of {sr.shape[1]}x{sr.shape[0]} and {hr.shape[1]}x{hr.shape[0]} pixels.",
            "Both need one size: was the HR image mod-cropped, and is the scale right?",
        )
    height, width = (side - 2 * protocol.border for side in hr.shape[:2])
    if min(height, width) < at_least:
        raise ImageError(
            f"An image of {hr.shape[1]}x{hr.shape[0]} is too small for a border of {protocol.border}.",
            f"At least {at_least}x{at_least} pixels must be left inside the border.",
        )
    inside = np.s_[protocol.border : protocol.border + height, protocol.border : protocol.border + width]
    return _channels(sr[inside], protocol.channel), _channels(hr[inside], protocol.channel)


def _channels(rgb: np.ndarray, channel: Literal["rgb", "y"]) -> np.ndarray:
    pixels = rgb.astype(np.float64)
    if channel == "rgb":
        return pixels
    return 16 + pixels @ np.array([[65.481], [128.553], [24.966]]) / 255
