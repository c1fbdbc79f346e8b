import pytest
from hypothesis import given
from hypothesis import strategies as st

from rectrain.api.job import ObjectMeta, RecTrainingJob
from rectrain.api.models import Negatives
from rectrain.api.paths import format_path, model_at, parse_path
from rectrain.api.quantities import format_bytes, parse_bytes
from rectrain.api.training import TableConstraint


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("1000000", 10**6),
        ("1k", 1000),
        ("1Ki", 1024),
        ("512Mi", 512 * 2**20),
        ("80Gi", 80 * 2**30),
        ("1.5G", 1_500_000_000),
        ("2Ti", 2 * 2**40),
        ("3P", 3 * 10**15),
        ("0.5Pi", 2**49),
    ],
)
def test_quantity_is_read(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "Gi", "1 Gi", "-1", "1gi", "1K", "1Gib", "1.", ".5Gi", "1e3", "1,5G"])
def test_text_that_is_no_quantity(text: str) -> None:
    with pytest.raises(ValueError, match="must be a number of bytes such as 512Mi, 80Gi or 1000000, not "):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1.5 * 2**30, "1.5 GiB"),
        (5000 * 2**40, "5000.0 TiB"),
        (-2048, "-2.0 KiB"),
    ],
)
def test_bytes_for_people(count: float, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a", ["a"]),
        ("training.maxSteps", ["training", "maxSteps"]),
        ("features[user_id].name", ["features", "user_id", "name"]),
        ("features[0][1]", ["features", "0", "1"]),
        ("labels[rectrain.io/team]", ["labels", "rectrain.io/team"]),
    ],
)
def test_path_is_read(text: str, parts: list[str]) -> None:
    assert parse_path(text) == parts


@given(st.lists(st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,5}", fullmatch=True) | st.integers(0, 99), min_size=1))
def test_path_is_read_as_it_was_written(parts: list[str | int]) -> None:
    if isinstance(parts[0], int):
        parts.insert(0, "root")
    assert parse_path(format_path(tuple(parts))) == [str(part) for part in parts]


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ((), RecTrainingJob),
        (("metadata",), ObjectMeta),
        (("spec", "model", "twoTower", "negatives"), Negatives),
        (("spec", "model", "two_tower", "negatives"), Negatives),
        (("spec", "sharding", "constraints", 3), TableConstraint),
        (("spec", "nothing"), None),
        (("spec", "data", "train", "uri"), None),
    ],
)
def test_type_at_a_path(path: tuple[str | int, ...], model: type | None) -> None:
    assert model_at(RecTrainingJob, path) is model
