// Workers, running requests, and the tables of tokens and times.

import {
  byId, count, make, makeBar, rate, setText, showBar, sync, tag, timeText,
} from "./dom.js";
import { promptTokens } from "./rates.js";

const SVG = "http://www.w3.org/2000/svg";
const TROUBLE = { broken: "bad", refused: "bad", trial: "odd", starting: "odd", draining: "odd" };

export function showWorkers({ workers, hidden_workers: hidden }) {
  sync(byId("workers"), workers, (one) => one.name, makeWorker, showWorker);
  setText(byId("workers-more"), hidden ? `and ${count(hidden)} more` : "");
}

function makeWorker(worker) {
  const item = make("li", "card worker");
  const facts = make("dl", "facts");
  for (const name of ["running", "waiting", "tokens/s"]) {
    facts.append(make("div", "", make("dt", "", name), make("dd")));
  }
  item.append(
    make("div", "head", make("h3", "", worker.name), make("span", "role"), make("span", "state")),
    make("p", "serves"), facts, makeSpark(), makeBar("pool"), make("p", "pool-text"),
    make("p", "problem"));
  return item;
}

function showWorker(item, worker) {
  const find = (selector) => item.querySelector(selector);
  const role = worker.role === "null" ? "both" : worker.role;
  setText(find(".role"), role);
  setText(find(".state"), worker.state);
  find(".state").className = `state ${TROUBLE[worker.state] ?? "good"}`;
  if (worker.role === "prefill") setText(find(".serves"), "the base, for all");
  else sync(find(".serves"), worker.decoders, (name) => name, (name) => tag(name), () => {});
  const speed = worker.role === "prefill" ? "computed" : "produced";
  const [running, waiting, tokens] = item.querySelectorAll("dd");
  setText(running, count(worker.running ?? worker.requests));
  setText(waiting, count(worker.waiting));
  setText(tokens, rate(worker.rates[speed]));
  showSpark(find("svg"), worker.history.map((one) => one[speed]));
  const whole = worker.capacity || Math.max(worker.used_tokens ?? 0, worker.cached_tokens, 1);
  const used = worker.used_tokens ?? 0;
  showBar(find(".pool"), [
    ["used", used / whole], ["cached", Math.max(worker.cached_tokens - used, 0) / whole]]);
  const room = worker.capacity ? ` of ${count(worker.capacity)}` : "";
  setText(find(".pool-text"),
    `KV: ${count(worker.used_tokens)} in use, ${count(worker.cached_tokens)} cached${room}`);
  setText(find(".problem"), worker.problem ?? "");
}

function makeSpark() {
  const spark = document.createElementNS(SVG, "svg");
  spark.setAttribute("viewBox", "0 0 60 16");
  spark.setAttribute("preserveAspectRatio", "none");
  spark.setAttribute("aria-hidden", "true");
  spark.append(document.createElementNS(SVG, "path"));
  return spark;
}

function showSpark(spark, values) {
  const top = Math.max(...values.filter((value) => value > 0), 1);
  const left = 60 - values.length; // the latest is at the right
  const points = values.map((one, place) => `${left + place},${15 - 14 * ((one || 0) / top)}`);
  const line = points.length ? `M0,15L${left},15L${points.join("L")}L59,15` : "";
  spark.firstChild.setAttribute("d", line);
}

export function showRequests({ requests, hidden_requests: hidden }) {
  sync(byId("requests"), requests, (one) => one.id, (one) => make("li", "",
    make("div", "head", tag(one.decoder), make("code", "session"), make("span", "phase"),
      make("span", "age")),
    make("p", "detail")), showRequest);
  const quiet = requests.length ? "" : "Nobody speaks.";
  setText(byId("requests-more"), hidden ? `and ${count(hidden)} more` : quiet);
}

function showRequest(item, one) {
  const find = (selector) => item.querySelector(selector);
  const speaks = one.phase === "decode";
  setText(find(".session"), [one.session ?? "no session", one.tenant].filter(Boolean).join(" · "));
  setText(find(".phase"), speaks ? "speaks" : "is prefilled");
  find(".phase").className = `phase ${one.phase}`;
  setText(find(".age"), timeText(one.seconds));
  const way = [one.prefill_worker, one.decode_worker].filter(Boolean).join(" → ");
  setText(find(".detail"), `${count(one.prompt_tokens)} prompt tokens, ${count(one.found)} cached` +
    `${one.produced ? `, ${count(one.produced)} said` : ""} · ${way}`);
}

export function showTokens(tokens) {
  const rows = Object.entries(tokens).flatMap(([name, counts]) => [
    [name, counts, false], [name, counts, true]]);
  sync(byId("tokens"), rows, ([name, , isBar]) => `${isBar} ${name}`, makeTokensRow,
    (row, [, counts, isBar]) => {
      const prompt = promptTokens(counts);
      const own = Math.min(counts.own, prompt);
      const found = Math.max(prompt - own - counts.computed, 0);
      if (isBar) {
        showBar(row.querySelector(".bar"), [["computed", Math.min(counts.computed, prompt) / prompt],
          ["found", found / prompt], ["own", own / prompt]]);
      } else {
        fill(row, ["computed", "tree", "own", "pulled", "saved"].map((one) => count(counts[one])));
      }
    });
}

function makeTokensRow([name, , isBar]) {
  if (!isBar) return makeRow(name, 5);
  const cell = make("td", "", makeBar("sources"));
  cell.colSpan = 6;
  const row = make("tr", "bars", cell);
  row.setAttribute("aria-hidden", "true");
  return row;
}

export function showTimes({ all, decoders }) {
  const rows = [...Object.entries(decoders), ["", all]];
  sync(byId("times"), rows, ([name]) => name, ([name]) => makeRow(name, 5), (row, [, times]) => {
    const { first_token: first, turn } = times;
    fill(row, [count(times.count),
      ...[first.p50, first.p95, turn.p50, turn.p95].map(timeText)]);
  });
}

/** A row for a decoder, or for all where the name is empty. */
function makeRow(name, cells) {
  const head = make("th", "", name ? tag(name) : "all");
  head.scope = "row";
  return make("tr", name ? "" : "sum", head, ...Array.from({ length: cells }, () => make("td")));
}

function fill(row, texts) {
  texts.forEach((text, number) => setText(row.cells[number + 1], text));
}
