"""Textures of a MuJoCo model, looked up as GL does: smaller copies of each, bilinear, two sizes mixed (trilinear).

It knows no rays: coordinates and the size of a pixel in texels come in, colours in [0, 1] go out.

Source: the OpenGL 2.1 specification, sections 3.8.6 (cube maps) and 3.8.8 (minification).
"""

from typing import Any

import numpy as np

from planet_lib.envs.rays.shapes import Array

_SRGB = 2


class Texture:
    """One texture: an image [Y, X, 3], or the six faces of a cube [6, Y, Y, 3], with its smaller copies.

    Args:
        faces: colours uint8 [F, Y, X, 3] with F 1 (an image, repeated) or 6 (a cube, clamped at its edges).
    """

    def __init__(self, faces: Array) -> None:
        self.is_cube = len(faces) == 6
        self.height, self.width = faces.shape[1:3]
        levels = [faces]
        while max(levels[-1].shape[1:3]) > 1:
            levels.append(_halve(levels[-1]))
        self._heights = np.array([level.shape[1] for level in levels])
        self._widths = np.array([level.shape[2] for level in levels])
        sizes = len(faces) * self._heights * self._widths
        self._starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        self._texels = np.concatenate([level.reshape(-1, 3) for level in levels])

    def image(self, s: Array, t: Array, texels: Array) -> Array:
        """Return the colours [N, 3] at coordinates s, t [N] (1 is the whole image) of pixels `texels` [N] wide."""
        return self._trilinear(np.zeros(len(s), np.intp), s, t, texels)

    def cube(self, direction: Array, texels: Array) -> Array:
        """Return the colours [N, 3] that a cube map shows in `direction` [N, 3] for pixels `texels` [N] wide."""
        axis = np.abs(direction).argmax(axis=1)
        rows = np.arange(len(direction))
        major = direction[rows, axis]
        x, y, z = direction.T
        negative = major < 0
        across = np.choose(axis, [np.where(negative, z, -z), x, np.where(negative, -x, x)])
        down = np.choose(axis, [-y, np.where(negative, -z, z), -y])
        size = 2 * np.maximum(np.abs(major), 1e-12)
        return self._trilinear(2 * axis + negative, across / size + 0.5, down / size + 0.5, texels)

    def _trilinear(self, face: Array, s: Array, t: Array, texels: Array) -> Array:
        level = np.clip(np.log2(np.maximum(texels, 1e-6)), 0, len(self._starts) - 1)
        coarse = np.floor(level).astype(np.intp)
        weight = (level - coarse)[:, None].astype(np.float32)
        colours = self._bilinear(face, s, t, coarse)
        if weight.any():
            finer = np.minimum(coarse + 1, len(self._starts) - 1)
            colours = colours + weight * (self._bilinear(face, s, t, finer) - colours)
        return colours

    def _bilinear(self, face: Array, s: Array, t: Array, level: Array) -> Array:
        height, width = self._heights[level], self._widths[level]
        x, y = s * width - 0.5, t * height - 0.5
        left, top = np.floor(x).astype(np.intp), np.floor(y).astype(np.intp)
        right_part, low_part = ((x - left)[:, None].astype(np.float32), (y - top)[:, None].astype(np.float32))
        if self.is_cube:
            columns = [np.clip(left + step, 0, width - 1) for step in (0, 1)]
            rows = [np.clip(top + step, 0, height - 1) for step in (0, 1)]
        else:
            columns, rows = [(left + step) % width for step in (0, 1)], [(top + step) % height for step in (0, 1)]
        start = self._starts[level] + face * height * width
        upper, lower = (
            self._texels[start + row * width + columns[0]] * (1 - right_part)
            + self._texels[start + row * width + columns[1]] * right_part
            for row in rows
        )
        colours: Array = (upper + low_part * (lower - upper)) / np.float32(255)
        return colours


def read_texture(model: Any, index: int) -> Texture | None:
    """Return texture `index` of an MjModel, or None where it holds no colours."""
    width, height = int(model.tex_width[index]), int(model.tex_height[index])
    channels = int(model.tex_nchannel[index])
    if channels not in (3, 4):
        return None
    start = int(model.tex_adr[index])
    data = model.tex_data[start : start + width * height * channels].reshape(height, width, channels)
    colours = data[..., :3]
    if int(model.tex_colorspace[index]) == _SRGB:
        levels = np.arange(256) / 255
        linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
        colours = np.rint(linear * 255).astype(np.uint8)[colours]
    if int(model.tex_type[index]) == 0:
        return Texture(colours[None])
    faces = colours.reshape(6, width, width, 3) if height == 6 * width else np.stack([colours] * 6)
    return Texture(faces)


def _halve(faces: Array) -> Array:
    """Return faces uint8 [F, Y, X, 3] at half the size (rounded down), each pixel the mean of the area it covers."""
    smaller: Array = faces.astype(np.float32)
    for axis in (1, 2):
        pixels: Array = np.moveaxis(smaller, axis, 0)
        half = len(pixels) // 2
        if half:
            first, second = pixels[0 : 2 * half : 2], pixels[1 : 2 * half : 2]
            if len(pixels) % 2:
                # A new pixel covers 2 + 1/half old ones: a part of the first and third, and all of the second.
                part = (np.arange(half, dtype=np.float32) / half)[:, None, None, None]
                third = pixels[2::2]
                pixels = ((1 - part) * first + second + (part + 1 / half) * third) * (half / (2 * half + 1))
            else:
                pixels = (first + second) / 2
        smaller = np.moveaxis(pixels, 0, axis)
    rounded: Array = np.rint(smaller).astype(np.uint8)
    return rounded
