"""Studies: programs that train several networks and compare them, and the count of what a training costs.

``edo`` searches dilations, ``compare`` compares networks by the scale of the objects, ``cost`` counts. They build on
``train``, whose modules ``train.edo``, ``train.compare`` and ``train.cost`` start them.
"""
