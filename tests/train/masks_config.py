from ml_collections import ConfigDict


def get_config():
    return ConfigDict(
        {
            "data": {"source": "masks", "augment": {"random_scale": {}, "random_rotation": {}, "blur": {}, "flip": {}}},
            "model": {"name": "tiny_segmenter_for_tests"},
            "task": {"name": "segmentation", "crop": (12, 16), "auxiliary_weight": 0.4, "scales": (1.0, 1.25)},
            "optimizer": {"learning_rate": 0.1, "schedule": "poly", "weight_decay": 1e-4},
            "epochs": 2,
            "batch_size": 8,
            "checkpoint_every": 1,
        }
    )
