"""A 25-point star stencil to compile: one step of the acoustic wave equation, in plain jax.numpy."""

import jax

RADIUS = 4
# Second derivative to 8th order on a uniform grid, by distance: the central differences of every textbook.
DERIVATIVE = (-205 / 72, 8 / 5, -1 / 5, 8 / 315, -1 / 560)


def wave_step(u: jax.Array, before: jax.Array, courant: float = 0.1) -> jax.Array:
    """u [X, Y, Z] one time step on, given u and the step before it; the outer `RADIUS` cells of each side stay as they
    are in `before`. courant: (speed * dt / dx) squared.

    >>> import jax.numpy as jnp
    >>> flat = jnp.ones((9, 9, 9))
    >>> bool(jnp.allclose(wave_step(flat, flat), flat, atol=1e-5))      # nothing moves where nothing is bent
    True
    """
    inner = tuple(slice(RADIUS, n - RADIUS) for n in u.shape)
    total = 3 * DERIVATIVE[0] * u[inner]
    for axis in range(u.ndim):
        for distance in range(1, RADIUS + 1):
            for shift in (-distance, distance):
                total = total + DERIVATIVE[distance] * u[_shifted(inner, axis, shift)]
    return before.at[inner].set(2 * u[inner] - before[inner] + courant * total)


def _shifted(inner: tuple[slice, ...], axis: int, by: int) -> tuple[slice, ...]:
    moved = slice(inner[axis].start + by, inner[axis].stop + by)
    return (*inner[:axis], moved, *inner[axis + 1 :])
