"""Errors by the user's problem, with the exit code each stands for."""

import pytest

from wenfang.core import errors
from wenfang.core.errors import InputError, WenfangError, nearest


def test_bad_input_is_code_2_and_the_rest_code_1() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, WenfangError)]
    assert {kind.__name__: kind.exit_code for kind in kinds} == {
        "WenfangError": 1,
        "BusyError": 1,
        "InputError": 2,
        "CapacityError": 2,
        "RecipeError": 2,
        "DataError": 2,
        "TokenizerError": 2,
        "GrammarError": 2,
        "ModelError": 2,
        "PortError": 2,
    }
    assert all((kind.exit_code == 2) == issubclass(kind, InputError) for kind in kinds)


@pytest.mark.parametrize(
    ("typed", "hint"), [("epohcs", "Did you mean 'epochs'?"), ("epochs", "Did you mean 'epochs'?"), ("zzz", "")]
)
def test_the_nearest_name_is_offered_and_none_that_is_far(typed: str, hint: str) -> None:
    assert nearest(typed, iter(["corpus", "epochs"])) == hint
