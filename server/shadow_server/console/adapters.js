// The table of adapters: what the server lists, and how they are doing.

import { element, find, keepChildren, setText } from "./element.js";
import { sparkline, showSparkline } from "./sparkline.js";

const BASE = "__base__";
const OTHER = "__other__";

/** The name that series have for an adapter: short for the default tenant, else with its tenant. */
export function seriesName(card) {
  const isFull = card.name.includes("/") || card.tenant === "default";
  return isFull ? card.name : `${card.tenant}/${card.name}`;
}

/**
 * @param {object[]} cards as GET /v1/adapters has them
 * @param {Map<string, object> | null} latencies by series' name; null when the key may not see them
 */
export function showAdapters(cards, latencies) {
  keepChildren(find("adapter-rows"), rowsOf(cards, latencies ?? new Map()), makeRow, updateRow);
  find("no-adapters").hidden = cards.length > 0;
}

function rowsOf(cards, latencies) {
  const rows = new Map();
  if (latencies.has(BASE)) rows.set(BASE, { name: "base model", latency: latencies.get(BASE) });
  for (const card of [...cards].sort((a, b) => order(a.id, b.id) || b.version - a.version)) {
    const isCurrent = card.state !== "DRAINING";
    const latency = isCurrent ? latencies.get(seriesName(card)) : undefined;
    rows.set(`${card.tenant}/${card.id}@${card.version}`, { name: card.id, card, latency });
  }
  const others = latencies.get(OTHER);
  if (others?.requests) rows.set(OTHER, { name: "all others", latency: others });
  return rows;
}

const order = (a, b) => (a < b ? -1 : Number(a > b));

function makeRow() {
  const cells = ["version", "state", "level", "digest", "running", "requests"];
  const row = element("tr", {}, element("th", { scope: "row" }));
  for (const name of cells) row.append(element("td", { class: name }));
  row.querySelector(".digest").replaceWith(
    element("td", {}, element("code", { class: "digest" })),
  );
  for (const name of ["running", "requests"]) row.querySelector(`.${name}`).classList.add("number");
  row.append(element("td", {}, sparkline("ttft")), element("td", {}, sparkline("itl")));
  return row;
}

function updateRow(row, { name, card, latency }) {
  setText(row.querySelector("th"), name);
  const text = card ? textOf(card) : {};
  for (const cell of ["version", "state", "level", "digest", "running"]) {
    setText(row.querySelector(`.${cell}`), text[cell] ?? "");
  }
  const state = row.querySelector(".state");
  state.className = card ? `state state-${card.state}` : "state";
  row.querySelector(".digest").title = card?.digest ?? "";
  setText(row.querySelector(".requests"), latency ? String(latency.requests) : "");
  const whose = `${name}, time to first token`;
  showSparkline(row.querySelector(".ttft"), latency?.firstToken ?? [], whose);
  showSparkline(row.querySelector(".itl"), latency?.interToken ?? [], `${name}, inter-token latency`);
}

function textOf(card) {
  return {
    version: String(card.version),
    state: card.failure ? `${card.state}: ${card.failure}` : card.state,
    level: card.pinned ? `${card.level}, pinned` : card.level,
    digest: card.digest,
    running: String(card.num_running_requests),
  };
}
