"""Curves of activation functions, as pictures inside a page that take its colours."""

from __future__ import annotations

import numpy as np

import lamella as lm

WIDTH, HEIGHT, REACH = 260, 160, 4.0  # x runs from -REACH to REACH


def curve(function: lm.ActivationFunction, name: str) -> str:
    """The curve of an elementwise function, and of its slope, dashed; nothing for others."""
    xp = lm.backends.get_backend("numpy").xp
    x = np.linspace(-REACH, REACH, 161)
    y = np.asarray(function.forward(xp, x))
    if not np.allclose(np.asarray(function.forward(xp, x[:80])), y[:80]):
        return ""  # along an axis
    slope = np.asarray(function.backward(xp, x if function.uses_x else None, y, np.ones_like(x)))
    low, high = min(-0.5, y.min(), slope.min()), max(1.2, min(REACH, y.max()), slope.max())

    def path(values: np.ndarray, kind: str) -> str:
        seen = (values >= low) & (values <= high)
        across = (x[seen] + REACH) / (2 * REACH) * WIDTH
        down = (high - values[seen]) / (high - low) * HEIGHT
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(across, down, strict=True))
        return f'<polyline class="{kind}" points="{points}"/>'

    zero = high / (high - low) * HEIGHT
    axes = f'<path class="axes" d="M0 {zero:.1f}H{WIDTH}M{WIDTH / 2} 0V{HEIGHT}"/>'
    words = f"{name} from -{REACH:g} to {REACH:g}, and its slope, dashed"
    return (
        f'<figure class="curve"><svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img" '
        f'aria-label="{words}"><title>{words}</title>{axes}{path(slope, "slope")}{path(y, "value")}</svg></figure>'
    )
