// Rates of counters that only grow, from what they said some seconds ago.

const WINDOW_SECONDS = 5;
const POINTS = 60;
const histories = new Map();
let started = null;

/** Give each worker its `rates` (tokens/s computed and produced) and their `history`. */
export function observe(live) {
  if (started !== live.started) histories.clear();
  started = live.started;
  for (const worker of live.workers) {
    const history = histories.get(worker.name) ?? [];
    histories.set(worker.name, history);
    const now = { time: live.time, computed: worker.computed, produced: worker.produced };
    const last = history.at(-1);
    if (!last || now.time > last.time) history.push(now);
    if (history.length > POINTS + WINDOW_SECONDS) history.shift();
    worker.history = history.map((_, place) => rates(history, place)).slice(-POINTS);
    worker.rates = worker.history.at(-1) ?? { computed: NaN, produced: NaN };
  }
}

function rates(history, place) {
  const now = history[place];
  const before = history.find((one) => now.time - one.time <= WINDOW_SECONDS);
  const seconds = now.time - before.time;
  const of = (name) => (seconds > 0 ? Math.max(now[name] - before[name], 0) / seconds : NaN);
  return { computed: of("computed"), produced: of("produced") };
}

/** The sum of each number in a list or map of objects; `prompt` is what all decoders asked. */
export function totals(listed) {
  const all = {};
  for (const one of Object.values(listed)) {
    for (const [name, value] of Object.entries(one)) all[name] = (all[name] ?? 0) + (value || 0);
  }
  all.prompt = Object.values(listed).reduce((sum, one) => sum + promptTokens(one), 0);
  all.computed ??= 0;
  return all;
}

/** Tokens of prompts: those that decode workers held or pulled, or those of aggregated workers. */
export function promptTokens(one) {
  return one.own + one.pulled || one.computed + one.tree || 0;
}
