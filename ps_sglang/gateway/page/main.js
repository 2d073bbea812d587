// Asks for what happens once a second, while somebody looks, and shows it.

import { ask, Refusal } from "./api.js";
import { byId, count, make, percent, rate, setText, sync, time } from "./dom.js";
import { observe, totals } from "./rates.js";
import { showRequests, showTimes, showTokens, showWorkers } from "./panels.js";
import { showTree } from "./tree.js";
import { offer } from "./try.js";

const SECOND = 1000;
let paused = false;
let timer = 0;

async function refresh() {
  clearTimeout(timer);
  let wait = SECOND;
  try {
    const live = await (await ask("v1/live")).json();
    if (!paused) show(live);
  } catch (error) {
    wait = 4 * SECOND;
    await explain(error);
  }
  if (!paused && !document.hidden) timer = setTimeout(refresh, wait);
}

function show(live) {
  observe(live);
  byId("live").hidden = byId("pause").hidden = false;
  setText(byId("base"), live.base ? `base ${live.base}` : "");
  document.title = `${live.requests.length || "idle"} · ps_sglang`;
  const silent = live.hidden_processes;
  setStatus("live", silent ? `Live; gateway processes that do not answer: ${silent}` : "Live");
  showNow(live);
  showWorkers(live);
  showRequests(live);
  showTree(live.tree);
  showTokens(live.tokens);
  showTimes(live.turns);
  offer(live.decoders);
}

function showNow(live) {
  const all = totals(live.tokens);
  const rates = totals(live.workers.map((worker) => worker.rates));
  const open = live.requests.length + live.hidden_requests;
  const sessions = new Set(live.requests.map((one) => one.session).filter(Boolean)).size;
  const { first_token: first, turn } = live.turns.all;
  const found = all.prompt - all.computed;
  const tiles = [
    ["Output", rate(rates.produced), "tokens/s", "of streams"],
    ["Prefill", rate(rates.computed), "tokens/s", "by the base"],
    ["Found cached", percent(found, all.prompt), "",
      `${count(found)} of ${count(all.prompt)}`],
    ["Shared", percent(all.saved, all.prompt), "", "by another decoder"],
    ["First token", ...time(first.p50), `p95 ${time(first.p95).join(" ")}`],
    ["Turn", ...time(turn.p50), `p95 ${time(turn.p95).join(" ")}`],
    ["Open", count(open), open === 1 ? "request" : "requests",
      `${sessions} ${sessions === 1 ? "session" : "sessions"}`],
  ];
  sync(byId("now"), tiles, ([name]) => name,
    ([name]) => make("div", "tile", make("dt", "", name),
      make("dd", "", make("b"), " ", make("span", "unit")), make("dd", "note")),
    (tile, [, value, unit, note]) => {
      setText(tile.querySelector("b"), value);
      setText(tile.querySelector(".unit"), unit);
      setText(tile.querySelector(".note"), note);
    });
}

function setStatus(kind, text) {
  byId("status").className = kind;
  setText(byId("status"), text);
}

async function explain(error) {
  if (!(error instanceof Refusal)) {
    setStatus("lost", "The gateway does not answer; trying again.");
  } else if (error.status === 403) {
    // A user's key: no look behind the scenes, but the decoders answer.
    byId("live").hidden = byId("pause").hidden = true;
    setStatus("lost", error.message);
    const models = await ask("v1/models").then((answer) => answer.json(), () => ({ data: [] }));
    offer(models.data.map((model) => model.id));
  } else {
    setStatus("lost", error.message);
  }
}

byId("pause").onclick = () => {
  paused = !paused;
  byId("pause").setAttribute("aria-pressed", String(paused));
  setText(byId("pause"), paused ? "Go on" : "Pause");
  if (paused) setStatus("", "Paused");
  else refresh();
};
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && !paused) refresh();
});
refresh();
