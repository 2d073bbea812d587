// Requests to the gateway, with the key that its user gave, if any. The key stays in this tab.

import { byId } from "./dom.js";

const KEY = "ps-sglang-key";
let waiting = null;

/** An answer that is not a 200: `status`, and a message that says why. */
export class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** The response of the gateway; asks for a key where one is needed. Throws Refusal. */
export async function ask(path, options = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = { ...options.headers, ...(key ? { authorization: `Bearer ${key}` } : {}) };
    const response = await fetch(path, { ...options, headers, credentials: "omit" });
    if (response.ok) return response;
    const message = await messageOf(response);
    if (response.status !== 401) throw new Refusal(response.status, message);
    if (sessionStorage.getItem(KEY) === key) await newKey(key ? message : "");
  }
}

async function messageOf(response) {
  try {
    return String((await response.json()).error.message);
  } catch {
    return `The gateway answered with status ${response.status}.`;
  }
}

/** Resolves when the user has given another key. */
function newKey(problem) {
  sessionStorage.removeItem(KEY);
  const form = byId("key");
  form.querySelector("p").textContent =
    problem || "It stays in this tab, and goes to this server only.";
  waiting ??= new Promise((resolve) => {
    form.hidden = false;
    byId("forget").hidden = true;
    byId("key-value").focus();
    form.onsubmit = (event) => {
      event.preventDefault();
      sessionStorage.setItem(KEY, byId("key-value").value.trim());
      byId("key-value").value = "";
      form.hidden = true;
      byId("forget").hidden = false;
      waiting = null;
      resolve();
    };
  });
  return waiting;
}

byId("forget").hidden = !sessionStorage.getItem(KEY);
byId("forget").onclick = () => {
  sessionStorage.removeItem(KEY);
  location.reload();
};
