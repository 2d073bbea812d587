"""Tasks that are only reported: HumanEval and GSM8K."""

from __future__ import annotations

import pytest

from ps_sglang.errors import UsageError
from ps_sglang.training.tasks import TASK_NAMES, gsm8k, humaneval, task
from tests.training.tasks.task_setup import digest, needs

REPORT_ONLY = ("humaneval", "gsm8k", "bfcl-live-simple")


def test_which_tasks_are_trained() -> None:
    assert [name for name in TASK_NAMES if task(name).trained] == ["code", "tools", "math"]
    assert [name for name in TASK_NAMES if not task(name).trained] == list(REPORT_ONLY)


@pytest.mark.parametrize("name", REPORT_ONLY)
def test_they_have_nothing_to_train_on(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} is only reported.* no train split, only test"):
        task(name).items("train")


@needs(gsm8k.PACKAGE)
def test_gsm8k() -> None:
    items = task("gsm8k").items("test")
    assert len(items) == 100
    assert digest(items) == "3c2867ba5443257d"
    assert all("<<" not in item.answer for item in items)
    assert task("gsm8k").passed(items, [item.answer for item in items]) == [True] * 100
    assert task("gsm8k").passed(items, ["I do not know."] * 100) == [False] * 100


@needs(humaneval.PACKAGE)
class TestHumanEval:
    def test_items(self) -> None:
        items = task("humaneval").items("test")
        assert len(items) == 164
        assert digest(items) == "3f68782aa5af6ce2"

    def test_gold_answers_pass_whole_or_as_the_body_alone(self) -> None:
        items = task("humaneval").items("test")
        prompts = [item.check["prompt"] for item in items]
        answers = [
            f"```python\n{item.answer}\n```" if n % 2 else item.answer.removeprefix(prompt)
            for n, (item, prompt) in enumerate(zip(items, prompts, strict=True))
        ]
        assert task("humaneval").passed(items, answers) == [True] * 164

    def test_an_answer_cannot_say_that_it_passed(self) -> None:
        item = task("humaneval").items("test", 1)[0]
        function = item.check["function"]
        claims = [
            "",
            "    pass",
            "import os\nos.write(3, b'{\"values\": [true]}')\nos._exit(0)",
            f"import sys\ndef {function}(*args):\n    sys.exit(0)",
            f"def check(candidate):\n    pass\ndef {function}(*args):\n    pass",
            f"def _verdict(secret):\n    return secret\ndef {function}(*args):\n    pass",
            f"import json\njson.loads = json.dumps = print\ndef {function}(*args):\n    pass",
            (
                f"def {function}(*args):\n"
                "    try:\n        raise ValueError\n"
                "    except ValueError as error:\n"
                "        frame = error.__traceback__.tb_frame.f_back.f_back\n"
                "        import os\n"
                "        secret = frame.f_locals['secret']\n"
                '        os.write(3, b\'{"values": ["%s"]}\' % secret.encode())\n'
                "        os._exit(0)\n"
            ),
        ]
        assert task("humaneval").passed([item] * len(claims), claims) == [False] * len(claims)
