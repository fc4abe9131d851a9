"""Pictures in a bucket, of which one is none: fetched with an account of their own, looked at, and trained on."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import obstore
import pytest
from obstore.store import S3Store
from PIL import Image

from tests.e2e.cluster import NAMESPACE, Cluster
from tests.e2e.jobs import small_job
from tests.support.s3_server import BUCKET, S3Server, s3_server

PICTURES = 60


def fill(server: S3Server) -> None:
    """Two classes, red and blue, of noisy pictures; the first is cut off."""
    store: Any = S3Store(
        BUCKET,
        endpoint=server.endpoint,
        access_key_id="test",
        secret_access_key="test",
        region="us-east-1",
        client_options={"allow_http": True},
    )
    chance = np.random.default_rng(0)
    for number in range(PICTURES):
        label = ("blue", "red")[number % 2]
        pixels = chance.integers(0, 120, (16, 24, 3))
        pixels[..., 2 - 2 * (number % 2)] += 120
        file = BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
        obstore.put(store, f"pictures/{label}/{number:02}.png", file.getvalue()[: 200 if number == 0 else None])


def test_pictures_in_a_bucket_are_fetched_looked_at_and_trained_on(cluster: Cluster) -> None:
    if cluster.name != "embedded":
        pytest.skip("the pods are the same, and so is what they do")
    name = "pictures"
    with s3_server() as server:
        fill(server)
        account = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
        cluster.core.create_namespaced_secret(NAMESPACE, {"metadata": {"name": name}, "stringData": account})
        cluster.claim(name)
        bucket = {"endpoint": server.endpoint, "region": "us-east-1", "secretName": name, "cacheSize": "1MiB"}
        images = {"path": f"s3://{BUCKET}/pictures", "bucket": bucket, "size": 8, "validationFraction": 0.2}
        cluster.create_job(
            small_job(
                name,
                "flax",
                model={"cnn": {"channels": [4], "groups": 4}},
                data={"images": images},
                dataQuality={"badSamples": "skip", "maxBadFraction": 0.05},
                augmentation={
                    "horizontalFlip": {},
                    "randomCrop": {"padding": 1},
                    "normalize": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
                },
                optimizer={"adamw": {"learningRate": 0.02}},
                training={"epochs": 40, "globalBatchSize": 16, "seed": 3},
            )
        )
        status = cluster.wait_phase(name, "Succeeded", seconds=240)
    assert status["data"] == {
        "samples": 60,
        "scanned": 60,
        "bad": 1,
        "duplicates": 0,
        "conflicts": 0,
        "classes": 2,
        "smallestClassShare": 0.4915,
        "largestClassShare": 0.5085,
        "warnings": [
            "1 of 60 samples are bad, the first: blue/00.png is no readable picture: OSError: image file is truncated"
        ],
        "report": "data-quality.json",
    }
    assert status["metrics"]["accuracy"] >= 0.9
    assert len(list(cluster.home.glob(f"**/volumes/*/*/*/{name}/*/data-quality.json"))) == 1
    cluster.delete_job(name)
    cluster.wait_gone(lambda: cluster.pods(name), f"pods of {name}")
