"""How a convolution with a kernel lattice is computed.

In reading order: ``plan`` (plans as data), ``cost`` (their predicted cost), ``choose`` (the cheapest plan), ``execute``
(the operations of a plan), with ``channels`` and ``xla`` as its tools; ``backend`` (whose costs count) and ``explain``
(the plans in words).
"""
