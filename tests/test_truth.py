"""What stands beside a recording: the words in it, and what is wrong with the lines."""

import pytest

from kwsd.errors import AudioError
from kwsd.training.truth import Word, read_truth, write_truth

HEAD = "start_s\tend_s\tkeyword\n"


def test_what_is_written_is_read(tmp_path):
    words = [Word(0.5, 1.0, "yes"), Word(2.0, 2.25, 'für "immer"')]
    write_truth(tmp_path / "a.wav", words)
    assert read_truth(tmp_path / "a.wav") == words
    assert [path.name for path in tmp_path.iterdir()] == ["a.tsv"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, r"a\.wav: which words are in it should stand in a\.tsv beside it"),
        ((HEAD + "0\t1\tyes\n").encode("utf-16"), r"a\.tsv: is not UTF-8; save it as UTF-8"),
        ((HEAD + "0\t1\tf\u00fcr\n").encode("latin-1"), r"a\.tsv: is not UTF-8; save it as UTF-8"),
        ((HEAD + "\n\n0\t1\tyes\n\n2\t1\tno\n").encode(), r"a\.tsv:6: not start_s, end_s, keyword"),
        ((HEAD + "0\tinf\tyes\n").encode(), r"a\.tsv:2: not start_s, end_s, keyword"),
        ((HEAD + "0\t1\t\n").encode(), r"a\.tsv:2: not start_s, end_s, keyword"),
        ((HEAD + "0\t1\t" + "x" * 200_000 + "\n").encode(), r"a\.tsv:2: not start_s, end_s, keyword"),
        ((HEAD + "\n\n0\t1\t" + "x" * 200_000 + "\n").encode(), r"a\.tsv:4: not start_s, end_s, keyword"),
        (("x" * 200_000 + "\n").encode(), r"a\.tsv:1: not start_s, end_s, keyword"),
        (b"0\t1\tyes\n1\t2\tno\n", r"a\.tsv:2: not start_s, end_s, keyword"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(content, complaint, tmp_path):
    if content is not None:
        (tmp_path / "a.tsv").write_bytes(content)
    with pytest.raises(AudioError, match=complaint):
        read_truth(tmp_path / "a.wav")


def test_a_folder_in_the_place_of_words_is_said(tmp_path):
    (tmp_path / "a.tsv").mkdir()
    with pytest.raises(AudioError, match=r"a\.tsv: Is a directory"):
        read_truth(tmp_path / "a.wav")
