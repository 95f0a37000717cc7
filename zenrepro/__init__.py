"""zenrepro: a technical report that measures itself and audits what it claims.

Frameworks (torch, jax, mlx, triton) are imported only where they are used and only when used.
"""

__version__ = "0.1.0"
