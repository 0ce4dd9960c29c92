"""Studies: programs that compare trained networks, search dilations, or estimate the cost of a training.

``edo`` searches dilations, ``compare`` compares networks by the scale of the objects, ``cost`` counts operations. They
build on ``train``, whose modules ``train.edo``, ``train.compare`` and ``train.cost`` start them.
"""
