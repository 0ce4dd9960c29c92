from msconv_jax import GroupedConv
from tests.operators.rows import SPATIAL, Row

ROWS = [
    Row(
        GroupedConv,
        {**SPATIAL, "feature_group_count": 4, "use_bias": False},
        settings=[{}, {"feature_group_count": 4}, {"feature_group_count": 8}],
        plain={},
    )
]
