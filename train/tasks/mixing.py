"""Mixup and CutMix: a batch whose images and targets are mixtures of two.

* Mixup, Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018: the sum of two images, weighted;
* CutMix, Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features",
  ICCV 2019: an image with a box of the other.

In both, the targets are mixed with the same shares as the images. Rows 0 and 1, 2 and 3, and so on are mixed with each
other. Batches are shuffled, so this is as good as a random pairing. It does not depend on the number of devices, and if
every device holds an even number of rows, no image leaves its device.
"""

import jax
import jax.numpy as jnp


def mix(
    images: jax.Array, targets: jax.Array, key: jax.Array, mixup_alpha: float, cutmix_alpha: float, probability: float
) -> tuple[jax.Array, jax.Array]:
    """Mixes the images of a batch with one random share; a pure function.

    Args:
        images: (n, height, width, channels) floating point, n even.
        targets: (n, classes), the probabilities of the classes.
        key: the random key.
        mixup_alpha: Mixup's share is drawn from Beta(alpha, alpha); 0 turns Mixup off.
        cutmix_alpha: likewise for CutMix. If both are on, each has the probability 1/2, as in timm.
        probability: the probability that the batch is mixed.

    Returns:
        Images and targets of the same shapes and dtypes.
    """
    for_whether, for_which, for_share, for_box = jax.random.split(key, 4)
    cuts = jax.random.bernoulli(for_which, 0.5) if mixup_alpha and cutmix_alpha else jnp.asarray(bool(cutmix_alpha))
    # If one alpha is 0, the other method is always drawn.
    alpha = jnp.where(cuts, cutmix_alpha or mixup_alpha, mixup_alpha or cutmix_alpha)
    share = jax.random.beta(for_share, alpha, alpha)
    height, width = images.shape[1:3]
    outside = outside_box(for_box, share, height, width)
    share = jnp.where(cuts, outside.mean(), share)
    weights = jnp.where(cuts, outside, share)
    is_mixed = jax.random.bernoulli(for_whether, probability)
    weights, share = jnp.where(is_mixed, weights, 1.0), jnp.where(is_mixed, share, 1.0)
    weights = weights[None, :, :, None].astype(images.dtype)
    mixed = weights * images + (1 - weights) * neighbours(images)
    return mixed, share * targets + (1 - share) * neighbours(targets)


def outside_box(key: jax.Array, share: jax.Array, height: int, width: int) -> jax.Array:
    """Draws CutMix's box, whose area is 1 - `share` of the image before it is clipped at the border.

    It has the proportions of the image, with sides rounded down to even numbers of pixels, and its centre is uniform in
    the image.

    Returns:
        (height, width) float32: 1 outside of the box and 0 in it. Its mean is the exact share of the image.
    """
    for_row, for_column = jax.random.split(key)

    def is_within(key: jax.Array, size: int) -> jax.Array:
        half = jnp.floor(size * jnp.sqrt(1 - share)).astype(jnp.int32) // 2
        centre, place = jax.random.randint(key, (), 0, size), jnp.arange(size)
        return (centre - half <= place) & (place < centre + half)

    inside = is_within(for_row, height)[:, None] & is_within(for_column, width)[None]
    return 1.0 - inside.astype(jnp.float32)


def neighbours(rows: jax.Array) -> jax.Array:
    """Exchanges rows 0 and 1, 2 and 3, and so on."""
    pairs = rows.reshape(len(rows) // 2, 2, *rows.shape[1:])
    return pairs[:, ::-1].reshape(rows.shape)
