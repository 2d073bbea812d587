// Asks several decoders the same at once, and shows their answers side by side as they come.

import { ask } from "./api.js";
import { byId, colour, count, make, makeBar, setText, showBar, sync, tag, timeText } from "./dom.js";

let running = null;

byId("context").value =
  "You are part of a team of specialists who work on one task. All of you read this same context. " +
  "A farm has 3 dogs, 2 birds and 4 spiders. A dog has 4 legs, a bird has 2, a spider has 8.";
byId("question").value = "How many legs are there in total? Answer in short steps.";

/** Let these decoders be chosen. */
export function offer(decoders) {
  sync(byId("choices"), decoders, (name) => name, (name) => {
    const box = make("input");
    box.type = "checkbox";
    box.value = name;
    box.checked = true;
    return make("label", "choice", box, tag(name));
  }, () => {});
}

byId("ask").onsubmit = async (event) => {
  event.preventDefault();
  const chosen = [...byId("choices").querySelectorAll("input:checked")].map((box) => box.value);
  if (!chosen.length) {
    setText(byId("try-status"), "Choose a decoder.");
    byId("choices").querySelector("input")?.focus();
    return;
  }
  running?.abort();
  const control = (running = new AbortController());
  byId("stop").disabled = false;
  const columns = chosen.map(makeColumn);
  byId("answers").replaceChildren(...columns.map((column) => column.element));
  setText(byId("try-status"), `Asking ${chosen.join(", ")}.`);
  await Promise.all(columns.map((column) => answer(column, control.signal)));
  if (running !== control) return;
  byId("stop").disabled = true;
  setText(byId("try-status"), columns.map((one) => one.summary).join(" "));
};

byId("stop").onclick = () => running?.abort();

function makeColumn(decoder) {
  const text = make("p", "answer");
  const facts = make("dl", "facts");
  const values = {};
  for (const name of ["first token", "all", "prompt", "cached"]) {
    values[name] = make("dd", "", "–");
    facts.append(make("div", "", make("dt", "", name), values[name]));
  }
  const bar = makeBar("sources");
  const sources = make("p", "detail");
  const element = make("article", `card ${colour(decoder)}`, make("h3", "", decoder), facts, bar,
    sources, text);
  return { decoder, element, text, values, bar, sources, summary: "" };
}

async function answer(column, signal) {
  const { decoder, text, values, element } = column;
  const began = performance.now();
  const since = () => (performance.now() - began) / 1000;
  let first = null;
  element.setAttribute("aria-busy", "true");
  try {
    const response = await ask("v1/chat/completions", {
      method: "POST", signal, body: JSON.stringify(request(decoder)),
      headers: { "content-type": "application/json", "x-timeline": "1" },
    });
    for await (const chunk of chunks(response)) {
      if (chunk.error) throw new Error(chunk.error.message);
      const said = textOf(chunk.choices?.[0]?.delta);
      if (said && first === null) setText(values["first token"], timeText((first = since())));
      if (said) text.append(said);
      if (chunk.usage) showUsage(column, chunk.usage);
      if (chunk.timeline) showSources(column, chunk.timeline[0]?.tokens ?? {});
      else setText(values["all"], timeText(since()));
    }
    column.summary = `${decoder}: first token after ${timeText(first)}, ` +
      `${values.cached.textContent} of ${values.prompt.textContent} prompt tokens cached.`;
  } catch (error) {
    const message = signal.aborted ? "Stopped." : String(error.message);
    element.append(make("p", "problem", message));
    column.summary = `${decoder}: ${message}`;
  }
  element.removeAttribute("aria-busy");
}

function request(decoder) {
  const context = byId("context").value;
  return {
    model: decoder, stream: true, stream_options: { include_usage: true },
    max_tokens: Number(byId("most").value), temperature: 0,
    messages: [...(context ? [{ role: "system", content: context }] : []),
      { role: "user", content: byId("question").value }],
  };
}

/** The JSON of a stream's events. */
async function* chunks(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const content = event.replace(/^data: ?/, "");
      if (content !== "[DONE]") yield JSON.parse(content);
    }
  }
}

function textOf(delta) {
  const calls = (delta?.tool_calls ?? []).map((one) =>
    `${one.function?.name ? `\n${one.function.name} ` : ""}${one.function?.arguments ?? ""}`);
  return [delta?.reasoning_content, delta?.content, ...calls].filter(Boolean).join("");
}

function showUsage({ values }, usage) {
  setText(values.prompt, count(usage.prompt_tokens));
  setText(values.cached, count(usage.prompt_tokens_details?.cached_tokens ?? 0));
}

function showSources({ bar, sources }, { computed, tree = 0, own, pulled }) {
  if (computed === undefined) return;
  const prompt = own === undefined ? computed + tree : own + pulled;
  const ownPart = Math.min(own ?? 0, prompt);
  const found = Math.max(prompt - ownPart - computed, 0);
  if (!prompt) return;
  showBar(bar, [["computed", Math.min(computed, prompt) / prompt], ["found", found / prompt],
    ["own", ownPart / prompt]]);
  setText(sources, `${count(computed)} computed, ${count(found)} from the prefill tree, ` +
    `${count(ownPart)} in its own`);
}
