"""The errors a user can meet are one family, and each can be caught as what Python calls its kind."""

import pytest

from sdpo_plugin import errors


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.ConfigError, ValueError),
        (errors.DataError, ValueError),
        (errors.OutputError, ValueError),
        (errors.ReferenceTableError, ValueError),
        (errors.StartGateError, RuntimeError),
        (errors.TrainingError, RuntimeError),
        (errors.HookError, RuntimeError),
        (errors.UnsupportedHostError, RuntimeError),
    ],
    ids=lambda part: part.__name__,
)
def test_kind_of_error(error: type[Exception], kind: type[Exception]) -> None:
    assert (issubclass(error, errors.SDPOError), issubclass(error, kind)) == (True, True)


def test_no_error_is_an_import_error() -> None:
    """Axolotl trains without a plugin that raises one."""
    family = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    assert len(family) == 10
    assert [kind for kind in family if issubclass(kind, ImportError)] == []
