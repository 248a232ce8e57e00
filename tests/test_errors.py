import pickle

import pytest

from pipeline import errors
from pipeline.errors import ErrorCode, MediaError, PatchwireError, Stage

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, PatchwireError)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_survives_pickling(kind: type[PatchwireError]) -> None:
    error = kind(ErrorCode.CORRUPT_MEDIA, "/a: bad", Stage.PROBE) if kind is MediaError else kind("/a: bad")
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is kind
    assert (str(back), back.exit_code) == (str(error), error.exit_code)
    assert vars(back) == vars(error)


@pytest.mark.parametrize("code", list(ErrorCode))
def test_every_code_has_a_sentence_and_something_to_do(code: ErrorCode) -> None:
    assert code.advice.meaning.endswith(".")
    assert code.advice.action.endswith(".")
    assert MediaError(code, "m").retryable is code.advice.retryable


def test_the_tree_at_the_top_of_the_file_is_the_tree() -> None:
    drawn = errors.__doc__ or ""
    assert all(kind.__name__ in drawn for kind in KINDS)
