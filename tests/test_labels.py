"""Labels are read strictly, and a transcript tells whether a keyword is spoken."""

import pytest

from kwsd.errors import ConfigError
from kwsd.training.labels import ALL, COMMANDS, label_of, parse_labels, spoken_keywords


def test_there_are_35_words_in_alphabetical_order_and_the_commands_are_among_them():
    assert len(ALL) == 35
    assert list(ALL) == sorted(set(ALL))
    assert set(COMMANDS) < set(ALL)


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("all", ALL),
        ("commands", (*COMMANDS, "_unknown_", "_silence_")),
        ("yes,no", ("yes", "no")),
        (" stop , go ,_unknown_", ("stop", "go", "_unknown_")),
        ("no,yes", ("no", "yes")),  # the order is the network's outputs
    ],
)
def test_labels_are_a_name_for_many_or_a_list(text, labels):
    assert parse_labels(text) == labels


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "empty"),
        ("yes,,no", "empty"),
        ("yes,no,", "empty"),
        ("yes,no,yes", "yes is given more than once"),
        ("yes", "at least two"),
        ("yes,_unkown_", r"_unkown_ begins with _, and is no word; did you mean _unknown_\?"),
        ("yes,_", "_ begins with _, and is no word; there are _unknown_ and _silence_"),
    ],
)
def test_a_list_that_cannot_be_meant_is_refused(text, complaint):
    with pytest.raises(ConfigError, match=complaint):
        parse_labels(text)


@pytest.mark.parametrize(
    ("transcript", "said"),
    [
        ("PLEASE STOP THE CAR", True),
        ("stop.", True),
        ("he said 'no' and left it at that", True),  # in quotes
        ("I don't know", True),  # sounds like no
        ("to write a letter", True),  # sounds like right
        ("the Wright brothers", True),
        ("go-cart", True),
        ("nobody stopped, nowhere, going up", False),  # inside other words; `up` is no label here
        ("don't", False),
        ("", False),
    ],
)
def test_a_transcript_says_a_keyword_or_what_sounds_like_one(transcript, said):
    assert bool(spoken_keywords(transcript, ("stop", "no", "right", "go"))) is said


@pytest.mark.parametrize(
    ("transcript", "label"),
    [
        ("well, hey Marvin!", "hey_marvin"),
        ("well, hey Marvin!", "hey marvin"),
        ("HEY-MARVIN", "Hey_Marvin"),
        ("jarvis, stop", "Jarvis"),
        ("alexa2 is there", "alexa2"),
        ("say नमस्ते to her", "नमस्ते"),
        ("un cafe\u0301", "caf\u00e9"),
        ("let\u2019s go home", "let's_go"),
        ("do you know", "know"),  # which sounds like another word, but is a label itself
        ("Straße", "STRASSE"),
        ("please write this down", "write this"),  # which sounds like another word in a label
        ("please right this boat", "write_this"),
        ("他说你好吗", "你好"),
        ("他 说 你 好 吗", "你_好"),
        ("ねえライトをつけて", "ライト"),
        ("เขาพูดว่าสวัสดีครับ", "สวัสดี"),
    ],
)
def test_a_label_in_any_script_and_of_several_words_is_found(transcript, label):
    assert spoken_keywords(transcript, (label, "no")) == {label: 1}


@pytest.mark.parametrize(
    ("word", "label"),
    [
        ("stop", "stop"),
        ("Stop", "stop"),
        ("cafe\u0301", "caf\u00e9"),
        ("hey marvin", "Hey_Marvin"),
        ("No", "No"),  # a label itself, though another is alike
        ("stopped", "stopped"),
        ("!", "!"),
    ],
)
def test_a_word_is_the_label_that_it_means(word, label):
    assert label_of(word, ("no", "No", "stop", "caf\u00e9", "Hey_Marvin", "?")) == label


def test_parts_of_a_label_of_several_words_are_not_the_label():
    assert not spoken_keywords("hey, you! marvin, hey", ("hey_marvin",))


@pytest.mark.parametrize(
    ("transcript", "label"), [("那是你。好吗", "你好"), ("안녕하세요", "안녕"), ("stopped", "stop")]
)
def test_what_stands_in_the_midst_of_a_word_or_over_the_end_of_a_sentence_is_none(transcript, label):
    assert not spoken_keywords(transcript, (label,))


def test_every_time_that_a_label_is_spoken_counts():
    assert spoken_keywords("no, no, hey marvin, hey marvin no", ("no", "hey_marvin")) == {"no": 3, "hey_marvin": 2}
    assert spoken_keywords("你好,你好吗", ("你好", "吗", "no")) == {"你好": 2, "吗": 1}


def test_only_the_models_own_labels_count():
    assert not spoken_keywords("yes", ("stop", "_unknown_"))
    assert not spoken_keywords("unknown silence", ("stop", "_unknown_", "_silence_"))
