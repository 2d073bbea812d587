"""SGLang programs on PrefillShareBackend: each expression reaches its decoder, in order."""

from __future__ import annotations

import threading
from typing import Any
from urllib.error import URLError

import pytest
import sglang as sgl

from ps_sglang.frontend import PrefillShareBackend, by
from tests.frontend.counting_gateway import Gateway
from tests.support.standin_gateway import Json

pytestmark = pytest.mark.filterwarnings("ignore:Error in stream_executor")


@sgl.function
def relay(s: Any, first: str, second: str) -> None:
    """Two decoders take turns."""
    s += "talk: " + by(first, sgl.gen("one")) + by(second, sgl.gen("two"))
    s += by(first, sgl.gen("three"))


def test_decoders_take_turns_in_one_conversation(
    gateway: Gateway, backend: PrefillShareBackend
) -> None:
    state = relay.run("b", "c", backend=backend)
    assert state.text() == "talk: <b:1><c:2><b:3>"
    assert gateway.prompts == [
        ("b", "talk: "),
        ("c", "talk: <b:1>"),
        ("b", "talk: <b:1><c:2>"),
    ]
    assert (state["one"], state["two"], state["three"]) == ("<b:1>", "<c:2>", "<b:3>")


def test_without_an_address_the_default_decoder_speaks(gateway: Gateway) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += "x" + sgl.gen("one") + by("b", sgl.gen("two")) + sgl.gen("three")

    assert program.run(backend=PrefillShareBackend(gateway.url)).text() == "x<a:1><b:2><a:3>"
    assert program.run(backend=PrefillShareBackend(gateway.url, "c")).text() == "x<c:1><b:2><c:3>"


def test_one_expression_may_be_said_by_several(backend: PrefillShareBackend) -> None:
    @sgl.function
    def program(s: Any) -> None:
        expression = sgl.gen("x")
        for name in "cab":
            s += by(name, expression)
        s += expression

    assert program.run(backend=backend).text() == "<c:1><a:2><b:3><a:4>"


def test_meta_info_tells_who_paid(backend: PrefillShareBackend) -> None:
    state = relay.run("b", "c", backend=backend)
    meta = state.get_meta_info("two")
    assert meta["prompt_tokens"] == len("talk: <b:1>")
    assert meta["cached_tokens_details"] == {"device": 2, "host": 3}


def test_forks_speak_at_once_and_each_by_its_decoder(
    gateway: Gateway, backend: PrefillShareBackend
) -> None:
    gateway.barrier = threading.Barrier(3)

    @sgl.function
    def program(s: Any) -> None:
        s += "root "
        s.sync()  # SGLang asks for the prefix only where the text is there already
        forks = s.fork(3)
        for fork, name in zip(forks, "cab", strict=True):
            fork += by(name, sgl.gen("branch"))
        forks.join()

    state = program.run(backend=backend)
    assert state["branch"] == ["<c:1>", "<a:1>", "<b:1>"]
    warm, *branches = gateway.asked
    assert warm[1]["text"] == "root "
    assert warm[1]["sampling_params"]["max_new_tokens"] == 0
    assert sorted(name for name, _ in branches) == ["a", "b", "c"]


def test_joined_forks_continue_the_text(backend: PrefillShareBackend) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += "root "
        forks = s.fork(2)
        for fork, name in zip(forks, "bc", strict=True):
            fork += by(name, sgl.gen("branch"))
        forks.join("concate_and_append")
        s += by("a", sgl.gen("end"))

    assert program.run(backend=backend).text() == "root <b:1><c:1><a:3>"


def test_streams_come_from_their_decoders(gateway: Gateway, backend: PrefillShareBackend) -> None:
    state = relay.run("b", "c", backend=backend, stream=True)
    pieces = list(state.text_iter())
    assert "".join(pieces) == "talk: <b:1><c:2><b:3>"
    assert [(name, body["stream"]) for name, body in gateway.asked] == [
        ("b", True),
        ("c", True),
        ("b", True),
    ]
    assert state.get_meta_info("two")["cached_tokens"] == 5


def test_programs_at_once_do_not_mix(gateway: Gateway, backend: PrefillShareBackend) -> None:
    gateway.barrier = threading.Barrier(6)
    pairs = [(one, other) for one in "abc" for other in "abc" if one != other]
    arguments = [{"first": one, "second": other} for one, other in pairs]
    states = relay.run_batch(arguments, backend=backend, num_threads=6)
    assert [state.text() for state in states] == [
        f"talk: <{one}:1><{other}:2><{one}:3>" for one, other in pairs
    ]


def test_the_common_beginning_of_a_batch_is_prefilled_once(
    gateway: Gateway, backend: PrefillShareBackend
) -> None:
    beginning = "You are one of many programs with a beginning in common. " * 2

    @sgl.function
    def program(s: Any, question: str) -> None:
        s += beginning
        s += question + by("b", sgl.gen("x"))

    program.run_batch([{"question": str(i)} for i in range(3)], backend=backend)
    (warm, body), *others = gateway.asked
    assert (warm, body["text"]) == ("a", beginning)
    assert sorted(body["text"] for _, body in others) == [f"{beginning}{i}" for i in range(3)]


def test_constraints_arrive(gateway: Gateway, backend: PrefillShareBackend) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += by("b", sgl.gen("r", regex="[a-c]{3}")) + by("c", sgl.gen_int("i"))

    program.run(backend=backend).sync()
    regexes = [body["sampling_params"]["regex"] for _, body in gateway.asked]
    assert regexes == ["[a-c]{3}", sgl.lang.ir.REGEX_INT]


@sgl.function
def choose(s: Any, choices: list[str], options: dict[str, Any] | None = None) -> None:
    s += "which? " + by("b", sgl.select("choice", choices, **(options or {})))
    s += "!" + by("c", sgl.gen("after"))


def test_select_is_made_by_its_decoder(gateway: Gateway, backend: PrefillShareBackend) -> None:
    def reply(decoder: str, body: Json) -> str:
        return "c++ (17)" if decoder == "b" else "done"

    gateway.reply = reply
    state = choose.run(["c", "c++ (17)", "d.é"], backend=backend)
    assert state.text() == "which? c++ (17)!done"
    name, body = gateway.asked[0]
    assert name == "b"
    assert body["sampling_params"] == {
        "regex": r"(c|c\+\+ \(17\)|d\.é)",
        "temperature": 0,
        "max_new_tokens": 9,
    }
    assert state.get_meta_info("choice")["cached_tokens"] == 5


def test_select_takes_no_answer_but_a_choice(
    gateway: Gateway, backend: PrefillShareBackend
) -> None:
    gateway.reply = lambda decoder, body: "perhaps"
    error = choose.run(["yes", "no"], backend=backend).error()
    assert "'perhaps' is none of ['yes', 'no']" in str(error)


def test_select_refuses_what_needs_logprobs_of_the_prompt(
    gateway: Gateway, backend: PrefillShareBackend
) -> None:
    method = {"choices_method": sgl.unconditional_likelihood_normalized}
    state = choose.run(["yes", "no"], method, backend=backend)
    assert "needs logprobs of the prompt" in str(state.error())
    assert gateway.asked == []


@pytest.mark.parametrize(("choices", "temperature"), [([], 0.0), (["yes", ""], 0.0), (["y"], 0.5)])
def test_select_refuses_bad_arguments(
    backend: PrefillShareBackend, choices: list[str], temperature: float
) -> None:
    state = choose.run(choices, {"temperature": temperature}, backend=backend)
    assert isinstance(state.error(), ValueError)


def test_an_unknown_decoder_is_named(gateway: Gateway, backend: PrefillShareBackend) -> None:
    state = relay.run("a", "planner", backend=backend)
    assert str(state.error()) == (
        f"decoder 'planner' is not served at {gateway.url}; served: a, b, c"
    )
    assert [name for name, _ in gateway.asked] == ["a"]


def test_an_unknown_default_decoder_is_refused_at_once(gateway: Gateway) -> None:
    with pytest.raises(ValueError, match="'planner' is not served"):
        PrefillShareBackend(gateway.url, "planner")


def test_the_servers_error_reaches_the_program(
    gateway: Gateway, backend: PrefillShareBackend
) -> None:
    gateway.reply = lambda decoder, body: "error"
    assert "on fire" in str(relay.run("a", "b", backend=backend).error())


def test_no_gateway(gateway: Gateway) -> None:
    with pytest.raises(RuntimeError, match="answers 404"):
        PrefillShareBackend(gateway.url + "/elsewhere")
    with pytest.raises(URLError):
        PrefillShareBackend("http://127.0.0.1:9")


def test_what_the_backend_tells(gateway: Gateway, backend: PrefillShareBackend) -> None:
    assert backend.decoders == ("a", "b", "c")
    assert backend.get_model_name() == "a"
    sgl.flush_cache(backend)
    assert gateway.flushed == 1


def test_roles_are_laid_out_by_the_tokenizers_template(
    gateway: Gateway, backend: PrefillShareBackend
) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += sgl.system("Be kind.") + sgl.user("Hello!")
        s += by("b", sgl.assistant(sgl.gen("x")))

    assert program.run(backend=backend).text() == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHello!<|im_end|>\n"
        f"<|im_start|>assistant\n{gateway.reply('b', gateway.asked[0][1])}<|im_end|>\n"
    )
