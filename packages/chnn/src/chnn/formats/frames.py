"""Rotations as the files write them, as 3 x 3 matrices that take coordinates of the inner frame to the outer one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def unit(vector: Sequence[float] | np.ndarray) -> np.ndarray:
    """The vector at length 1; scaled first, since the square of 1e-160 has no digits.

    >>> unit([3e-200, 0.0, 4e-200])
    array([0.6, 0. , 0.8])
    """
    u = np.asarray(vector, dtype=float)
    u = u / np.abs(u).max()
    return u / np.linalg.norm(u)


def about(axis: Sequence[float] | np.ndarray, angle: float) -> np.ndarray:
    """The rotation by ``angle`` (rad) about an axis of any length but 0 (Rodrigues)."""
    u = unit(axis)
    K = np.array([[0.0, -u[2], u[1]], [u[2], 0.0, -u[0]], [-u[1], u[0], 0.0]])  # noqa: N806
    return np.eye(3) + np.sin(angle) * K + (1.0 - np.cos(angle)) * (K @ K)


def from_rpy(rpy: Sequence[float]) -> np.ndarray:
    """URDF's roll, pitch, yaw about the fixed axes: Rz(yaw) Ry(pitch) Rx(roll)."""
    return from_euler(rpy, "XYZ")


def from_euler(angles: Sequence[float], sequence: str) -> np.ndarray:
    """MJCF's Euler angles, rad: a small letter turns about the moving axis, a capital one about the fixed axis."""
    R = np.eye(3)  # noqa: N806
    for letter, angle in zip(sequence, angles, strict=True):
        turn = about(np.eye(3)["xyz".index(letter.lower())], angle)
        R = R @ turn if letter.islower() else turn @ R  # noqa: N806
    return R


def from_quaternion(q: Sequence[float]) -> np.ndarray:
    """The rotation of a quaternion (w, x, y, z) of any length but 0."""
    w, x, y, z = unit(q)
    return np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ])  # fmt: skip


def from_z_axis(axis: Sequence[float] | np.ndarray) -> np.ndarray:
    """The smallest rotation that takes the third axis to the direction of ``axis``."""
    u = unit(axis)
    cross = np.array([-u[1], u[0], 0.0])  # z x u
    sine = np.linalg.norm(cross)
    if sine < 1e-12:
        return np.eye(3) if u[2] > 0 else about((1.0, 0.0, 0.0), np.pi)
    return about(cross, np.arctan2(sine, u[2]))


def from_xy_axes(numbers: Sequence[float]) -> np.ndarray:
    """The frame of an x axis and a vector in its xy half-plane."""
    x, y = unit(numbers[:3]), unit(numbers[3:])
    y = unit(y - (y @ x) * x)
    return np.stack([x, y, np.cross(x, y)], axis=1)
