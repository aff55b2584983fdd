"""Texts: read from folders, each once, split by group, the same on every machine."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipu_trainer.tasks.text.documents import (
    Document,
    drawn,
    installed_python,
    limited,
    read_folder,
    split_by_group,
    unique,
)

documents = st.lists(
    st.builds(Document, st.sampled_from("abcdef"), st.text("xyz", min_size=1, max_size=4), st.text(max_size=40)),
    min_size=2,
    max_size=30,
)


@given(documents, st.floats(0.05, 0.5), st.integers(0, 5))
def test_no_group_is_in_training_and_validation(texts, fraction, seed):
    if len({document.group for document in texts}) < 2:
        with pytest.raises(ValueError, match="validation needs one"):
            split_by_group(texts, fraction, seed)
        return
    train, validation = split_by_group(texts, fraction, seed)
    assert validation and len(train) + len(validation) == len(texts)
    assert not {document.group for document in train} & {document.group for document in validation}
    assert split_by_group(list(reversed(texts)), fraction, seed)[1] == list(reversed(validation))


def test_a_text_counts_once_whatever_its_blank_lines():
    texts = [
        Document("a", "1", "x = 1\n\n\ny = 2\n"),
        Document("b", "2", "x = 1  \ny = 2"),
        Document("b", "3", "x = 2"),
    ]
    assert [document.name for document in unique(texts)] == ["1", "3"]


@given(documents, st.integers(1, 60))
def test_the_limit_is_kept_and_the_choice_does_not_depend_on_the_order(texts, most):
    texts = list({document.name: document for document in texts}.values())
    kept = limited(texts, most)
    assert sum(len(document.text.encode()) for document in kept) <= most
    assert kept == limited(reversed(texts), most)
    assert drawn(texts, 3) == drawn(reversed(texts), 3) and len(drawn(texts, 3)) == min(3, len(texts))


def test_folders_are_read_by_group_and_links_out_of_them_are_not_followed(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    corpus = tmp_path / "corpus"
    (corpus / "one" / "deep").mkdir(parents=True)
    (corpus / "one" / "deep" / "a.py").write_text("a = 1")
    (corpus / "b.jsonl").write_text(json.dumps({"text": "hello", "group": "g"}) + "\n\n" + json.dumps({"text": "you"}))
    (corpus / "picture.png").write_bytes(b"\x89PNG")
    (corpus / "link.txt").symlink_to(secret)
    read = {(document.group, document.text) for document in read_folder(corpus)}
    assert read == {("one", "a = 1"), ("g", "hello"), ("b.jsonl:3", "you")}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "line 1 is not JSON"),
        ('{"txt": "a"}', 'line 1 has no "text"'),
        ("", "holds no text"),
        (None, "does not exist"),
    ],
)
def test_bad_input_names_the_line_and_what_to_do(tmp_path, content, message):
    file = tmp_path / "texts.jsonl"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=message):
        list(read_folder(file))


def test_installed_code_comes_by_package_without_site_packages_inside_the_standard_library():
    seen = {}
    for document in installed_python(data_science_only=True):
        seen.setdefault(document.group, document)
        if len(seen) > 2:
            break
    assert len(seen) > 2
    for document in seen.values():
        assert any(word in document.text for word in ("pandas", "sklearn", "matplotlib", "seaborn"))
        assert "site-packages" not in document.name


def test_hidden_files_and_byte_order_marks_are_no_text(tmp_path):
    for name in ("a/one.txt", "a/._one.txt", "__MACOSX/a/two.txt", ".ipynb_checkpoints/three.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text", encoding="utf-8-sig")
    assert [(document.name, document.text) for document in read_folder(tmp_path)] == [("a/one.txt", "text")]
