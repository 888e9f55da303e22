"""What a motion is like: Lyapunov exponents, Poincare sections, and what it conserves."""

from chnn.analysis.conservation import Conservation, conservation
from chnn.analysis.lyapunov import LyapunovExponents, lyapunov
from chnn.analysis.poincare import Crossings, coordinate, poincare

__all__ = ["Conservation", "Crossings", "LyapunovExponents", "conservation", "coordinate", "lyapunov", "poincare"]
