"""Whatever a JSON file holds, it is read whole or refused with its path, the place, the rule and the next move."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipu_trainer.config.profiles import load_profile
from ipu_trainer.errors import MissingFileError, UserError
from ipu_trainer.json_files import parse_json, read_json

SHAPE = {"name": str, "size?": int, "rates": {str: (float, None)}, "rows?": [{"on": bool}]}


@pytest.mark.parametrize(
    "content, place",
    [
        (b"", "line 1 column 1"),
        (b'{"name": "a", ', "line 1 column"),
        ('{"name": "é"}'.encode("latin-1"), "byte 10 is not UTF-8"),
        ("{}".encode("utf-16"), "byte 0 is not UTF-8"),
        (b"[" * 100_000, "too deeply nested"),
        (b'{"size": ' + b"9" * 5_000 + b"}", "a number of 5,000 digits"),
        (b'{"size": 1e999}', "1e999 is too large"),
        (b'{"size": NaN}', "NaN, which is no JSON"),
        (b'{"name": "a", "name": "b"}', "'name' twice"),
        (b'{"name": "\\ud800"}', "surrogates"),
        (b"null", "its content is null, not an object"),
        (b'{"rates": {}}', "name is missing"),
        (b'{"name": null, "rates": {}}', "name is null, not a text"),
        (b'{"name": "a", "size": true, "rates": {}}', "size is true, not a whole number"),
        (b'{"name": "a", "rates": {"x": "y"}}', 'rates.x is "y", not a number or null'),
        (b'{"name": "a", "rates": {}, "rows": [{"on": true}, {"on": 1}]}', "rows[1].on is 1, not true or false"),
    ],
)
def test_a_damaged_file_is_one_line_with_path_place_and_next_move(tmp_path, content, place):
    file = tmp_path / "values.json"
    file.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_json(file, SHAPE, "Write it again.")
    text = str(error.value)
    assert text.startswith(str(file)) and place in text and text.endswith("Write it again.") and "\n" not in text


def test_a_missing_file_is_missing_and_a_pipe_is_not_waited_for(tmp_path):
    with pytest.raises(MissingFileError, match="values.json does not exist"):
        read_json(tmp_path / "values.json")
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(UserError, match="pipe.json is not a file"):
        read_json(tmp_path / "pipe.json")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=5), part, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(st.one_of(st.binary(), st.text(), json_values.map(repr)))
def test_any_bytes_give_a_value_or_a_user_error(content):
    try:
        parse_json(content, "F", SHAPE)
    except UserError as error:
        assert str(error).startswith("F")


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"config": null}', "config is null, not an object"),
        ('{"config": {}, "about": []}', "about is [], not an object"),
        ('{"config": {}, "about": {"micro_batch": "8"}}', 'about.micro_batch is "8"'),
        ('{"replication_factor": 0}', "replication_factor"),
    ],
)
def test_a_profile_of_wrong_values_names_its_file(tmp_path, content, message):
    file = tmp_path / "ipu_config.json"
    file.write_text(content)
    for source in (file, tmp_path):
        with pytest.raises(UserError) as error:
            load_profile(str(source))
        assert str(file) in str(error.value) and message in str(error.value)
