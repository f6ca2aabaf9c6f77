"""RandomShift: random shifts of the images that minibatches have, drawn while they are gathered."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from parllel.kernels.image_shift import MOST_PIXEL_NBYTES, NO_IMAGE, make_image
from parllel.ops.stack_gather import RowSource
from parllel.tree import ArrayDict


@dataclass(frozen=True)
class RandomShift:
    """Shift images by up to some pixels at random, as DrQ does, while a minibatch is gathered.

    Each observation is shifted down or up, and right or left, by whole numbers from -pixels to
    pixels, which all have the same probability. What comes from outside repeats the nearest pixel
    of the edge, as padding the image so and cutting a random window out would. Nothing is
    interpolated: images stay uint8. All frames of a stack are shifted alike, and so are all images
    of one observation, so that several cameras, or a mask and its picture, stay one upon the other.
    The next observation has a shift of its own.

    Images are the leaves of observations of uint8 that have the axes for it. Others are left as
    they are. Two layouts are known, the first of them without a channel, too:

    - [..., height, width]: channels, and the frames of a stack, come first;
    - [..., height, width, channels], `channels_last`: pixels have at most 16 channels.

    Args:
        pixels: the largest shift, in pixels; 1 or more, and less than images are high and wide.
        channels_last: whether the last axis of images counts channels.

    Raises:
        TypeError, ValueError: `pixels` is no integer of 1 or more, or `channels_last` no bool.

    Source: Kostrikov et al. 2020, arXiv:2004.13649, section 3.1; 4 pixels of 84x84 there.

    >>> RandomShift(4)
    RandomShift(pixels=4, channels_last=False)
    """

    pixels: int
    channels_last: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.pixels, int) or isinstance(self.pixels, bool):
            raise TypeError(f"pixels: got {self.pixels!r}, expected an int")
        if self.pixels < 1:
            raise ValueError(
                f"pixels: got {self.pixels}, expected 1 or more; without shift= nothing is shifted"
            )
        if not isinstance(self.channels_last, bool):
            raise TypeError(f"channels_last: got {self.channels_last!r}, expected a bool")


def shift_images(sources: ArrayDict, shift: RandomShift, streams: Mapping[str, int]) -> ArrayDict:
    """Return the sources of gathers with the images of some branches shifted.

    Args:
        sources: tree of `RowSource`.
        shift: how images are shifted.
        streams: for each branch the number of its sequence of shifts (`Image.stream`).

    Raises:
        ValueError: there is no image, an image has an unknown layout or dtype, or is too small.
    """
    present = {name: sources[name] for name in streams if name in sources}
    shifted = {
        name: ArrayDict({name: branch}).apply(_shift_leaf, shift, streams[name])[name]
        for name, branch in present.items()
    }
    if all(source.image == NO_IMAGE for _, source in ArrayDict(shifted).walk()):
        axes = "[..., height, width, channels]" if shift.channels_last else "[..., height, width]"
        raise ValueError(
            f"shift: got no image in the branches {list(streams)}, expected a leaf of uint8 {axes}"
        )
    return ArrayDict({**sources, **shifted})


def _shift_leaf(source: RowSource, shift: RandomShift, stream: int) -> RowSource:
    """Return a leaf's source with its frames shifted, if they are images."""
    n_axes = 1 if source.is_first is None else source.is_first.ndim  # of rows and agents
    shape, is_bytes = source.frames.shape[n_axes:], source.dtype == np.uint8
    if not is_bytes and len(shape) >= 3:
        raise ValueError(
            f"shift: got dtype {source.dtype} and shape {shape}, expected images of uint8; a model"
            " scales them itself"
        )
    if not is_bytes or len(shape) < (3 if shift.channels_last else 2):
        return source
    *before, height, width = shape[:-1] if shift.channels_last else shape
    channels = shape[-1] if shift.channels_last else 1
    if shift.channels_last and channels > min(height, width, MOST_PIXEL_NBYTES):
        raise ValueError(
            f"shift: got shape {shape}, expected [height, width, channels] and at most"
            f" {MOST_PIXEL_NBYTES} channels; where they come first, leave channels_last out"
        )
    if not shift.channels_last and before and width < min(height, before[-1]):
        raise ValueError(
            f"shift: got shape {shape}, expected [..., height, width]; where channels come last,"
            " give channels_last=True"
        )
    image = make_image(
        most=shift.pixels,
        height=height,
        width=width,
        pixel_nbytes=channels,
        stream=stream,
        n_images=math.prod(before),
    )
    return replace(source, image=image)
