"""Puts the training programs into the wheel as `msconv_jax._programs`; pyproject.toml says all else."""

from setuptools import find_namespace_packages, setup

# They stay at the top of the repository, and no module of these names comes into site-packages.
PROGRAMS = ("train", "studies", "configs")


def packages(*names: str) -> list[str]:
    """Finds packages at the top of the repository and all that is in them."""
    return find_namespace_packages(
        include=[pattern for name in names for pattern in (name, f"{name}.*")], exclude=["*.__pycache__"]
    )


setup(
    packages=[*packages("msconv_jax"), *(f"msconv_jax._programs.{name}" for name in packages(*PROGRAMS))],
    package_dir={f"msconv_jax._programs.{name}": name for name in PROGRAMS},
)
