// Elements, lists that change without losing the focus, and numbers as people read them.
// Everything that comes from elsewhere becomes text: nothing here reads markup.

export const byId = (id) => document.getElementById(id);

/** An element with a class, and children that are elements or text. */
export function make(tag, className = "", ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Keep one child for each item: `create` makes it, `update(child, item)` shows the item. */
export function sync(parent, items, keyOf, create, update) {
  const known = (parent.known ??= new Map());
  const left = new Map(known);
  let place = parent.firstChild;
  items.forEach((item, number) => {
    let key = `${keyOf(item)}`;
    while (known.has(key) && !left.has(key)) key += "\n"; // twice in one list
    let child = left.get(key);
    left.delete(key);
    if (!child) known.set(key, (child = create(item)));
    if (child === place) place = place.nextSibling;
    else parent.insertBefore(child, place);
    update(child, item, number);
  });
  for (const [key, child] of left) {
    known.delete(key);
    child.remove();
  }
}

/** A bar of parts, each [class, share of the whole]; what it says must stand beside it as text. */
export function showBar(bar, parts) {
  sync(bar, parts.filter(([, share]) => share > 0), ([name]) => name,
    ([name]) => make("i", name),
    (part, [, share]) => { part.style.width = `${Math.min(share, 1) * 100}%`; });
}

export function makeBar(className = "") {
  const bar = make("div", `bar ${className}`);
  bar.setAttribute("aria-hidden", "true");
  return bar;
}

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

/** 1,234 or 12.3M; a dash for what is not known. */
export function count(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  return Math.abs(value) < 100000 ? whole.format(value) : short.format(value);
}

export function rate(value) {
  return value > 0 && value < 9.95 ? value.toFixed(1) : count(value);
}

export const percent = (part, all) => (all > 0 ? `${whole.format((100 * part) / all)} %` : "–");

/** Seconds as [number, unit]. */
export function time(seconds) {
  if (seconds === null || seconds === undefined) return ["–", ""];
  if (seconds < 0.9995) return [whole.format(seconds * 1000), "ms"];
  return [seconds < 99.95 ? seconds.toFixed(seconds < 9.995 ? 2 : 1) : whole.format(seconds), "s"];
}

export const timeText = (seconds) => time(seconds).join(" ").trim();

const colours = new Map();

/** The class that gives a decoder its colour, the same as long as the page is open. */
export function colour(decoder) {
  if (!colours.has(decoder)) colours.set(decoder, `c${colours.size % 8}`);
  return colours.get(decoder);
}

export function tag(decoder, ...more) {
  return make("span", `tag ${colour(decoder)}`, make("b", "", decoder), ...more);
}
