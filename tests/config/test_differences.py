"""Nested dictionaries, compared."""

from star.config.differences import MISSING, described, differences


def test_differing_keys_are_dotted():
    left = {"a": {"b": 1, "c": [1]}, "d": None}
    assert list(differences(left, {"a": {"b": 1, "c": [1]}, "d": None})) == []
    assert list(differences(left, {"a": {"b": 2, "c": [1]}, "e": 0})) == [
        ("a.b", 1, 2),
        ("d", None, MISSING),
        ("e", MISSING, 0),
    ]


def test_any_number_is_compared_at_once():
    trees = {"a": {"b": 1}, "c": 2}, {"a": {"b": 1}, "c": 3}, {"a": None, "c": 2}
    assert list(differences(*trees)) == [("a", {"b": 1}, {"b": 1}, None), ("c", 2, 3, 2)]
    assert list(differences(*trees[:1], *trees[:1], *trees[:1])) == []


def test_a_description_names_both_values():
    assert described({"a": {"b": 1}}, {"a": {"b": "x" * 50}}) == f"a.b 1 -> {'x' * 12}..."
    assert described({"a": 1}, {}) == "a 1 -> nothing"
