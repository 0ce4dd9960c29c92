"""The kinds of operator fixtures, one file per paper."""

from tests.families import acnet, hetconv, icconv, octconv, pac, psconv, pyconv, res2net, sis

FAMILIES = {
    name: family
    for module in (acnet, hetconv, icconv, octconv, pac, psconv, pyconv, res2net, sis)
    for name, family in module.FAMILIES.items()
}
