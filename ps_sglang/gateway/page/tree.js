// The base-token tree: each branch with its tokens, who read it, and what that saved.

import { byId, colour, count, make, makeBar, setText, showBar, sync, tag } from "./dom.js";

export function showTree(tree) {
  const widest = Math.max(...tree.branches.map((one) => one.tokens + one.below), 1);
  showBranches(byId("tree"), tree.branches, widest);
  const text = tree.problem ? `It cannot be shown: ${tree.problem}`
    : tree.hidden ? `and ${count(tree.hidden)} smaller branches` : "";
  setText(byId("tree-more"), tree.branches.length || text ? text : "No worker holds anything yet.");
}

function showBranches(list, branches, widest) {
  sync(list, branches, (one) => `${one.tenant} ${one.salt} ${one.excerpt}`, makeBranch,
    (item, one) => showBranch(item, one, widest));
}

function makeBranch() {
  const head = make("summary", "", make("code", "excerpt"), make("span", "users"),
    make("span", "saved"), make("span", "size"), makeBar("use"));
  const details = make("details", "", head, make("p", "held"), make("ul", "tree"),
    make("p", "more"));
  details.open = true;
  return make("li", "", details);
}

function showBranch(item, branch, widest) {
  const find = (selector) => item.querySelector(`:scope > details > ${selector}`);
  const head = find("summary");
  const part = (selector) => head.querySelector(selector);
  setText(part(".excerpt"), branch.excerpt.replace(/\s+/g, " ").trim() || "(no text)");
  const used = Object.entries(branch.used).sort((a, b) => b[1].turns - a[1].turns);
  const found = used.reduce((sum, [, usage]) => sum + usage.found, 0);
  const read = used.reduce((sum, [, usage]) => sum + usage.found + usage.computed, 0);
  sync(part(".users"), used, ([name]) => name, ([name]) => tag(name, " ", make("span", "times")),
    (one, [, usage]) => {
      setText(one.querySelector(".times"), `${count(usage.turns)}×`);
      one.title = `${count(usage.turns)} turns: ${count(usage.computed)} tokens computed, ` +
        `${count(usage.found)} found`;
    });
  setText(part(".saved"), found ? `saved ${count(found)}` : "");
  setText(part(".size"), `${count(branch.tokens)} tokens`);
  const width = Math.max(branch.tokens / widest, 0.004);
  showBar(part(".bar"), used.length
    ? used.map(([name, one]) => [colour(name), (width * (one.found + one.computed)) / read])
    : [["idle", width]]);
  const held = Object.entries(branch.held).map(([worker, tokens]) =>
    tokens === branch.tokens ? worker : `${worker} (${count(tokens)})`);
  const whose = [branch.tenant && `tenant ${branch.tenant}`, branch.salt && `salt ${branch.salt}`];
  setText(find(".held"), [`on ${held.join(", ")}`, ...whose].filter(Boolean).join(" · "));
  showBranches(find("ul"), branch.branches, widest);
  setText(find(".more"), branch.hidden ? `and ${count(branch.hidden)} smaller branches` : "");
}
