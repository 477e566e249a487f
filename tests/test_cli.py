"""What the scripts say when they are stopped."""

import pytest

from utils import cli
from utils.signals import Interrupted


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), Interrupted("stopped by SIGTERM")])
@pytest.mark.parametrize("resumes", [True, False])
def test_only_scripts_that_go_on_promise_to(
    stop: BaseException, resumes: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, cli.exits(resumes):
        raise stop
    said = capsys.readouterr().err
    assert ended.value.code == cli.INTERRUPTED and said.startswith("stopped") and said.count("\n") == 1
    assert ("the same command goes on" in said) == resumes == ("what has been written stays" not in said)
