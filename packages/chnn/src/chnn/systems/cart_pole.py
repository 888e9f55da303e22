"""A pole hinged on a cart that slides on a rail, for control."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from lie.run import UserError
from torch import Tensor

from chnn.mechanics import GRAVITY, Assembly, rod
from chnn.mechanics.bodies import number
from chnn.systems.base import External, System, check_count, infinite_to_nan


class CartPole(System):
    """A uniform pole hinged on a cart on the line y = 0, in the plane.

    Three points: the cart, the pole's centre, the tip of the pole's axis.

    Args:
        cart_mass, pole_mass: kg.
        pole_length: full length, m.
        damping: friction of the cart on its rail, N s/m.

    Initial states: cart and rates 0.1 N, the pole 0.2 N from upright. Control enters as `control(u)`.
    """

    name = "cart-pole"
    dt, horizon = 0.02, 5.0

    def __init__(
        self, cart_mass: float = 1.0, pole_mass: float = 0.1, pole_length: float = 1.0, damping: float = 0.0
    ) -> None:
        pole_length, damping = number(pole_length, "pole_length"), number(damping, "damping")
        cart_mass, pole_mass = number(cart_mass, "cart_mass"), number(pole_mass, "pole_mass")
        if not 0.0 < pole_length < float("inf"):
            raise UserError(f"expected a positive finite pole_length, got {pole_length}")
        self.pole_length, self.damping = pole_length, damping
        half = 0.5 * self.pole_length
        world = Assembly(2)
        cart = world.point("cart", cart_mass)
        pole = world.body("pole", 1, rod(pole_mass, self.pole_length), position=(0.0, -half), axes=[[0.0, -1.0]])
        world.on_line(cart, (0.0, 0.0), (1.0, 0.0))
        world.ball_joint(cart, pole.at(-half))
        world.draw_rod(cart, pole.at(half))
        world.gravity()
        if damping:
            world.damping(damping, cart)
        super().__init__(world.build(self.name, check=False))

    @property
    def num_angles(self) -> int:
        """The cart's place and the pole's angle."""
        return 2

    @property
    def length_coordinates(self) -> tuple[int, ...]:
        """Which of them are lengths, m."""
        return (0,)

    def control(self, push: Callable[[Tensor, Tensor, Tensor], Tensor]) -> External:
        """A horizontal push on the cart, (t, x, v) -> newtons (...), as an external force for `simulate`."""

        def external(t: Tensor, x: Tensor, v: Tensor) -> Tensor:
            u = push(t, x, v)
            along = torch.zeros(3, 2, dtype=x.dtype, device=x.device)
            along[0, 0] = 1.0
            return u.reshape(*u.shape, 1, 1) * along if u.ndim == x.ndim - 2 else u.reshape(-1, 1, 1) * along

        return external

    def to_angles(self, z: Float[Tensor, "*batch 2 3 2"]) -> Float[Tensor, "*batch 2 2"]:
        """The cart's place (m) and the pole's angle from hanging, in (-pi, pi], and their rates."""
        x, v = map(infinite_to_nan, self._split(z))
        axis, rate = x[..., 2, :] - x[..., 1, :], v[..., 2, :] - v[..., 1, :]
        angle = torch.atan2(axis[..., 0], -axis[..., 1])
        turning = (axis[..., 0] * rate[..., 1] - axis[..., 1] * rate[..., 0]) / axis.square().sum(-1)
        return torch.stack([torch.stack([x[..., 0, 0], angle], -1), torch.stack([v[..., 0, 0], turning], -1)], dim=-2)

    def from_angles(self, angles: Float[Tensor, "*batch 2 2"]) -> Float[Tensor, "*batch 2 3 2"]:
        """The inverse of `to_angles`."""
        (place, theta), (speed, omega) = angles[..., 0, :].unbind(-1), angles[..., 1, :].unbind(-1)
        zero = torch.zeros_like(place)
        cart = torch.stack([torch.stack([place, zero], -1), torch.stack([speed, zero], -1)], dim=-2)
        unit = torch.stack([theta.sin(), -theta.cos()], -1)
        turn = torch.stack([theta.cos() * omega, theta.sin() * omega], -1)
        axis = torch.stack([unit, turn], dim=-2)
        centre = cart + 0.5 * self.pole_length * axis
        return torch.stack([cart, centre, centre + axis], dim=-2)

    def rest(self) -> Float[Tensor, "2 3 2"]:
        """The pole hanging, the cart at the origin."""
        return self.from_angles(torch.zeros(2, 2, dtype=torch.float64))

    def sample(self, num: int, *, generator: torch.Generator | None = None) -> Float[Tensor, "num 2 3 2"]:
        """Random initial states on the constraints, float64."""
        check_count(num)
        angles = 0.1 * torch.randn(num, 2, 2, generator=generator, dtype=torch.float64)
        angles[:, 0, 1] = torch.pi + 2.0 * angles[:, 0, 1]
        return self.project(self.from_angles(angles))

    def parameters(self) -> dict[str, Any]:
        """Masses, length, damping, gravity."""
        cart, pole = self.masses.tolist()
        return {"cart_mass": cart, "pole_mass": pole, "pole_length": self.pole_length, "damping": self.damping,
                "gravity": GRAVITY}  # fmt: skip
