"""`rectrain run` and `rectrain evaluate` as a user starts them: new interpreters, raw data, killed processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from mlflow import MlflowClient

SECONDS = 240
SECRET = "hunter2"
# Nothing listens on the discard port, so the password in the address has every chance to be shown.
UNREACHABLE = {**os.environ, "MLFLOW_TRACKING_URI": f"http://someone:{SECRET}@127.0.0.1:9"}


def write_interactions(file: Path, seed: int) -> None:
    """Users who like items near a place of their own, ten each."""
    rng = np.random.default_rng(seed)
    lines = [f"{user} {' '.join(map(str, (user * 7 + rng.permutation(20)[:10]) % 60))}\n" for user in range(80)]
    file.write_text("".join(lines))


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    write_interactions(folder / "train.txt", 0)
    write_interactions(folder / "test.txt", 1)
    feature = {"kind": "Categorical"}
    spec = {
        "model": {"type": "TwoTower", "twoTower": {"embeddingDim": 8}},
        "features": [
            {"name": "user_id", "side": "User", "cardinality": 80} | feature,
            {"name": "item_id", "side": "Item", "cardinality": 60} | feature,
        ],
        "data": {
            "source": {"format": "Interactions", "uri": "train.txt", "validationUri": "test.txt"},
            "train": {"uri": "shards/train"},
            "validation": {"uri": "shards/validation"},
        },
        "training": {"batchSize": 16, "epochs": 4, "logEverySteps": 1, "checkpoint": {"everySteps": 10}},
        "workers": {"replicas": 2},
    }
    content = {"apiVersion": "rectrain.io/v1alpha1", "kind": "RecTrainingJob", "metadata": {"name": "small"}}
    (folder / "job.yaml").write_text(yaml.safe_dump(content | {"spec": spec}))
    return folder / "job.yaml"


def rectrain(*arguments, **options) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(Path(sys.executable).with_name("rectrain")), *map(str, arguments)],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def succeed(*arguments, **options) -> str:
    process = rectrain(*arguments, **options)
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, err
    assert SECRET not in out + err
    return out + err


def workers_of(output: Path) -> list[int]:
    """Ids of the processes that train into this folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if "rectrain_jobs.training" in words and str(output) in words:
            found.append(int(process.name))
    return found


def wait_until(condition) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def test_a_killed_run_leaves_no_process_and_continues_to_the_same_result(job, tmp_path):
    whole = tmp_path / "whole"
    printed = succeed("run", job, "--output", whole, env=UNREACHABLE)
    assert "recall@20" in printed and "points are kept" in printed

    cut = tmp_path / "cut"
    process = rectrain("run", job, "--output", cut, env=UNREACHABLE)
    try:
        wait_until(lambda: any(cut.glob("checkpoints/*/complete.json")))
        assert len(workers_of(cut)) == 2
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=SECONDS)
    wait_until(lambda: not workers_of(cut))
    assert not (cut / "metrics.json").exists()
    printed = succeed("run", job, "--output", cut, env=UNREACHABLE)
    assert "continuing from the checkpoint of step" in printed

    metrics = [json.loads((output / "metrics.json").read_text()) for output in (whole, cut)]
    assert metrics[0] == metrics[1] and 0 < metrics[0]["recall@20"] < 1
    points = [(output / "points.jsonl").read_text().splitlines() for output in (whole, cut)]
    losses = [[json.loads(line).get("loss") for line in lines] for lines in points]
    assert losses[0] == losses[1]
    for file in cut.rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes()

    evaluated = json.loads(succeed("evaluate", job, "--bundle", cut / "bundle", "--json").splitlines()[-1])
    assert evaluated == pytest.approx(metrics[0], abs=1e-6)


def test_a_run_without_any_service_says_what_it_did_and_where_that_is_recorded(job, tmp_path):
    printed = succeed("run", job, "--output", tmp_path / "run", "--set", "training.maxSteps=5")
    database = f"sqlite:///{tmp_path}/mlflow.db"
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    assert "Sharding plan for 2 cpu ranks" in lines
    assert f"MLflow UI mlflow ui --backend-store-uri {database}" in lines
    assert f"Bundle {tmp_path}/run/bundle" in lines
    (run_id,) = (line.removeprefix("MLflow run ") for line in lines if line.startswith("MLflow run "))
    client = MlflowClient(database)
    assert client.get_run(run_id).info.status == "FINISHED"
    recorded = Path(client.download_artifacts(run_id, "plan.json", str(tmp_path))).read_bytes()
    assert recorded == (tmp_path / "run" / "plan.json").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--bundle", "nowhere"), "nowhere: is no model bundle: it has no bundle.json"),
        (("--bundle", "nowhere", "--set", "model.twoTower.embeddingDim=zero"), "spec.model.twoTower.embeddingDim"),
    ],
)
def test_evaluate_refuses_in_one_line(job, arguments, message):
    process = rectrain("evaluate", job, *arguments, cwd=job.parent)
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 2 and not out
    assert err.count("\n") == 1 and err.startswith("error: ") and message in err


INTERESTS = {
    "MIND": {"type": "MIND", "mind": {"embeddingDim": 16, "interests": 2, "negatives": {"count": 20}}},
    "TwoTower": {"type": "TwoTower", "twoTower": {"embeddingDim": 16, "hiddenDims": [], "temperature": 0.1}},
}


@pytest.mark.parametrize("model", INTERESTS)
def test_a_model_of_histories_learns_from_comirec_s_files_and_finds_items_for_new_users(model, tmp_path):
    rng = np.random.default_rng(0)
    liked = [rng.permutation(10)[:8] + 10 * rng.integers(6) + 1 for _ in range(240)]  # ids from 1, as 0 is its padding
    lines = [f"{user},{item},{time}\n" for user, items in enumerate(liked[:200]) for time, item in enumerate(items)]
    (tmp_path / "train.txt").write_text("".join(lines))
    with (tmp_path / "valid.txt").open("w") as file:
        for user, items in enumerate(liked[200:], 200):
            known, later = (" ".join(f"{key}:{item}" for item in part) for key, part in split(items))
            file.write(f"user_id:{user} {known} {later}\n")
    spec = {
        "model": INTERESTS[model],
        "features": [
            {"name": "user_id", "kind": "Categorical", "side": "None", "cardinality": 240},
            {"name": "item_id", "kind": "Categorical", "side": "Item", "cardinality": 61},
            {"name": "history", "kind": "Sequence", "side": "User", "of": "item_id", "maxLength": 8},
        ],
        "data": {
            "source": {"format": "ComiRec", "uri": "train.txt", "validationUri": "valid.txt"},
            "train": {"uri": "shards/train"},
            "validation": {"uri": "shards/validation"},
        },
        "training": {
            "batchSize": 64,
            "epochs": 6,
            "optimizers": {"embedding": {"type": "RowWiseAdagrad", "learningRate": 0.1}},
        },
        "evaluation": {"metrics": ["recall_comirec@10", "ndcg_comirec@10", "hit_rate@10"], "maskTrainItems": False},
        "tracking": {"mlflow": {"enabled": False}},
    }
    content = {"apiVersion": "rectrain.io/v1alpha1", "kind": "RecTrainingJob", "metadata": {"name": "small"}}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(content | {"spec": spec}))
    succeed("run", tmp_path / "job.yaml", "--output", tmp_path / "out")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["recall_comirec@10"] > 0.6, f"chance finds 10 of 60: {metrics}"


def split(items):
    return ("hist_item", items[:5]), ("eval_item", items[5:])
