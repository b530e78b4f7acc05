"""Light on surfaces, as OpenGL's fixed-function pipeline reckons it.

A light adds ambient + diffuse max(n.l, 0) + specular (n.h)^e where n.l > 0, times its spot and its fading with
distance; n is the normal, l points to the light, h halfway between l and the eye, e is 128 times the shininess. The
sum of a pass is cut off at 1, then multiplied with the texture.

It knows no rays: points, normals and materials come in.

Source: the OpenGL 2.1 specification, section 2.14.1, with a local viewer and one-sided lighting.
"""

from typing import NamedTuple

import numpy as np

from planet_lib.envs.rays.scene import Light
from planet_lib.envs.rays.shapes import Array


class Surface(NamedTuple):
    """N points of surfaces."""

    point: Array  # [N, 3]
    normal: Array  # [N, 3]
    to_eye: Array  # [N, 3] unit
    rgb: Array  # [N, 3]
    finish: Array  # [N, 4]: emission, specular, shininess, reflectance


def shine(light: Light, surface: Surface) -> Array:
    """Return what one light adds to each point, [N, 3], not cut off."""
    if light.directional:
        towards = np.broadcast_to(-light.dir, surface.point.shape)
        strength = np.ones(len(surface.point))
    else:
        towards = light.pos - surface.point
        distance = np.maximum(np.sqrt(np.einsum("ni,ni->n", towards, towards)), 1e-12)
        towards = towards / distance[:, None]
        constant, linear, quadratic = light.attenuation
        strength = 1 / np.maximum(constant + distance * (linear + distance * quadratic), 1e-12)
        if light.cutoff <= 90:
            cosine = towards @ -light.dir
            inside = cosine >= np.cos(np.radians(light.cutoff))
            strength = strength * np.where(inside, np.maximum(cosine, 0.0) ** light.exponent, 0.0)
    facing = np.einsum("ni,ni->n", surface.normal, towards)
    half = towards + surface.to_eye
    length = np.maximum(np.sqrt(np.einsum("ni,ni->n", half, half)), 1e-12)
    gloss = np.maximum(np.einsum("ni,ni->n", surface.normal, half) / length, 0.0) ** (128 * surface.finish[:, 2])
    gloss = np.where(facing > 0, gloss, 0.0) * surface.finish[:, 1]
    dull = light.ambient + np.maximum(facing, 0.0)[:, None] * light.diffuse
    added: Array = strength[:, None] * (surface.rgb * dull + gloss[:, None] * light.specular)
    return added


def lit(lights: list[Light], surface: Surface, *, is_base: bool) -> Array:
    """Return the colours [N, 3] of one pass, in [0, 1].

    Args:
        lights: those that shine in this pass.
        surface: what they shine on.
        is_base: whether the surface's own emission belongs to this pass.
    """
    total = surface.rgb * surface.finish[:, :1] if is_base else np.zeros_like(surface.rgb)
    for light in lights:
        total = total + shine(light, surface)
    bounded: Array = np.minimum(total, 1.0)
    return bounded


def in_shadow_map(light: Light, points: Array, *, clip: float, scale: float) -> Array:
    """Tell which points [N, 3] MuJoCo's shadow map covers; outside it nothing is in shadow.

    Args:
        light: one that casts shadows.
        points: where.
        clip: half width of a directional light's square.
        scale: part of a spot's cutoff angle that its square reaches.
    """
    up = np.cross(light.dir, [-1.0, 0.0, 0.0])
    if up @ up <= 0.01:
        up = np.cross(light.dir, [0.0, 1.0, 0.0])
    side = np.cross(light.dir, up)
    up, side = (axis / max(np.sqrt(axis @ axis), 1e-12) for axis in (up, side))
    away = points - light.pos
    depth = away @ light.dir
    reach = clip if light.directional else depth * np.tan(np.radians(min(light.cutoff * scale, 80.0)))
    covered: Array = (depth > 0) & (np.abs(away @ up) <= reach) & (np.abs(away @ side) <= reach)
    return covered
