"""How a convolution with a kernel lattice is computed: plans, their cost, the choice, the execution."""
